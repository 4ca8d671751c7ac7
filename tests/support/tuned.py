"""Models with a SNELLA adapter, and typed ways to what is in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict, cast

import peft
from torch import Tensor, nn

from snella import SnellaConfig, SnellaModel
from snella.delta import Gate, Kernel
from snella.tuner import SnellaLayer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Settings(TypedDict, total=False):
    """Those of SnellaConfig that tests set."""

    r: int
    heads: int
    scale: float | None
    relative_scale: float
    start_scale: float
    init_alpha: float
    kernel: Kernel
    gate: Gate
    init_sparsity: float
    target_sparsity: float
    total_step: int | None
    target_modules: list[str] | set[str] | str | None
    fused_splits: dict[str, int]
    modules_to_save: list[str] | None
    update_dropout: float
    update_drop_path: float
    sample_tokens: float | None
    rematerialize: bool | Literal["mlp"]
    start: Literal["drawn", "zero"]


# an update that is far from zero, so that tests can see it
TRAINED: Settings = {"r": 8, "gate": "hard", "start_scale": 5.0, "init_sparsity": 0.5}


def merged_settings(defaults: Settings, changes: Settings) -> Settings:
    return cast(Settings, {**defaults, **changes})


def tuned(base: nn.Module, **changes: Unpack[Settings]) -> peft.PeftModel:
    """The base with an adapter of the settings TRAINED and the changes."""
    model = peft.get_peft_model(base, SnellaConfig(**merged_settings(TRAINED, changes)))
    assert isinstance(model, peft.PeftModel)
    return model


def tuner_of(model: nn.Module) -> SnellaModel:
    tuner = model.base_model
    assert isinstance(tuner, SnellaModel)
    return tuner


def layers(model: nn.Module) -> list[SnellaLayer]:
    return [module for module in model.modules() if isinstance(module, SnellaLayer)]


def layer_named(model: nn.Module, name: str) -> SnellaLayer:
    (layer,) = (layer for layer in layers(model) if layer.name == name)
    return layer


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if "snella_" in name}


def budgets(model: nn.Module) -> dict[str, list[int]]:
    """The budgets of adapter `default` by layer."""
    return {layer.name: layer.kept("default").tolist() for layer in layers(model)}


def grad_of(tensor: Tensor | None) -> Tensor:
    """The gradient of a tensor that has one."""
    assert tensor is not None
    assert tensor.grad is not None
    return tensor.grad
