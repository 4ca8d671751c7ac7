"""The methods that are compared: each makes a timm model trainable in its way, on the same layers and the head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from peft import get_peft_model
from torch import nn

from benchmarks.published import wrap_published
from snella.config.method import MethodConfig
from snella.methods.adapters import wrap
from snella.methods.budgets import AdaLoraAllocation, SnellaAllocation
from snella.training.interfaces import AfterStep
from snella.tuner import SnellaConfig

SPARSITY = 0.7
STEPS = 100_000  # of the training that the steps measured belong to: budgets move in each of them


@dataclass(frozen=True)
class Method:
    """One way of fine-tuning: `wrap(model, r)` changes the model and returns the trainable one."""

    summary: str
    wrap: Callable[[nn.Module, int], nn.Module]
    after_step: Callable[[nn.Module], AfterStep] | None = None
    evaluated: bool = True  # False: in evaluation it is the same as another


def _by_name(method: str, model: nn.Module, r: int) -> nn.Module:
    return wrap(model, MethodConfig(name=method, r=r), total_step=STEPS)


def _checkpointed_lora(model: nn.Module, r: int) -> nn.Module:
    cast(Callable[[bool], None], model.set_grad_checkpointing)(True)  # every timm model has it
    return _by_name("lora", model, r)


def _snella(model: nn.Module, r: int, **options: Any) -> nn.Module:
    # a sparsity that stays, so that every step does the same work; its shares move between the layers
    return get_peft_model(
        model, SnellaConfig(r=r, init_sparsity=SPARSITY, target_sparsity=SPARSITY, total_step=STEPS, **options)
    )


def _published(model: nn.Module, r: int, *, recompute: bool = False) -> nn.Module:
    return wrap_published(model, r=r, sparsity=SPARSITY, recompute=recompute)


def _snella_methods() -> dict[str, Method]:
    """Return snella at each level of `rematerialize`."""
    levels: dict[str, bool | str] = {"snella-off": False, "snella": True, "snella-mlp": "mlp"}
    return {
        name: Method(
            f"this package's tuner, rematerialize={level!r}",
            partial(_snella, rematerialize=level),
            SnellaAllocation,
            evaluated=name == "snella",
        )
        for name, level in levels.items()
    }


METHODS: dict[str, Method] = {
    "full": Method("AdamW on every parameter", partial(_by_name, "full")),
    "lora": Method("PEFT's LoRA", partial(_by_name, "lora")),
    "lora+gc": Method("PEFT's LoRA, timm's gradient checkpointing", _checkpointed_lora, evaluated=False),
    "dora": Method("PEFT's DoRA", partial(_by_name, "dora")),
    "adalora": Method("PEFT's AdaLoRA", partial(_by_name, "adalora"), AdaLoraAllocation),
    **_snella_methods(),
    "published": Method("the published formulas, plainly in PyTorch", _published),
    "published+gc": Method(
        "the same, each update recomputed in the backward pass", partial(_published, recompute=True), evaluated=False
    ),
}
