"""The methods that are compared: each makes a timm model trainable in its way, on the same layers and the head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from peft import get_peft_model
from torch import nn

from benchmarks.published import wrap_published
from snella.config.method import MethodConfig
from snella.methods.adapters import wrap
from snella.methods.budgets import AdaLoraAllocation, SnellaAllocation
from snella.models.checkpointing import blocks_of, checkpoint_blocks
from snella.training.interfaces import AfterStep
from snella.tuner import SnellaConfig, set_base_precision

SPARSITY = 0.7
SAMPLED = 0.25  # share of the tokens
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


def _snella(model: nn.Module, r: int, **options: Any) -> nn.Module:
    # a sparsity that stays, so that every step does the same work; its shares move between the layers
    return get_peft_model(
        model, SnellaConfig(r=r, init_sparsity=SPARSITY, target_sparsity=SPARSITY, total_step=STEPS, **options)
    )


def _published(model: nn.Module, r: int, *, recompute: bool = False) -> nn.Module:
    return wrap_published(model, r=r, sparsity=SPARSITY, recompute=recompute)


def _checkpointed(wrap_model: Callable[[nn.Module, int], nn.Module], share: float = 1.0) -> Callable[..., nn.Module]:
    """Return what wraps a model whose blocks, or the first share of them, are checkpointed."""

    def wrapped(model: nn.Module, r: int) -> nn.Module:
        checkpoint_blocks(model, round(share * len(blocks_of(model))))
        return wrap_model(model, r)

    return wrapped


def _int8(wrap_model: Callable[[nn.Module, int], nn.Module]) -> Callable[[nn.Module, int], nn.Module]:
    """Return what wraps a model whose frozen weights are kept as int8."""

    def wrapped(model: nn.Module, r: int) -> nn.Module:
        set_base_precision(model, "int8")
        return wrap_model(model, r)

    return wrapped


def _checkpointed_method(name: str) -> Method:
    wrapped = _checkpointed(partial(_by_name, name))
    return Method(f"{METHODS_OF_PEFT[name]}, gradient checkpointing", wrapped, evaluated=False)


def _snella_methods() -> dict[str, Method]:
    """Return snella at each level of `rematerialize`, with checkpointing, and with a quarter of the tokens sampled."""

    def method(summary: str, wrapped: Callable[[nn.Module, int], nn.Module], evaluated: bool = False) -> Method:
        return Method(f"this package's tuner, {summary}", wrapped, SnellaAllocation, evaluated)

    off, inputs, mlp = (partial(_snella, rematerialize=level) for level in (False, True, "mlp"))
    sampled = partial(_snella, rematerialize=True, sample_tokens=SAMPLED)
    return {
        "snella-off": method("rematerialize=False", off),
        "snella": method("rematerialize=True", inputs, evaluated=True),
        "snella-mlp": method('rematerialize="mlp"', mlp),
        "snella-mlp-gc": method('rematerialize="mlp", half of the blocks checkpointed', _checkpointed(mlp, 0.5)),
        "snella-gc": method("gradient checkpointing", _checkpointed(inputs)),
        "snella-gc-int8": method("gradient checkpointing, frozen weights as int8", _int8(_checkpointed(inputs))),
        "snella-sampled": method(f"sample_tokens={SAMPLED}", sampled),
        "snella-gc-sampled": method(f"sample_tokens={SAMPLED}, gradient checkpointing", _checkpointed(sampled)),
    }


METHODS_OF_PEFT = {"lora": "PEFT's LoRA", "dora": "PEFT's DoRA"}

METHODS: dict[str, Method] = {
    "full": Method("AdamW on every parameter", partial(_by_name, "full")),
    **{name: Method(summary, partial(_by_name, name)) for name, summary in METHODS_OF_PEFT.items()},
    **{f"{name}-gc": _checkpointed_method(name) for name in METHODS_OF_PEFT},
    "lora-gc-int8": Method(
        "PEFT's LoRA, gradient checkpointing, frozen weights as int8",
        _int8(_checkpointed(partial(_by_name, "lora"))),
        evaluated=False,
    ),
    "adalora": Method("PEFT's AdaLoRA", partial(_by_name, "adalora"), AdaLoraAllocation),
    **_snella_methods(),
    "published": Method("the published formulas, plainly in PyTorch", _published),
    "published-gc": Method(
        "the same, each update recomputed in the backward pass", partial(_published, recompute=True), evaluated=False
    ),
}
