"""Where and in which precision a model runs: one accelerator a command, handed down from here."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import patch_environment
from torch import nn

from snella.config.schema import Precision, TrainConfig
from snella.config.validation import validate
from snella.distributed import world
from snella.distributed.environment import started_processes
from snella.distributed.world import own_device
from snella.errors import UserError, short_reason
from snella.ops import is_packed
from snella.runs.folder import read_config, state_of


def check_device(device: str, precision: str) -> None:
    """Refuse, cheaply and before anything is built, a device or precision that this machine does not have.

    Raises:
        UserError: unknown or missing device, or a precision it cannot do.
    """
    if precision not in get_args(Precision):
        raise UserError(f"unknown precision {precision!r}; choose from {', '.join(get_args(Precision))}")
    check_together()
    if device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = short_reason(error)
            raise UserError(f"device {device!r} cannot be used here ({reason}); try --device cpu") from error


def check_together() -> None:
    """Refuse to do by itself, as one of several processes, what all of them would do. Raises UserError."""
    if started_processes() > 1 and world.count() == 1:
        raise UserError(
            f"this runs in one process, and {started_processes()} were started; leave out torchrun, which is to train"
        )


def check_several(config: TrainConfig) -> None:
    """Refuse what several processes cannot do, or one process alone. Raises UserError."""
    if config.devices > 1 and started_processes() > 1:
        raise UserError(f"--devices {config.devices} starts the processes itself; leave it out, or torchrun")
    if config.devices > 1:
        raise UserError("devices: only the command line starts processes; call train in each of those of torchrun")
    if started_processes() == 1:
        return
    found = {
        "--estimate": config.estimate,
        "--memory": config.memory is not None,
        "--batch-size auto": config.data.batch_size == "auto",
    }
    for name in (name for name, is_given in found.items() if is_given):
        raise UserError(f"{name} looks at the memory of one process; find out in one, and leave it out with several")


def device_name(device: torch.device) -> str:
    """Return what the device is called by its maker, or its type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def best_precision(device: str) -> Precision:
    """Return what `--precision auto` means on a device: bf16 on a GPU that computes in it, else fp32."""
    if device == "auto" or device.startswith("cuda"):
        found = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if found else "fp32"
    return "fp32"


def with_precision(config: TrainConfig, folder: Path) -> TrainConfig:
    """Return the config with the precision that `auto` means; a run that is gone on with keeps its own.

    Raises:
        UserError: settings that do not go with that precision, or the run's config.yaml is damaged.
    """
    if config.precision != "auto":
        return config
    known = config.resume and state_of(folder) in ("started", "finished")
    precision = read_config(folder).precision if known else best_precision(config.device)
    config = config.changed(precision=precision)
    validate(config)
    return config


def lay_out(model: nn.Module, device: torch.device) -> None:
    """Put the convolutions of a model for CUDA channels last, where most of its weights are in convolutions.

    Tensor cores compute so; the images follow from the first layer on. On the CPU the images alone are put so.
    """
    if device.type == "cuda" and is_convolutional(model):
        put_channels_last(model)


def is_convolutional(model: nn.Module) -> bool:
    """Return whether more weights of a model are in convolutions than in linear layers."""
    convolutions = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d))
    return convolutions > sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))


def put_channels_last(model: nn.Module) -> None:
    """Put the weights of all convolutions channels last in memory; values, and all other tensors, stay as they are."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not is_packed(module.weight):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def make_accelerator(device: str, precision: str) -> Accelerator:
    """Return accelerate's view of `device` ("auto" or a torch device) and `precision` ("fp32", "bf16", "fp16", "auto").

    Of processes that train together each has a device of its own.

    A process may make several in turn, one a command; the last one made is the one to use. On CUDA, matrix products of
    fp32 may round their factors to TF32 from then on.

    Raises:
        UserError: as `check_device`, and for a precision that the device found by "auto" cannot do.
    """
    check_device(device, precision)
    device = own_device(device)
    precision = best_precision(device) if precision == "auto" else precision
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
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    return accelerator
