"""The table of tuning methods: how each one wraps a model, what it saves, and how it is merged.

All but `full`, `linear` and `bitfit` are PEFT tuners, on the same layers as SNELLA's defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from snella.errors import UserError
from snella.tuner import SnellaConfig
from snella.tuner.targets import default_targets, head_names

WEIGHTS = "model.safetensors"  # what a method without an adapter has trained


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """What the methods can be told; each takes what it knows. Warm-ups, intervals and total_step are in steps."""

    r: int = 32
    heads: int = 2
    scale: float = 0.1
    kernel: str = "mixk"
    gate: str = "published"
    init_sparsity: float = 0.0
    target_sparsity: float = 0.7
    init_warmup: int = 0
    final_warmup: int = 0
    allocate_every: int = 1
    total_step: int | None = None
    target_modules: list[str] | str | None = None
    update_dropout: float = 0.0
    update_drop_path: float = 0.0


class AfterStep(Protocol):
    """What a method does after each optimiser step, gradients in place; its state goes into checkpoints."""

    def __call__(self, step: int) -> dict[str, Any] | None: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


def _snella(settings: MethodSettings, targets: dict[str, Any], **changes: Any) -> peft.PeftConfig:
    names = ("r", "heads", "scale", "kernel", "gate", "init_sparsity", "target_sparsity", "init_warmup")
    names += ("final_warmup", "allocate_every", "total_step", "update_dropout", "update_drop_path")
    return SnellaConfig(**({name: getattr(settings, name) for name in names} | changes | targets))


def _snell(settings: MethodSettings, targets: dict[str, Any]) -> peft.PeftConfig:
    return _snella(settings, targets, kernel="pwl", init_sparsity=settings.target_sparsity)


def _lora(settings: MethodSettings, targets: dict[str, Any]) -> peft.PeftConfig:
    return peft.LoraConfig(r=settings.r, lora_alpha=settings.r, **targets)


def _dora(settings: MethodSettings, targets: dict[str, Any]) -> peft.PeftConfig:
    return peft.LoraConfig(r=settings.r, lora_alpha=settings.r, use_dora=True, **targets)


def _adalora(settings: MethodSettings, targets: dict[str, Any]) -> peft.PeftConfig:
    """Starts at 1.5 r and ends at r on average, as in its paper; a tenth of the steps before, a quarter after."""
    total = settings.total_step
    if not total or total < 4:
        raise UserError(f"adalora needs at least 4 steps, not {total}; train for more epochs")
    warm_up, final = total // 10, total // 4
    return peft.AdaLoraConfig(
        init_r=max(3 * settings.r // 2, settings.r + 1),
        target_r=settings.r,
        lora_alpha=settings.r,
        tinit=warm_up,
        tfinal=final,
        deltaT=max(min(settings.allocate_every, (total - warm_up - final) // 4), 1),
        total_step=total,
        **targets,
    )


def _shira(settings: MethodSettings, targets: dict[str, Any]) -> peft.PeftConfig:
    return peft.ShiraConfig(r=settings.r, random_seed=0, **targets)


def _oft(settings: MethodSettings, targets: dict[str, Any]) -> peft.PeftConfig:
    return peft.OFTConfig(r=0, oft_block_size=settings.r, **targets)


@dataclass(frozen=True)
class Method:
    """A tuning method: PEFT's config for it, or what it trains of the model itself."""

    config: Callable[[MethodSettings, dict[str, Any]], peft.PeftConfig] | None = None
    trains: Callable[[str], bool] | None = None  # by parameter name, besides the head
    convolutions: bool = True


METHODS: dict[str, Method] = {
    "snella": Method(_snella),
    "snell": Method(_snell),
    "lora": Method(_lora),
    "dora": Method(_dora),
    "adalora": Method(_adalora, convolutions=False),
    "shira": Method(_shira, convolutions=False),
    "oft": Method(_oft),
    "bitfit": Method(trains=lambda name: name.endswith("bias")),
    "linear": Method(trains=lambda name: False),
    "full": Method(trains=lambda name: True),
}


def wrap(method: str, model: nn.Module, settings: MethodSettings) -> nn.Module:
    """Make the model one that the method trains: its parameters and the head need gradients, nothing else.

    Raises:
        UserError: a layer or a rank that the method does not support; nothing was trained.
    """
    chosen, heads = METHODS[method], head_names(model)
    if chosen.config is None:
        assert chosen.trains is not None
        for name, parameter in model.named_parameters():
            in_head = any(name.startswith(f"{head}.") for head in heads)
            parameter.requires_grad_(in_head or chosen.trains(name))
        return model
    targets = settings.target_modules or default_targets(model)
    if not chosen.convolutions:
        _refuse_convolutions(method, model, targets)
    config = chosen.config(settings, {"target_modules": targets, "modules_to_save": heads})
    try:
        return peft.get_peft_model(model, config)
    except UserError:
        raise
    except (ValueError, NotImplementedError, TypeError) as error:
        raise UserError(f"{method} cannot tune this backbone: {' '.join(str(error).split())}") from error


def _refuse_convolutions(method: str, model: nn.Module, targets: list[str] | str) -> None:
    from peft.tuners.tuners_utils import check_target_module_exists

    matcher = peft.LoraConfig(target_modules=targets)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and check_target_module_exists(matcher, name):
            able = ", ".join(other for other, entry in METHODS.items() if entry.convolutions)
            raise UserError(f"{method} does not support convolutions, and {name} is one; choose from {able}")


class _Snella:
    def __init__(self, tuner: Any) -> None:
        self.tuner = tuner

    def __call__(self, step: int) -> dict[str, Any] | None:
        return self.tuner.update_and_allocate(step)

    def state_dict(self) -> dict[str, Tensor]:
        return self.tuner.allocator_state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.tuner.load_allocator_state_dict(state)


class _AdaLora:
    """PEFT's own allocator; its averages and the final ranks are plain attributes there."""

    averages = ("ipt", "exp_avg_ipt", "exp_avg_unc")

    def __init__(self, tuner: Any) -> None:
        self.tuner = tuner

    def __call__(self, step: int) -> None:
        self.tuner.update_and_allocate(step)

    def state_dict(self) -> dict[str, Tensor]:
        allocator = self.tuner.rankallocator
        state = {f"{kind}:{name}": t for kind in self.averages for name, t in getattr(allocator, kind).items()}
        pattern = self.tuner.peft_config[self.tuner.trainable_adapter_name].rank_pattern or {}
        return state | {f"rank_pattern:{name}": torch.tensor(kept) for name, kept in pattern.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        allocator = self.tuner.rankallocator
        for kind in self.averages:
            prefix = f"{kind}:"
            saved = {key.removeprefix(prefix): t.clone() for key, t in state.items() if key.startswith(prefix)}
            setattr(allocator, kind, saved)
        prefix = "rank_pattern:"
        pattern = {key.removeprefix(prefix): t.tolist() for key, t in state.items() if key.startswith(prefix)}
        if pattern:
            self.tuner.peft_config[self.tuner.trainable_adapter_name].rank_pattern = pattern


def after_step(method: str, model: Any) -> AfterStep | None:
    """What is to be called after every optimiser step, before the gradients are cleared; None for most."""
    if method in ("snella", "snell"):
        return _Snella(model.base_model)
    if method == "adalora":
        return _AdaLora(model.base_model)
    return None


def save_adapter(method: str, model: Any, folder: Path) -> None:
    """Write what was trained to a folder: PEFT's files, or model.safetensors with the buffers."""
    folder.mkdir(parents=True, exist_ok=True)
    if METHODS[method].config is not None:
        model.save_pretrained(str(folder))
        return
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    trained |= {name for name, _ in model.named_buffers()}
    state = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items() if name in trained}
    save_file(state, folder / WEIGHTS)


def load_adapter(method: str, base: nn.Module, folder: Path) -> nn.Module:
    """The tuned model of a fresh base and what `save_adapter` wrote."""
    if METHODS[method].config is not None:
        return peft.PeftModel.from_pretrained(base, str(folder))  # pyright: ignore[reportArgumentType]
    base.load_state_dict(load_file(folder / WEIGHTS), strict=False)
    return base


def merged(method: str, model: Any) -> nn.Module:
    """The plain model with the updates in its weights."""
    return model.merge_and_unload() if METHODS[method].config is not None else model
