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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pkgutil import resolve_name
from typing import Any

from peft import PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from snella.config.method import METHODS, Method, MethodConfig
from snella.errors import UserError, short_reason
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
    plain = method_named(method).build is None
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
