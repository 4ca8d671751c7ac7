"""The tuning methods: how each wraps a model, what it saves, and how it is merged.

    snella, snell ................... this package's tuner
    lora, dora, adalora, shira, oft . PEFT's own
    bitfit, linear, full ............ train a part of the model itself

All but the last three adapt the same layers, by default the family's of `tuner.targets`; all train the head. A fused
qkv is three matrices for snella and snell, and one for the others.

    model = wrap("lora", model, MethodSettings(r=8))
    ...                                             # train
    save_adapter("lora", model, folder)
    model = load_adapter("lora", fresh_model, folder)
    plain = merged("lora", model)
"""

from __future__ import annotations

import difflib
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, OFTConfig, PeftConfig, PeftModel, ShiraConfig, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from snella.errors import UserError, short_reason
from snella.methods.budgets import AdaLoraAllocation, AfterStep, SnellaAllocation, left_ranks
from snella.tuner import SnellaConfig
from snella.tuner.targets import adaptable, candidates, default_targets, head_names

PLAIN_FILE = "model.safetensors"  # what bitfit, linear and full save
PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class MethodSettings:
    """What a user can set; a method reads what it knows.

    Args:
        r: rank of the update (adalora: the average that is left at the end; shira: as many entries as that rank has).
        heads, scale, relative_scale, start_scale, init_alpha, kernel, gate: as in `SnellaConfig`.
        init_sparsity, target_sparsity: of snella's schedule; snell keeps target_sparsity throughout.
        init_warmup, final_warmup: steps before the first and after the last change of budgets (snella, adalora).
        allocate_every: steps between two changes (snella, adalora).
        total_step: optimiser steps of the training (snella, adalora).
        target_modules: in PEFT's meaning; None: the family's.
        update_dropout: dropout on the update's input (snella, snell, lora, dora, adalora).
        update_drop_path: share of samples without the update while training (snella, snell).
        rematerialize: as in `SnellaConfig` (snella, snell).
    """

    r: int = 32
    heads: int = 2
    scale: float | None = None
    relative_scale: float = 8.0
    start_scale: float = 0.1
    init_alpha: float = 0.0
    kernel: str = "mixk"
    gate: str = "published"
    init_sparsity: float = 0.0
    target_sparsity: float = 0.7
    init_warmup: int = 0
    final_warmup: int = 0
    allocate_every: int = 1
    total_step: int | None = None
    target_modules: str | list[str] | None = None
    update_dropout: float = 0.0
    update_drop_path: float = 0.0
    rematerialize: bool | str = True


@dataclass(frozen=True)
class Method:
    """One method: what it does, in a line, and its PEFT configuration or the parameters that it trains."""

    summary: str
    config: Callable[[nn.Module, MethodSettings], PeftConfig] | None = None
    trains: Callable[[str], bool] | None = None  # by a parameter's name; the head trains besides


def wrap(method: str, model: nn.Module, settings: MethodSettings) -> nn.Module:
    """Make the model trainable by the method: everything else is frozen. The model itself is changed.

    Raises:
        UserError: unknown method; a layer that the method cannot adapt, with the methods that can; settings that it
            cannot have; wrong target_modules; no head where only the head would train.
    """
    row = _row(method)
    if row.config is not None:
        config = row.config(model, settings)
        with _expected_warnings():
            return get_peft_model(model, config)  # type: ignore[arg-type]
    _train_part(method, model)
    return model


def with_convolutions(model: nn.Module) -> str:
    """The default targets of a model, and its convolutions that can be adapted but the first and the last.

    In a diffusion model's UNet these are most of its weights; a transformer's only one, of its patches, is its first.
    """
    layers = [name for name, part in model.named_modules() if isinstance(part, nn.Conv2d) and adaptable(part)]
    inner = [name for name in layers if name not in ("conv_in", "conv_out", "pos_embed.proj")]
    return "|".join([f"(?:{default_targets(model)})", *map(re.escape, inner)])


def after_step(method: str, model: nn.Module) -> AfterStep | None:
    """The hook of a method that moves a budget between layers, for a model that `wrap` gave; None for the others."""
    hooks: dict[str, Callable[[Any], AfterStep]] = {"snella": SnellaAllocation, "adalora": AdaLoraAllocation}
    return hooks[method](model) if method in hooks else None


def save_adapter(method: str, model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write what was trained into the folder, as PEFT does or as `model.safetensors`.

    That file has the trainable parameters and the buffers beside them (batch-norm statistics that moved).
    """
    if isinstance(model, PeftModel):
        with left_ranks(model) if method == "adalora" else nullcontext():
            model.save_pretrained(os.fspath(folder), save_embedding_layers=False)  # "auto" would ask the hub
        return
    os.makedirs(folder, exist_ok=True)
    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in _trained_state(model).items()}
    save_file(state, os.path.join(folder, PLAIN_FILE), metadata={"format": "pt", "method": method})


def load_adapter(method: str, base: nn.Module, folder: str | os.PathLike[str]) -> nn.Module:
    """Put a saved adapter onto a freshly built model, which is changed.

    Raises:
        UserError: nothing saved there, or it was saved from another model.
    """
    plain = _row(method).config is None
    for file in (PLAIN_FILE,) if plain else PEFT_FILES:  # PEFT would ask the hub for what is missing
        if not os.path.isfile(os.path.join(folder, file)):
            raise UserError(f"{folder} has no {file}: no adapter of {method} was saved there")
    try:
        if not plain:
            with _expected_warnings():
                return PeftModel.from_pretrained(base, os.fspath(folder))  # type: ignore[arg-type]
        _train_part(method, base)
        state, expected = load_file(os.path.join(folder, PLAIN_FILE)), _trained_state(base)
        if odd := sorted(state.keys() ^ expected.keys()):
            raise ValueError(f"{len(odd)} names differ, such as {odd[0]}")
        base.load_state_dict(state, strict=False)
        return base
    except (ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = short_reason(error)
        raise UserError(f"the adapter in {folder} does not fit this {type(base).__name__} ({reason})") from error


def merged(method: str, model: nn.Module) -> nn.Module:
    """The plain model with the update in its weights, without any part of PEFT. The wrapped model is used up."""
    if _row(method).config is None:
        return model
    return model.merge_and_unload()  # type: ignore[operator]


@contextmanager
def _expected_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Invalid `oft_block_size`"
        )  # the next divisor is taken, layer by layer
        warnings.filterwarnings("ignore", message="The following rank_pattern keys")  # AdaLoRA's taken for LoRA's
        yield


# ---- configurations


def _snella(model: nn.Module, settings: MethodSettings) -> PeftConfig:
    return SnellaConfig(**asdict(settings))


def _snell(model: nn.Module, settings: MethodSettings) -> PeftConfig:
    sparsity = settings.target_sparsity
    dense = sparsity == 0 and settings.gate == "published"  # the published code selects nothing then
    gate = "none" if dense else settings.gate
    return SnellaConfig(**asdict(replace(settings, kernel="pwl", gate=gate, init_sparsity=sparsity, total_step=None)))


def _lora(model: nn.Module, settings: MethodSettings) -> PeftConfig:
    return _lora_config("lora", model, settings)


def _dora(model: nn.Module, settings: MethodSettings) -> PeftConfig:
    return _lora_config("dora", model, settings)


def _lora_config(method: str, model: nn.Module, settings: MethodSettings) -> PeftConfig:
    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.r,  # the update is B A, not scaled
        lora_dropout=settings.update_dropout,
        use_dora=method == "dora",
        **_layers(method, model, settings),
    )


def _adalora(model: nn.Module, settings: MethodSettings) -> PeftConfig:
    total, start = settings.total_step, settings.init_warmup
    if total is None:
        raise UserError("adalora needs total_step, the optimiser steps of the whole training")
    end = settings.final_warmup or total // 10  # ranks fall until then, and what is left has to be trained
    if total - end < max(start + 1, 2):
        raise UserError(f"adalora: {total} steps leave none between the warm-ups of {start} and {end}; train longer")
    return AdaLoraConfig(
        target_r=settings.r,
        init_r=settings.r + (settings.r + 1) // 2,  # half as much again, as PEFT's defaults, 12 and 8
        lora_alpha=settings.r,
        lora_dropout=settings.update_dropout,
        tinit=start,
        tfinal=end,
        deltaT=settings.allocate_every,
        total_step=total,
        **_layers("adalora", model, settings),
    )


def _shira(model: nn.Module, settings: MethodSettings) -> PeftConfig:
    torch.sparse.check_sparse_tensor_invariants.disable()  # as by default, but then torch warns
    return ShiraConfig(r=settings.r, **_layers("shira", model, settings))


def _oft(model: nn.Module, settings: MethodSettings) -> PeftConfig:
    return OFTConfig(**_layers("oft", model, settings))  # PEFT's own block size, 32: a rank has no meaning here


METHODS: dict[str, Method] = {
    "snella": Method("kernelised sparse update whose budget moves to the layers that matter", _snella),
    "snell": Method("kernelised sparse update, equally sparse everywhere", _snell),
    "lora": Method("low-rank update", _lora),
    "dora": Method("low-rank update of a weight's direction, and its magnitude", _dora),
    "adalora": Method("low-rank update whose ranks move to the layers that matter", _adalora),
    "shira": Method("sparse update at places drawn once; linear layers only", _shira),
    "oft": Method("rotation of a layer's input; no spatial convolutions", _oft),
    "bitfit": Method("the biases and the head", trains=lambda name: name.endswith("bias")),
    "linear": Method("the head alone", trains=lambda name: False),
    "full": Method("everything", trains=lambda name: True),
}


def _row(method: str) -> Method:
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"method {method!r} is unknown; {hint}There are {', '.join(METHODS)}")
    return METHODS[method]


# ---- which layers, and which the method cannot adapt


def _layers(method: str, model: nn.Module, settings: MethodSettings) -> dict[str, Any]:
    """The layers to adapt and the modules to train, as PEFT's configurations take them."""
    heads = head_names(model)
    asked = default_targets(model) if settings.target_modules is None else settings.target_modules
    if asked == "all-linear":  # PEFT's own shorthand would take the head of a timm model
        asked = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    layers: dict[str, Any] = {"target_modules": asked, "modules_to_save": heads or None}
    rule = LoraConfig(**layers)  # matches no head
    found = {name: part for name, part in model.named_modules() if check_target_module_exists(rule, name)}
    passed = [name for name, part in found.items() if isinstance(part, nn.Conv2d) and not adaptable(part)]
    if isinstance(asked, str) and passed:  # as snella's tuner does: a pattern passes over those
        layers["target_modules"] = f"(?!(?:{'|'.join(map(re.escape, passed))})$)(?:{asked})"
        found = {name: part for name, part in found.items() if name not in passed}
    if not found:
        raise UserError(
            f"target_modules={settings.target_modules!r} matches no layer of {type(model).__name__} that can be "
            f"adapted; choose from: {', '.join(candidates(model))}"
        )
    for name in found:
        if reason := _refusal(method, model, name, settings.r):
            able = [m for m in METHODS if not any(_refusal(m, model, other, settings.r) for other in found)]
            raise UserError(f"{method} cannot adapt {name}: {reason}; methods that can: {', '.join(able)}")
    return layers


def _refusal(method: str, model: nn.Module, name: str, r: int) -> str | None:
    """Why the method, as PEFT 0.20 and 0.21 have it, cannot adapt this layer; None if it can."""
    if METHODS[method].config is None:
        return None
    layer: Any = model.get_submodule(name)
    if not adaptable(layer):
        groups = f" in {layer.groups} groups" if isinstance(layer, nn.Conv2d) else ""
        return f"it is a {type(layer).__name__}{groups}, and only plain Linear and Conv2d have one matrix to adapt"
    if method == "shira":
        if isinstance(layer, nn.Conv2d):
            return "it is a Conv2d, and PEFT has SHiRA for Linear only"
        m, n = layer.out_features, layer.in_features
        if r * (m + n) > m * n:
            return f"r={r} asks for more entries than its {m} x {n} weight has; use r={m * n // (m + n)} or less"
    if method == "oft":
        if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
            return "PEFT's OFT adds up overlapping patches, which changes the model before any training"
        if isinstance(layer, nn.Linear) and _channels_last(model, name):
            return "its input has the shape (b, h, w, c), which PEFT's OFT takes for (b, c, h, w)"
    return None


def _channels_last(model: nn.Module, name: str) -> bool:
    """Whether a Linear stands among convolutions, as in ConvNeXt's blocks, and so works on images."""
    owners = [name.rsplit(".", depth)[0] for depth in (1, 2) if name.count(".") >= depth]
    return any(isinstance(part, nn.Conv2d) for owner in owners for part in model.get_submodule(owner).children())


# ---- training a part of the model itself


def _train_part(method: str, model: nn.Module) -> None:
    trains, heads = METHODS[method].trains, tuple(f"{name}." for name in head_names(model))
    assert trains is not None
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains(name) or name.startswith(heads))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"{type(model).__name__} has nothing for {method} to train: no classifier head was found")


def _trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters, and the buffers of the modules that have one: a frozen batch norm's do not move."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    moving = {name.rpartition(".")[0] for name, parameter in parameters.items() if parameter.requires_grad}
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if (parameters[name].requires_grad if name in parameters else name.rpartition(".")[0] in moving)
    }
