"""The tuning methods: how each wraps a model, what it saves, and how it is merged.

    snella, snell ................... this package's tuner
    lora, dora, adalora, shira, oft . PEFT's own
    bitfit, linear, full ............ train a part of the model itself

All but the last three adapt the same layers, by default the family's of `tuner.targets`; all train the head. A fused
qkv is three matrices for snella and snell, and one for the others.

    model = wrap(model, MethodConfig(name="lora", r=8))
    ...                                             # train
    save_adapter("lora", model, folder)
    model = load_adapter("lora", fresh_model, folder)
    plain = merged("lora", model)
"""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_type_hints

from peft import PeftConfig, PeftModel, PeftType, get_peft_model, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from snella.config.method import METHODS, Method, MethodConfig
from snella.errors import UserError, short_reason
from snella.files import check_checksums
from snella.json_files import Record, read_json
from snella.methods.budgets import left_ranks
from snella.training.interfaces import AfterStep
from snella.tuner.targets import head_names

PLAIN_FILE = "model.safetensors"  # what bitfit, linear and full save
PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")


def wrap(model: nn.Module, settings: MethodConfig, *, total_step: int | None = None) -> nn.Module:
    """Make the model trainable by the method of the settings: everything else is frozen. The model itself is changed.

    Args:
        settings: the method's name, and what it knows of the others; `allocate_every` is 1 where it is None.
        total_step: optimiser steps of the training (snella, adalora).

    Raises:
        UserError: unknown method; a layer that the method cannot adapt, with the methods that can; settings that it
            cannot have; wrong target_modules; no head where only the head would train.
    """
    build = method_named(settings.name).build
    if build is None:
        _train_part(settings.name, model)
        return model
    config = _function(build)(model, settings, total_step)
    with _expected_warnings():
        return get_peft_model(model, config)  # type: ignore[arg-type]


def method_named(name: str) -> Method:
    """Return the row of a method. Raises UserError, with the nearest name, where there is none."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"method {name!r} is unknown; {hint}There are {', '.join(METHODS)}")
    return METHODS[name]


def _function(named: str | Callable[..., Any]) -> Callable[..., Any]:
    return resolve_name(named) if isinstance(named, str) else named


def after_step(method: str, model: nn.Module) -> AfterStep | None:
    """Return the hook of a method whose budget moves, for a model that `wrap` gave; None for the others."""
    made_by = method_named(method).after_step
    return None if made_by is None else _function(made_by)(model)


def save_adapter(method: str, model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write what was trained into the folder, as PEFT does or as `model.safetensors`.

    That file has the trainable parameters and the buffers beside them (batch-norm statistics that moved).
    """
    if isinstance(model, PeftModel):
        with left_ranks(model) if method == "adalora" else nullcontext(), _expected_warnings():
            model.save_pretrained(os.fspath(folder), save_embedding_layers=False)  # "auto" would ask the hub
        return
    os.makedirs(folder, exist_ok=True)
    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in _trained_state(model).items()}
    save_file(state, os.path.join(folder, PLAIN_FILE), metadata={"format": "pt", "method": method})


def load_adapter(method: str, base: nn.Module, folder: str | os.PathLike[str]) -> nn.Module:
    """Put a saved adapter onto a freshly built model, which is changed.

    Raises:
        UserError: nothing saved there, it was saved from another model or by another method, tensors are missing, too
            many or not finite, or the folder's files do not match its checksums.
    """
    plain, folder = method_named(method).build is None, Path(folder)
    for file in (PLAIN_FILE,) if plain else PEFT_FILES:  # PEFT would ask the hub for what is missing
        if not (folder / file).is_file():
            raise UserError(f"{folder} has no {file}: no adapter of {method} was saved there")
    file = folder / (PLAIN_FILE if plain else PEFT_FILES[1])
    check_checksums(folder, remedy="restore it, or train again")
    state = read_tensors(file)
    if not plain:
        _check_config(folder / PEFT_FILES[0])
    try:
        if not plain:
            return _with_peft(base, folder, state)
        _train_part(method, base)
        _check_names(file, state, _trained_state(base))
        base.load_state_dict(state, strict=False)
        return base
    except UserError:
        raise
    except Exception as error:  # whatever PEFT makes of a configuration that was altered
        reason = short_reason(error)
        raise UserError(f"the adapter in {folder} does not fit this {type(base).__name__} ({reason})") from error


def _with_peft(base: nn.Module, folder: Path, state: Mapping[str, Tensor]) -> PeftModel:
    """Do as `PeftModel.from_pretrained` does, which says nothing of tensors that are missing or too many."""
    config = PeftConfig.from_pretrained(os.fspath(folder))
    config.inference_mode = True
    with _expected_warnings():
        model = PeftModel(base, config)  # type: ignore[arg-type]
        _check_names(folder / PEFT_FILES[1], state, get_peft_model_state_dict(model, save_embedding_layers=False))
        model.load_adapter(os.fspath(folder), str(model.active_adapter))
    return model


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file. Raises UserError, which names it, where it is damaged or not all are finite."""
    try:
        state = load_file(file)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise UserError(
            f"{file} is damaged or incomplete ({short_reason(error)}); restore it, or train again"
        ) from None
    if broken := next((name for name, tensor in state.items() if not is_finite(tensor)), None):
        raise UserError(f"{file}: {broken} has values that are not finite; restore it, or train again")
    return state


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor has neither NaN nor infinity."""
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _check_names(file: Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse a file that lacks tensors or has others. Raises ValueError, which names the first of them."""
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    for names, what in ((missing, "lacks"), (unknown, "has, without a place in the model,")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"{file.name} {what} {names[0]}{more}")


def _check_config(file: Path) -> None:
    """Refuse an adapter_config.json whose values are of another type, or of no method of PEFT. Raises UserError."""
    remedy = "restore it, or train again"
    kind = str(read_json(file, Record({"peft_type": str}), remedy=remedy)["peft_type"])
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise UserError(f"{file}: peft_type is {kind}, and should be a method of PEFT; {remedy}")
    hints = get_type_hints(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)])
    known = {name: hint for name, hint in hints.items() if name not in ("peft_type", "task_type")}
    read_json(file, Record({}, known), remedy=remedy)


def merged(method: str, model: nn.Module) -> nn.Module:
    """Return the plain model with the update in its weights, without any part of PEFT. The wrapped model is used up."""
    if method_named(method).build is None:
        return model
    return model.merge_and_unload()  # type: ignore[operator]


@contextmanager
def _expected_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Invalid `oft_block_size`"
        )  # the next divisor is taken, layer by layer
        warnings.filterwarnings("ignore", message="The following rank_pattern keys")  # AdaLoRA's taken for LoRA's
        warnings.filterwarnings("ignore", message="the adapter keeps")  # a training says it in its own words
        yield


# ---- training a part of the model itself


def _train_part(method: str, model: nn.Module) -> None:
    trains, heads = METHODS[method].trains, tuple(f"{name}." for name in head_names(model))
    assert trains is not None
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains(name) or name.startswith(heads))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"{type(model).__name__} has nothing for {method} to train: no classifier head was found")


def _trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Return trainable parameters, and the buffers of modules that have one: a frozen batch norm's do not move."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    moving = {name.rpartition(".")[0] for name, parameter in parameters.items() if parameter.requires_grad}
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if (parameters[name].requires_grad if name in parameters else name.rpartition(".")[0] in moving)
    }
