"""Where and in which precision a model runs: one accelerator a command, handed down from here."""

from __future__ import annotations

import os
from typing import get_args

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import patch_environment

from snella.config.schema import Precision
from snella.errors import UserError, short_reason


def check_device(device: str, precision: str) -> None:
    """Refuse, cheaply and before anything is built, a device or precision that this machine does not have.

    Raises:
        UserError: unknown or missing device, or a precision it cannot do.
    """
    if precision not in get_args(Precision):
        raise UserError(f"unknown precision {precision!r}; choose from {', '.join(get_args(Precision))}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("training in several processes is not supported; start one process")
    if device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = short_reason(error)
            raise UserError(f"device {device!r} cannot be used here ({reason}); try --device cpu") from error


def device_name(device: torch.device) -> str:
    """Return what the device is called by its maker, or its type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def make_accelerator(device: str, precision: str) -> Accelerator:
    """Return accelerate's view of `device` ("auto" or a torch device) and `precision` ("fp32", "bf16" or "fp16").

    A process may make several in turn, one a command; the last one made is the one to use.

    Raises:
        UserError: as `check_device`, and for a precision that the device found by "auto" cannot do.
    """
    check_device(device, precision)
    # accelerate keeps the first device and precision of a process for good
    AcceleratorState._reset_state(reset_partial_state=True)
    wanted = {} if device == "auto" else {"ACCELERATE_TORCH_DEVICE": device}
    try:
        with patch_environment(**wanted):
            accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no" if precision == "fp32" else precision)
    except ValueError as error:
        raise UserError(f"precision {precision} cannot be used here ({error}); use --precision fp32") from error
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("precision fp16 needs a GPU; use --precision bf16 or fp32")
    return accelerator
