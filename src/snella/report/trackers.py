"""Who else hears how a training goes, beside metrics.jsonl: trackers that accelerate drives.

A tracker is a row in `TRACKERS`, of the name that its switch has in `LoopConfig`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker
from accelerate.utils import LoggerType, is_tensorboard_available

from snella.config.fields import flag
from snella.config.loop import LoopConfig
from snella.errors import UserError


@dataclass(frozen=True)
class Tracker:
    """What a tracker needs, and how it is made."""

    package: str  # also the name of this package's extra that brings it
    available: Callable[[], bool]
    make: Callable[[Path, int], GeneralTracker]  # run folder, optimiser steps already done


def _tensorboard(folder: Path, done: int) -> GeneralTracker:
    return TensorBoardTracker("tensorboard", folder, purge_step=done + 1)  # hides what a lost part has logged


TRACKERS = {"tensorboard": Tracker("tensorboard", lambda: bool(is_tensorboard_available()), _tensorboard)}


def check_trackers(settings: LoopConfig) -> None:
    """Refuse a tracker whose package is missing. Raises UserError."""
    for name, row in _asked(settings).items():
        if not row.available():
            remedy = f"run: pip install 'snella[{row.package}]'"
            raise UserError(f"{flag(name)} needs the package {row.package}; {remedy}")


def start_trackers(accelerator: Accelerator, settings: LoopConfig, folder: Path, done: int) -> None:
    """Start the trackers that the settings ask for, after `done` optimiser steps; `accelerator.log` feeds them."""
    trackers: list[str | LoggerType | GeneralTracker] = [row.make(folder, done) for row in _asked(settings).values()]
    accelerator.log_with = trackers
    accelerator.init_trackers("snella")


def _asked(settings: LoopConfig) -> dict[str, Tracker]:
    return {name: row for name, row in TRACKERS.items() if getattr(settings, name)}
