"""What a comparison runs: tasks x entrants x (learning rates with the first seed, then the other seeds at the best).

An entrant is a method, or a method on one of several backbones.

Rates that are not given are found: three rungs of a ladder, one more wherever the best is at an end, and at last the
two half rungs beside the best.

Imports nothing heavy: wrong flags are told at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from snella.config.method import METHODS
from snella.config.schema import TrainConfig, shrunk

if TYPE_CHECKING:
    from snella.config.suites import Suite

# of learning rates, the same for all methods; at odd places the half rungs
LADDER = (
    *(1e-5, 2e-5, 3e-5, 5e-5),
    *(1e-4, 2e-4, 3e-4, 5e-4),
    *(1e-3, 2e-3, 3e-3, 5e-3),
    *(1e-2, 2e-2, 3e-2, 5e-2, 1e-1),
)


@dataclass(frozen=True)
class Entrant:
    """What is compared: a method, and the backbone that it tunes where there are several."""

    method: str
    backbone: str | None = None  # None: the task's own

    @property
    def name(self) -> str:
        """What tables and charts call it."""
        return self.method if self.backbone is None else f"{self.backbone}, {self.method}"

    @property
    def folder(self) -> Path:
        """Its folder in a task's."""
        return Path(self.method) if self.backbone is None else Path(backbone_folder(self.backbone)) / self.method


def backbone_folder(backbone: str) -> str:
    """Return what a backbone's folder is called."""
    return re.sub(r"[^\w.-]+", "-", backbone).strip("-.")


@dataclass(frozen=True)
class PlannedTask:
    """Runs on the same data; `folder` holds them."""

    name: str  # "" where there is one task only
    config: TrainConfig  # what is the same for all runs
    folder: Path


@dataclass(frozen=True)
class Plan:
    """A comparison: what is run, and where."""

    tasks: tuple[PlannedTask, ...]
    methods: tuple[str, ...]
    grid: tuple[float, ...] | None  # learning rates given for all methods; None: found on the ladder
    seeds: tuple[int, ...]  # the first one chooses the rate
    folder: Path
    suite: Suite | None = None
    backbones: tuple[str, ...] = ()  # none: each task's own
    combine: bool = True  # whether the rates of the first seed are tried together

    @property
    def entrants(self) -> tuple[Entrant, ...]:
        """All methods, on each backbone."""
        return tuple(Entrant(method, backbone) for backbone in self.backbones or (None,) for method in self.methods)

    def config(self, task: PlannedTask, entrant: Entrant, lr: float, seed: int) -> TrainConfig:
        """Return the settings of a run; `out` is its folder."""
        out = task.folder / entrant.folder / f"lr-{lr:g}" / f"seed-{seed}"
        backbone = entrant.backbone or task.config.model.backbone
        config = task.config.changed(backbone=backbone, method=entrant.method, lr=lr, seed=seed)
        config = config.changed(out=str(out), test="both", resume=True)
        return shrunk(config) if config.smoke else config

    def first_rates(self, task: PlannedTask, entrant: Entrant) -> tuple[float, ...]:
        """Return the learning rates to begin with, ascending: what was given, or three rungs of the ladder.

        The middle one is the recipe's for the recipe's own method, and the usual one for the others.
        """
        if self.grid is not None:
            return self.grid
        given, usual = task.config.loop.lr, METHODS[entrant.method].middle_rate
        if given != "auto" and entrant.method == task.config.method.name:
            usual = given
        rungs = self.rungs(task)[::2]
        middle = min(range(len(rungs)), key=lambda i: abs(math.log(rungs[i] / usual)))
        return rungs[max(middle - 1, 0) : middle + 2]

    def more(self, task: PlannedTask, rates: Sequence[float], best: float | None) -> tuple[float, ...]:
        """Return `rates`, ascending, and what is to be tried beside the best of them.

        That is the next rung where it is at an end of them, and the half rungs on both sides where it is not.
        """
        rungs = self.rungs(task)
        if self.grid is not None or best is None or best not in rungs[::2]:
            return tuple(rates)
        at, found = rungs.index(best), set(rates)
        for step in (2, 1):  # rungs, then half rungs
            beside = {rungs[i] for i in (at - step, at + step) if 0 <= i < len(rungs)}
            if not beside <= found:
                return tuple(sorted(found | beside))
        return tuple(rates)

    def rungs(self, task: PlannedTask) -> tuple[float, ...]:
        """Return what rates are taken from: those given, or the ladder down to the rung at the task's `min_lr`."""
        if self.grid is not None:
            return self.grid
        least = next((i for i in range(0, len(LADDER), 2) if LADDER[i] >= task.config.loop.min_lr), -1)
        return LADDER[least:]

    def possible(self) -> Iterator[TrainConfig]:
        """Return the settings of every run that it may come to."""
        for task in self.tasks:
            for entrant in self.entrants:
                for lr in self.rungs(task):
                    for seed in self.seeds:
                        yield self.config(task, entrant, lr, seed)
