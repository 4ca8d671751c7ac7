"""A trained adapter in a pipeline of diffusers, for a user's own code.

    adapter ─┬─ PEFT's ─── layers injected ─ merged one by one in fp32 ─ base layers again ──┐
             └─ others ─── tensors by name ──────────────────────────────────────────────────┴─ W0 + scale (W - W0)

Weights are changed in place and what they replace is kept on the CPU, so that the pipeline is as fast as before, needs
no more memory on its device, and can be compiled, moved, cast or saved as ever.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from snella.errors import UserError, short_reason
from snella.ops.rematerialize import unwatch

ADAPTER = "adapter"  # in a run's folder
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # PEFT's names
MODEL_FILE = "model.safetensors"  # what the methods full, linear and bitfit save
KEY_PREFIX = "base_model.model."  # of PEFT's names in WEIGHTS
MARK = "_snella_loaded"  # attribute of a network that has an adapter loaded


@dataclass(frozen=True)
class _Loaded:
    """The adapter in force in a network, and the tensors that it replaced, by name, on the CPU."""

    folder: Path
    replaced: dict[str, Tensor]


def load_into_pipeline(pipe: Any, run_or_adapter: str | os.PathLike[str], scale: float = 1.0) -> None:
    """Let a pipeline of diffusers generate with a trained adapter; its own network is changed in place.

    Example:
        >>> pipe = diffusers.StableDiffusionPipeline.from_pretrained("...")  # doctest: +SKIP
        >>> snella.load_into_pipeline(pipe, "runs/cats", scale=0.8)  # doctest: +SKIP
        >>> image = pipe("a photo of a cat").images[0]  # doctest: +SKIP

    Args:
        pipe: has its network as `unet` or `transformer`, of any floating dtype and on any device, which are kept.
        run_or_adapter: a run's folder, its `adapter` folder, or the folder of any adapter that PEFT saved.
        scale: W0 + scale (W - W0) is in force, for every method and for modules trained as a whole; 1 is as trained.

    Raises:
        UserError: no adapter there, one that does not fit the network, one is loaded already, a pipeline without such
            a network, or weights that cannot be changed (quantised, or offloaded one by one).
    """
    network, folder = _network(pipe), _adapter_folder(Path(run_or_adapter))
    if not math.isfinite(scale):
        raise UserError(f"scale={scale} is not a finite number")
    if MARK in vars(network):
        other = vars(network)[MARK].folder
        raise UserError(f"{other} is loaded already; unload it first: snella.unload_from_pipeline(pipe)")
    with _modes_restored(network):
        load = _load_peft if (folder / CONFIG).is_file() else _load_tensors
        replaced = load(network, folder, scale)
    setattr(network, MARK, _Loaded(folder, replaced))


def unload_from_pipeline(pipe: Any) -> None:
    """Give the pipeline's network back the weights that `load_into_pipeline` replaced, to the bit.

    Raises:
        UserError: nothing is loaded.
    """
    network = _network(pipe)
    if MARK not in vars(network):
        raise UserError(f"no adapter is loaded into this {type(pipe).__name__}; snella.load_into_pipeline loads one")
    _restore(network, vars(network)[MARK].replaced)
    delattr(network, MARK)


def _network(pipe: Any) -> nn.Module:
    for name in ("unet", "transformer"):
        if isinstance(network := getattr(pipe, name, None), nn.Module):
            return getattr(network, "_orig_mod", network)  # what torch.compile has wrapped
    raise UserError(f"{type(pipe).__name__} has neither a unet nor a transformer that an adapter could go into")


def _adapter_folder(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"{path} does not exist; give a run folder of snella train, or an adapter's folder")
    folder = path / ADAPTER if (path / ADAPTER).is_dir() else path
    if (folder / MODEL_FILE).is_file() or ((folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()):
        return folder
    raise UserError(
        f"{path} holds no adapter: neither {CONFIG} with {WEIGHTS} nor {MODEL_FILE}; give a finished run's folder"
    )


# ---- the two kinds of adapters


def _load_tensors(network: nn.Module, folder: Path, scale: float) -> dict[str, Tensor]:
    """Load the tensors that a method without an adapter trained, and return those that they replaced, by name."""
    try:
        state = load_file(folder / MODEL_FILE)
    except (OSError, SafetensorError) as error:
        raise _damaged(folder / MODEL_FILE, error) from error
    own = network.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if name not in own or own[name].shape != tensor.shape:
            raise _misfit(network, folder, name)
    replaced = _copy_to_cpu(network, state)
    for name, tensor in state.items():
        _blend(own[name], tensor, scale)
    return replaced


def _load_peft(network: nn.Module, folder: Path, scale: float) -> dict[str, Tensor]:
    """Load an adapter of PEFT's, and return the tensors that it replaced, by name.

    Its layers are in the network only while this runs.
    """
    try:
        config = PeftConfig.from_pretrained(os.fspath(folder))
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            keys = list(file.keys())
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from error
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(config.peft_type, "")  # type: ignore[call-overload]
    layers = _layers_of(network, folder, keys, prefix)
    replaced = _copy_to_cpu(
        network, (f"{layer}.{name}" for layer in layers for name in _own_tensors(network.get_submodule(layer)))
    )
    try:
        _inject(network, folder)
        if missing := [name for name, _ in _injected(network, BaseTunerLayer) if name not in layers]:
            raise _misfit(network, folder, missing[0])
        _merge(network, scale)
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        _restore(network, replaced)
        if isinstance(error, UserError):
            raise
        mismatch = re.search(rf"size mismatch for (?:{re.escape(KEY_PREFIX)})?([\w.]+)", str(error))
        raise _misfit(network, folder, _layer_name(mismatch[1], prefix) if mismatch else None, error) from error
    except BaseException:
        _restore(network, replaced)
        raise
    return replaced


def _inject(network: nn.Module, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what does not fit is an error here, and told in one line
        PeftModel.from_pretrained(network, os.fspath(folder))  # type: ignore[arg-type]


def _layers_of(network: nn.Module, folder: Path, keys: list[str], prefix: str) -> list[str]:
    """Return the names of the network's modules that the file's tensors are for.

    Raises:
        UserError: the network has none for one of them.
    """
    modules = dict(network.named_modules())
    layers: dict[str, None] = {}
    for key in keys:
        if not key.startswith(KEY_PREFIX):
            continue  # of the adapter as a whole, such as VeRA's
        name = _layer_name(key.removeprefix(KEY_PREFIX), prefix)
        if name not in modules or not _own_tensors(modules[name]):
            raise _misfit(network, folder, name)
        layers[name] = None
    return list(layers)


def _layer_name(key: str, prefix: str) -> str:
    """Return the layer's name in a tensor's: mid.to_q of mid.to_q.lora_A.weight or mid.to_q.weight."""
    parts = key.split(".")
    if prefix and any(part.startswith(prefix) for part in parts):
        return ".".join(takewhile(lambda part: not part.startswith(prefix), parts))
    return ".".join(parts[:-1]).removesuffix(".base_layer")


def _merge(network: nn.Module, scale: float) -> None:
    """Put the injected layers' weights into the base ones, layer by layer, and take them out."""
    for name, layer in _injected(network, BaseTunerLayer):
        base = layer.get_base_layer()
        own = {key: tensor for key, tensor in _own_tensors(base).items() if tensor.is_floating_point()}
        before = {key: tensor.data for key, tensor in own.items()}
        for tensor in own.values():
            tensor.data = tensor.data.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
        try:
            layer.merge()
        finally:
            merged = {key: tensor.data for key, tensor in own.items()}
            for key, tensor in own.items():
                tensor.data = before[key]
        for key, tensor in own.items():
            _blend(tensor, merged[key], scale)
        network.set_submodule(name, base)
    for _, wrapper in _injected(network, ModulesToSaveWrapper):
        trained = wrapper.modules_to_save[wrapper.active_adapters[0]].state_dict()
        for key, tensor in wrapper.original_module.state_dict(keep_vars=True).items():
            _blend(tensor, trained[key], scale)
    _remove_peft_layers(network)


def _injected(network: nn.Module, kind: type[Any]) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in network.named_modules() if isinstance(module, kind)]


def _remove_peft_layers(network: nn.Module) -> None:
    """Put the base modules where layers of PEFT stood, and have the network forget the adapter."""
    for name, wrapper in _injected(network, ModulesToSaveWrapper):
        network.set_submodule(name, wrapper.original_module)
    for name, layer in _injected(network, BaseTunerLayer):
        network.set_submodule(name, layer.get_base_layer())
    for module in network.modules():
        unwatch(module)
    if hasattr(network, "peft_config"):
        del network.peft_config


# ---- tensors


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's parameters and buffers without its children's, as its state dict has them."""
    own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    return {name: tensor for name, tensor in own.items() if name not in module._non_persistent_buffers_set}


def _copy_to_cpu(network: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    own = network.state_dict(keep_vars=True)
    copies = {}
    for name in names:
        tensor = own[name]
        if tensor.is_meta:
            raise UserError(f"{name} of this {type(network).__name__} is offloaded; load the adapter before offloading")
        if isinstance(tensor, nn.Parameter) and not tensor.is_floating_point():
            raise UserError(f"{name} of this {type(network).__name__} is quantised; load the pipeline in fp16 or bf16")
        copies[name] = tensor.detach().to("cpu", copy=True)
    return copies


@torch.no_grad()
def _blend(tensor: Tensor, trained: Tensor, scale: float) -> None:
    """Set tensor to tensor + scale (trained - tensor), rounded once, in its own memory."""
    trained = trained.to(tensor.device)
    if scale != 1 and tensor.is_floating_point():
        wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        trained = wide + scale * (trained.to(wide.dtype) - wide)
    tensor.copy_(trained)


@torch.no_grad()
def _restore(network: nn.Module, replaced: dict[str, Tensor]) -> None:
    _remove_peft_layers(network)
    own = network.state_dict(keep_vars=True)
    for name, tensor in replaced.items():
        own[name].copy_(tensor)


@contextmanager
def _modes_restored(network: nn.Module) -> Iterator[None]:
    """Give the network back its modes and what trains: PEFT freezes it and puts it in eval mode."""
    trainable = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for parameter, flag in trainable:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


def _misfit(network: nn.Module, folder: Path, name: str | None, error: Exception | None = None) -> UserError:
    reason = short_reason(error) if error else "it is another one"
    if name:
        reason = f"{name} differs or is missing in one of them"
    return UserError(
        f"the adapter in {folder} does not fit this {type(network).__name__}: {reason}; "
        "load it into the pipeline that it was trained on"
    )


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged ({short_reason(error)}); save the adapter again")
