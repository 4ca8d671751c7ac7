"""AdamW, with moments in 32 or 8 bits, and its learning rate, and the optimiser's state as named tensors."""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from snella.config.loop import LoopConfig
from snella.errors import UserError

EPSILON = 1e-8  # of AdamW, as published
_NUMBERS = {"int": torch.int64, "float": torch.float64}


def make_optimiser(settings: LoopConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser that is asked for, over the trainable parameters.

    adamw8bit is bitsandbytes' AdamW8bit: parameters of 4096 entries or more have both moments in 8 bits, with a scale
    for each block of 256. It has not been run on a GPU by this package's tests.

    Raises:
        UserError: as `check_optimiser`, for the device of the parameters.
    """
    check_optimiser(settings.optimizer, next(model.parameters()).device)
    if settings.optimizer == "adamw":
        return adamw(model, lr=settings.peak_lr, weight_decay=settings.weight_decay)
    import bitsandbytes  # pyright: ignore[reportMissingImports]

    return bitsandbytes.optim.AdamW8bit(_groups(model, settings.weight_decay), lr=settings.peak_lr, eps=EPSILON)


def check_optimiser(name: str, device: torch.device) -> None:
    """Refuse an optimiser that the device or the installed packages do not have.

    Raises:
        UserError: adamw8bit without bitsandbytes, or on another device than CUDA.
    """
    if name == "adamw":
        return
    if device.type != "cuda":
        raise UserError(f"--optimizer {name} needs a CUDA device, and this run is on {device.type}; use adamw")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"--optimizer {name} needs bitsandbytes; run: pip install 'snella[bitsandbytes]'")


def moment_bytes(name: str, parameters: Iterable[Tensor]) -> int:
    """Return the bytes of AdamW's two moments of the parameters."""
    if name == "adamw":
        return 2 * sum(p.nbytes for p in parameters)
    small, block = 4096, 256  # bitsandbytes' defaults: smaller parameters have moments in fp32
    return sum(
        2 * (p.numel() + 4 * -(-p.numel() // block)) if p.numel() >= small else 8 * p.numel() for p in parameters
    )


def adamw(model: nn.Module, *, lr: float, weight_decay: float, eps: float = EPSILON) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters; those with one axis or none (biases, norms, scalars) do not decay.

    On CUDA it is the fused one, a few kernels for all parameters.
    """
    groups = _groups(model, weight_decay)
    cuda = all(p.is_cuda for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, lr=lr, eps=eps, fused=True if cuda and groups else None)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    return [group for group in param_groups_weight_decay(model, weight_decay) if group["params"]]


def cosine_schedule(
    optimizer: torch.optim.Optimizer, *, steps: int, warmup: float, warmup_lr: float, min_lr: float
) -> CosineLRScheduler:
    """Return a linear warm-up from `warmup_lr` over the fraction `warmup` of `steps`, then cosine to `min_lr`.

    `step_update(done)` sets the rate of the next step from the number of steps done alone: there is no state to
    save. As published, the cosine runs from step 0, below the warm-up, not from its end.
    """
    return CosineLRScheduler(
        optimizer,
        t_initial=steps,
        lr_min=min_lr,
        warmup_t=round(warmup * steps),
        warmup_lr_init=warmup_lr,
        t_in_epochs=False,
    )


def optimiser_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of every parameter as "INDEX.NAME" tensors, of any dtype; hyper-parameters are not in it.

    What an optimiser nests is "INDEX.OUTER.NAME"; a Python number becomes a tensor, "INDEX.NAME:int" or ":float".
    """
    tensors: dict[str, Tensor] = {}
    for index, entry in optimizer.state_dict()["state"].items():
        _flatten(f"{index}", entry, tensors)
    return tensors


def _flatten(prefix: str, entry: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    for name, value in entry.items():
        if isinstance(value, Mapping):
            _flatten(f"{prefix}.{name}", value, tensors)
        elif isinstance(value, Tensor):
            tensors[f"{prefix}.{name}"] = value
        else:
            kind = "int" if isinstance(value, int) else "float"
            tensors[f"{prefix}.{name}:{kind}"] = torch.tensor(value, dtype=_NUMBERS[kind])


def load_optimiser_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Take over what `optimiser_tensors` gave; hyper-parameters stay as they are."""
    state: dict[int, dict[str, Any]] = defaultdict(dict)
    for key, value in tensors.items():
        index, *outer, name = key.split(".")
        entry = state[int(index)]
        for part in outer:
            entry = entry.setdefault(part, {})
        name, _, kind = name.partition(":")
        entry[name] = value.item() if kind else value
    optimizer.load_state_dict({"state": dict(state), "param_groups": optimizer.state_dict()["param_groups"]})
    for p, entry in optimizer.state.items():  # files hold no memory layout, and a fused step wants that of p
        for name, value in entry.items():
            if isinstance(value, Tensor) and value.shape == p.shape and value.stride() != p.stride():
                entry[name] = torch.empty_like(p, dtype=value.dtype, device=value.device).copy_(value)
