"""Where and in which precision a model runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import patch_environment, send_to_device
from torch import Tensor

from snella.errors import UserError, short_reason
from snella.training.settings import PRECISIONS


def check_device(device: str, precision: str) -> None:
    """Refuse, cheaply and before anything is built, a device or precision that this machine does not have.

    Raises:
        UserError: unknown or missing device, or a precision it cannot do.
    """
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}; choose from {', '.join(PRECISIONS)}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("training in several processes is not supported; start one process")
    if device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = short_reason(error)
            raise UserError(f"device {device!r} cannot be used here ({reason}); try --device cpu") from error


def device_name(device: torch.device) -> str:
    """What the device is called by its maker, or its type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def accelerator_for(device: str, precision: str, *, tensorboard: Path | None = None) -> Accelerator:
    """Accelerate's view of `device` ("auto" or a torch device) and `precision` ("fp32", "bf16" or "fp16").

    With `tensorboard`, what it logs goes to that folder. A process may ask for several in turn; the last one made is
    the one to use.

    Raises:
        UserError: as `check_device`, and for a precision that the device found by "auto" cannot do.
    """
    check_device(device, precision)
    # accelerate keeps the first device and precision of a process for good; a comparison runs many in one
    AcceleratorState._reset_state(reset_partial_state=True)
    wanted = {} if device == "auto" else {"ACCELERATE_TORCH_DEVICE": device}
    try:
        with patch_environment(**wanted):
            accelerator = Accelerator(
                cpu=device == "cpu",
                mixed_precision="no" if precision == "fp32" else precision,
                log_with="tensorboard" if tensorboard is not None else None,
                project_dir=tensorboard,
            )
    except ValueError as error:
        raise UserError(f"precision {precision} cannot be used here ({error}); use --precision fp32") from error
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("precision fp16 needs a GPU; use --precision bf16 or fp32")
    return accelerator


def on_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch on the device; on the CPU with images (b, c, h, w) channels last, as convolutions are faster there."""
    moved: Any = send_to_device(batch, device)
    return {name: _channels_last(value) for name, value in moved.items()} if device.type == "cpu" else moved


def _channels_last(value: Any) -> Any:
    images = isinstance(value, Tensor) and value.ndim == 4
    return value.contiguous(memory_format=torch.channels_last) if images else value
