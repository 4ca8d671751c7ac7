"""Whether a config's values are possible, each by itself and against the others."""

from __future__ import annotations

import math
import re
import types
from typing import Any, Literal, Union, get_args, get_origin

from snella.config.schema import DEFAULTS, HINTS, TASK_FIELDS, TrainConfig, flag, nearest
from snella.errors import UserError

# name -> (least, most, whether the least itself is allowed, whether the most itself is)
_RANGES: dict[str, tuple[float, float, bool, bool]] = {
    **dict.fromkeys(
        (
            "image_size",
            "r",
            "heads",
            "allocate_every",
            "epochs",
            "batch_size",
            "accumulate",
            "prior_images",
            "samples",
            "sample_steps",
        ),
        (1, math.inf, True, False),
    ),
    **dict.fromkeys(
        ("init_warmup", "final_warmup", "early_stopping", "workers", "checkpoint_every", "sample_every"),
        (0, math.inf, True, False),
    ),
    "init_alpha": (-math.inf, math.inf, False, False),
    "seed": (0, 2**32 - 1, True, True),  # what numpy takes
    "ignore_index": (0, 65535, True, True),  # masks have up to 16 bits
    **dict.fromkeys(
        ("scale", "relative_scale", "start_scale", "lr", "clip_grad", "snr_gamma"), (0, math.inf, False, False)
    ),
    **dict.fromkeys(
        (
            "min_lr",
            "warmup_lr",
            "weight_decay",
            "mixup",
            "cutmix",
            "color_jitter",
            "noise_offset",
            "prior_weight",
            "guidance",
        ),
        (0, math.inf, True, False),
    ),
    **dict.fromkeys(("init_sparsity", "target_sparsity", "random_erasing"), (0, 1, True, True)),
    **dict.fromkeys(
        ("update_dropout", "update_drop_path", "drop_path", "warmup", "label_smoothing", "caption_dropout"),
        (0, 1, True, False),
    ),
    **dict.fromkeys(("ema", "val_fraction", "test_fraction"), (0, 1, False, False)),
}


def validate(config: TrainConfig) -> None:
    """Check every value by itself and against the others, before any file is looked at.

    Raises:
        UserError: names the flag, the value and what is allowed.
    """
    for name, hint in HINTS.items():
        typed(name, getattr(config, name), hint)
    for name, (low, high, with_low, with_high) in _RANGES.items():
        value = getattr(config, name)
        inside = value is None or (
            (low <= value if with_low else low < value) and (value <= high if with_high else value < high)
        )
        if not inside:
            raise UserError(f"{flag(name)} {value} is outside {_interval(low, high, with_low, with_high)}")
    for tasks, names in TASK_FIELDS.items():
        for name in names if config.task not in tasks else ():
            if getattr(config, name) != getattr(DEFAULTS, name):
                raise UserError(
                    f"{flag(name)} is read with --task {' or '.join(tasks)} only; leave it out, or change --task"
                )
    if not config.data:
        raise UserError("no data: --data names a folder, a manifest or a known data set (snella train --help)")
    if config.method in ("snella", "snell") and config.r % config.heads:
        fit = max(config.r // config.heads, 1) * config.heads
        raise UserError(f"--r {config.r} is not divisible by --heads {config.heads}; try --r {fit}")
    if config.min_lr > config.lr:
        raise UserError(f"--min-lr {config.min_lr} is above the learning rate {config.lr}; lower it or raise the rate")
    if config.val_fraction + config.test_fraction >= 1:
        raise UserError("--val-fraction and --test-fraction add up to 1 or more: no image is left to train on")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", config.device):
        devices = ("auto", "cpu", "cuda", "cuda:0", "mps")
        raise UserError(
            f"--device {config.device} is unknown{nearest(config.device, devices)} (auto, cpu, cuda, cuda:N, mps)"
        )
    if config.half_weights and (config.precision == "fp32" or config.method == "full"):
        raise UserError("--half-weights is for frozen weights under --precision bf16 or fp16; leave it out")
    if config.adapt_convs and config.target_modules is not None:
        raise UserError("--adapt-convs adds convolutions to the usual layers; with --target-modules name them there")
    if "" in (config.target_modules or ()):
        raise UserError("--target-modules has an empty name; leave it out")
    if config.target_modules and len(config.target_modules) == 1:
        try:
            re.compile(config.target_modules[0])
        except re.error as error:
            raise UserError(f"--target-modules {config.target_modules[0]} is no pattern of names: {error}") from None
    if config.resume and config.overwrite:
        raise UserError("--resume and --overwrite contradict each other: pass one of them")


def _interval(low: float, high: float, with_low: bool, with_high: bool) -> str:
    if high == math.inf:
        return f"the numbers from {low} up" if with_low else f"the numbers above {low}"
    return f"{'[' if with_low else '('}{low}, {high}{']' if with_high else ')'}"


def typed(name: str, value: Any, hint: Any, *, parse: bool = False) -> Any:
    """The value as the hint has it; UserError if it is of another type. `parse` takes YAML's spellings."""
    if get_origin(hint) in (Union, types.UnionType):
        if value is None:
            return None
        (hint,) = (h for h in get_args(hint) if h is not type(None))
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise choice_error(name, value, get_args(hint))
        return value
    if get_origin(hint) is tuple:
        if isinstance(value, list if parse else tuple) and all(isinstance(v, str) for v in value):
            return tuple(value)
        raise _type_error(name, value, "a list of names")
    if hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if parse and isinstance(value, str):  # YAML 1.1 reads 1e-3, without a dot, as text
            try:
                return float(value)
            except ValueError:
                pass
        raise _type_error(name, value, "a number")
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise _type_error(name, value, {int: "a whole number", bool: "true or false", str: "text"}[hint])


def choice_error(name: str, value: Any, choices: tuple[str, ...]) -> UserError:
    """The error for a value that is none of the choices, with the nearest of them."""
    near = nearest(str(value), choices)
    return UserError(f"{flag(name)} {value} is unknown{near} (choose from {', '.join(choices)})")


def _type_error(name: str, value: Any, wanted: str) -> UserError:
    return UserError(f"{name}: {value!r} is not {wanted}")
