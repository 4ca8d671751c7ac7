"""Whether a config's values are possible, each by itself and against the others."""

from __future__ import annotations

import contextlib
import math
import re
import types
from typing import Any, Literal, TypeGuard, Union, get_args, get_origin

from snella.config.fields import check_intervals, flag, nearest, read_bytes, read_number
from snella.config.loop import TRACKER_NAMES
from snella.config.schema import TrainConfig, settings
from snella.config.tasks import TASKS
from snella.errors import UserError, brief, named

# methods for which weights cannot be kept in fewer bits, and why
NOT_PACKED = {"full": "trains all weights", "shira": "writes into copies of the frozen weights"}
SECTIONS = tuple(dict.fromkeys(known.section for known in settings().values() if known.section))

LEAST, LARGEST = 1e-36, 1e36  # of numbers in fp32, with some room for what is computed of them
SMALLEST_ALPHA = 1e-3  # of mixup's beta distribution, in fp32
MOST = 2**63  # whole numbers below it, as tensors hold them


def validate(config: TrainConfig) -> None:
    """Check every value by itself and against the others, before any file is looked at.

    Raises:
        UserError: names the flag, the value and what is allowed.
    """
    for name, known in settings().items():
        value = config.value(name)
        typed(name, value, known.hint)
        if isinstance(value, float) and value and not LEAST <= abs(value) <= LARGEST and math.isfinite(value):
            raise UserError(f"{flag(name)} {value:g} is beyond fp32; use 0, or a number from {LEAST:g} to {LARGEST:g}")
    check_intervals(config)
    for section in SECTIONS:
        check_intervals(getattr(config, section))
    _check_readers(config)
    _check_run(config)
    _check_method(config)


def _check_readers(config: TrainConfig) -> None:
    """Refuse what the task does not read, rather than leave it unread."""
    for name, known in settings().items():
        tasks = known.reading.tasks or ((known.section,) if known.section in TASKS else ())
        if tasks and config.task not in tasks and config.value(name) != known.default:
            raise UserError(
                f"{flag(name)} is read with --task {' or '.join(map(str, tasks))} only; leave it out, or change --task"
            )


def check_rates(config: TrainConfig) -> None:
    """Refuse a learning rate that would have to rise to its end. Raises UserError."""
    if config.loop.lr != "auto" and config.loop.min_lr > config.loop.lr:
        raise UserError(
            f"--min-lr {config.loop.min_lr} is above the learning rate {config.loop.lr}; lower it or raise the rate"
        )


def _check_run(config: TrainConfig) -> None:
    if not config.data.source:
        raise UserError("no data: --data names a folder, a manifest or a known data set (snella train --help)")
    check_rates(config)
    _check_division(config)
    for name in ("mixup", "cutmix"):
        if 0 < config.value(name) < SMALLEST_ALPHA:
            raise UserError(
                f"{flag(name)} {config.value(name):g} is too small to draw by; use 0, which is off, or 0.001"
            )
    if sum(config.data.fractions.values()) >= 1:
        raise UserError("--val-fraction and --test-fraction add up to 1 or more: no image is left to train on")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", config.device):
        devices = ("auto", "cpu", "cuda", "cuda:0", "mps")
        raise UserError(
            f"--device {config.device} is unknown{nearest(config.device, devices)} (auto, cpu, cuda, cuda:N, mps)"
        )
    if config.model.compile and config.model.gradient_checkpointing:
        raise UserError("--compile leaves no block to checkpoint; pass it or --gradient-checkpointing, not both")
    if config.model.compile and config.memory is not None:
        raise UserError("--memory may checkpoint blocks, and --compile leaves none to checkpoint; pass one of them")
    if config.memory not in (None, "auto"):
        try:
            read_bytes(config.memory)
        except ValueError as error:
            raise UserError(f"--memory: {error}, nor auto") from None
    if config.loop.average and config.loop.ema is not None:
        raise UserError("--average and --ema both say how weights are averaged; pass one of them")
    if config.loop.early_stopping and config.loop.keep == "last":
        raise UserError("--early-stopping ends where val has no better epoch, and --keep last keeps none of those")
    for name in config.loop.trackers:
        if name not in TRACKER_NAMES:
            raise choice_error("tracker", name, TRACKER_NAMES)
    if config.loop.tracker_adapter and not config.loop.trackers:
        raise UserError("--tracker-adapter: no --tracker is named to give it to; name one, or leave it out")
    if config.private and config.push is None:
        raise UserError("--private is read with --push OWNER/NAME only; leave it out")
    if config.push is not None and config.data.folds is not None and config.data.fold is None:
        raise UserError("--push: --folds makes several runs; leave it out, and push one of them by snella push")
    if config.resume and config.overwrite:
        raise UserError("--resume and --overwrite contradict each other: pass one of them")


def _check_division(config: TrainConfig) -> None:
    """Refuse what is said of the splits where it cannot be, or is not read."""
    data = config.data
    if data.group_column is not None and data.group_pattern is not None:
        raise UserError("--group-column and --group-pattern both say the groups; pass one of them")
    for name, pattern in (("group_pattern", data.group_pattern), ("label_pattern", config.classify.label_pattern)):
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise UserError(f"{flag(name)} {pattern} is not a regular expression: {error}") from None
    chosen = (
        config.classify.label_column,
        config.data.classes,
        config.classify.crops or None,
        config.regress.target_column,
    )
    if config.classify.label_pattern is not None and any(value is not None for value in chosen):
        raise UserError(
            "--label-pattern takes the labels from names, --classes, --label-column, --target-column and --crops from "
            "elsewhere; pass one of them"
        )
    if data.fold is not None and not data.fold <= (data.folds or 0):
        raise UserError(f"--fold {data.fold} is one of --folds, which is {data.folds}; pass how many there are")
    if data.folds is not None and data.test_fraction is not None:
        raise UserError("--test-fraction: with --folds the test split is a fold; leave it out")
    if data.folds is not None and config.test == "none":
        raise UserError("--test none: with --folds each fold is tested; leave it out")


def _check_method(config: TrainConfig) -> None:
    method = config.method
    if method.name in ("snella", "snell") and method.r % method.heads:
        fit = max(method.r // method.heads, 1) * method.heads
        raise UserError(f"--r {method.r} is not divisible by --heads {method.heads}; try --r {fit}")
    if config.generate.half_weights and (config.precision == "fp32" or method.name == "full"):
        raise UserError("--half-weights is for frozen weights under --precision bf16 or fp16; leave it out")
    if config.model.base_precision != "fp32":
        kept = f"--base-precision {config.model.base_precision}"
        if method.name in NOT_PACKED:
            raise UserError(f"{kept}: {method.name} {NOT_PACKED[method.name]}; leave it out, or take another method")
        if config.generate.half_weights:
            raise UserError(f"{kept} and --half-weights both say how frozen weights are kept; pass one of them")
        if config.model.compile:
            raise UserError(f"--compile does not see into weights kept by {kept}; pass one of them")
    if config.generate.adapt_convs and method.target_modules is not None:
        raise UserError("--adapt-convs adds convolutions to the usual layers; with --target-modules name them there")
    if "" in (method.target_modules or ()):
        raise UserError("--target-modules has an empty name; leave it out")
    if method.target_modules and len(method.target_modules) == 1:
        try:
            re.compile(method.target_modules[0])
        except re.error as error:
            raise UserError(f"--target-modules {method.target_modules[0]} is not a pattern of names: {error}") from None


def typed(name: str, value: Any, hint: Any, *, parse: bool = False) -> Any:
    """Return the value as the hint has it; UserError if it is of another type. `parse` takes YAML's spellings."""
    if get_origin(hint) in (Union, types.UnionType):
        kinds = get_args(hint)
        if value is None and type(None) in kinds:
            return None
        words = [kind for kind in kinds if get_origin(kind) is Literal]
        others = [kind for kind in kinds if kind not in (type(None), *words)]
        if others and words and value in get_args(words[0]):  # "auto" for a number
            return value
        (hint,) = others or words
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise choice_error(name, value, get_args(hint))
        return value
    if get_origin(hint) is tuple:
        if isinstance(value, list if parse else tuple) and all(isinstance(v, str) for v in value):
            return tuple(value)
        raise _type_error(name, value, "a list of names")
    if hint is float:
        if isinstance(value, float) or _is_whole(value):
            return float(value) + 0.0  # -0.0 is 0
        if parse and isinstance(value, str):  # YAML 1.1 reads 1e-3, without a dot, as text
            with contextlib.suppress(ValueError):
                return read_number(value, float)
        raise _type_error(name, value, "a number")
    if isinstance(value, hint) and not (hint is int and not _is_whole(value)):
        return value
    raise _type_error(name, value, {int: "a whole number", bool: "true or false", str: "text"}[hint])


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < MOST


def choice_error(name: str, value: Any, choices: tuple[str, ...]) -> UserError:
    """Return the error for a value that is none of the choices, with the nearest of them."""
    near = nearest(named(value), choices)
    return UserError(f"{flag(name)} {named(value)} is unknown{near} (choose from {', '.join(choices)})")


def _type_error(name: str, value: Any, wanted: str) -> UserError:
    return UserError(f"{name}: {brief(value)} is not {wanted}")
