"""AdamW and its learning rate, and the optimiser's state as named tensors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn


def adamw(model: nn.Module, *, lr: float, weight_decay: float, eps: float) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; those with one axis or none (biases, norms, scalars) do not decay."""
    groups = param_groups_weight_decay(model, weight_decay)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, eps=eps)


def cosine_schedule(
    optimizer: torch.optim.Optimizer, *, steps: int, warmup: float, warmup_lr: float, min_lr: float
) -> CosineLRScheduler:
    """Linear warm-up from `warmup_lr` over the first `warmup` (a fraction) of `steps`, then cosine to `min_lr`.

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
    """The state of every parameter as "INDEX.NAME" tensors; hyper-parameters are not in it."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}


def load_optimiser_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Take over what `optimiser_tensors` gave; hyper-parameters stay as they are."""
    state: dict[int, dict[str, Any]] = defaultdict(dict)
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state[int(index)][name] = value
    optimizer.load_state_dict({"state": dict(state), "param_groups": optimizer.state_dict()["param_groups"]})
