"""What a comparison runs: tasks x methods x (learning rates with the first seed, then the other seeds at the best).

Rates that are not given are found: three rungs of a ladder, one more wherever the best is at an end, and at last the
two half rungs beside the best.

Imports nothing heavy: wrong flags are told at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from snella.cli.flags import divided, value_of
from snella.config.schema import Method, TrainConfig, flag, shrunk, source_name
from snella.config.validation import choice_error, validate
from snella.errors import UserError

if TYPE_CHECKING:
    from snella.config.suites import Suite

T = TypeVar("T")

# of learning rates, the same for all methods; at odd places the half rungs
LADDER = (
    *(1e-5, 2e-5, 3e-5, 5e-5),
    *(1e-4, 2e-4, 3e-4, 5e-4),
    *(1e-3, 2e-3, 3e-3, 5e-3),
    *(1e-2, 2e-2, 3e-2, 5e-2, 1e-1),
)
# Where a method begins, a short run's best rate more often than not; one rung each side is tried with it.
USUAL = {"linear": 1e-2, "bitfit": 3e-3, "full": 3e-4}
USUAL |= dict.fromkeys(("snella", "snell", "lora", "dora", "adalora", "shira", "oft"), 1e-3)
# what a comparison sets itself -> the flag that is there instead
SET_HERE = {"method": "--methods", "lr": "--lr-grid", "seed": "--seeds"}
SET_HERE |= dict.fromkeys(("test", "resume", "overwrite", "estimate"), "")


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

    def config(self, task: PlannedTask, method: str, lr: float, seed: int) -> TrainConfig:
        """The settings of a run; `out` is its folder."""
        out = task.folder / method / f"lr-{lr:g}" / f"seed-{seed}"
        config: Any = replace(task.config, method=method, lr=lr, seed=seed, out=str(out), test="both", resume=True)
        return shrunk(config) if config.smoke else config

    def first_rates(self, task: PlannedTask, method: str) -> tuple[float, ...]:
        """The learning rates to begin with, ascending: what was given, or three rungs of the ladder.

        The middle one is the recipe's for the recipe's own method, and the usual one for the others.
        """
        if self.grid is not None:
            return self.grid
        usual = task.config.lr if method == task.config.method else USUAL[method]
        rungs = self.rungs(task)[::2]
        middle = min(range(len(rungs)), key=lambda i: abs(math.log(rungs[i] / usual)))
        return rungs[max(middle - 1, 0) : middle + 2]

    def more(self, task: PlannedTask, rates: Sequence[float], best: float | None) -> tuple[float, ...]:
        """`rates`, ascending, and what is to be tried beside the best of them.

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
        """What rates are taken from: those given, or the ladder down to the rung at the task's `min_lr`."""
        if self.grid is not None:
            return self.grid
        least = next((i for i in range(0, len(LADDER), 2) if LADDER[i] >= task.config.min_lr), -1)
        return LADDER[least:]

    def possible(self) -> Iterator[TrainConfig]:
        """The settings of every run that it may come to."""
        for task in self.tasks:
            for method in self.methods:
                for lr in self.rungs(task):
                    for seed in self.seeds:
                        yield self.config(task, method, lr, seed)


def make_plan(
    command: Any, shared: Sequence[str], settings: Callable[[Sequence[str], TrainConfig | None], TrainConfig]
) -> Plan:
    """The plan that flags describe.

    Args:
        command: recipe, methods, seeds, lr_grid, workers and out, as typed (`snella.cli.main.Compare`).
        shared: the other flags, of `snella train`.
        settings: (flags of `snella train`, defaults; None: those of the recipe named in them) -> the config.

    Raises:
        UserError: a method, seed, rate or setting that cannot be.
    """
    for name, instead in SET_HERE.items():
        if flag(name) in {word.partition("=")[0].replace("_", "-") for word in shared}:
            remedy = f"use {instead}" if instead else "leave it out"
            raise UserError(f"{flag(name)} is set by the comparison itself; {remedy}")
    if command.workers < 1:
        raise UserError(f"--workers {command.workers} is below 1")
    given = tuple(_listed("methods", command.methods, _method)) if command.methods is not None else None
    seeds = tuple(_listed("seeds", command.seeds, int))
    grid = tuple(sorted(_listed("lr_grid", command.lr_grid, _rate))) if command.lr_grid is not None else None
    source = command.recipe or value_of(shared, "data") or ""
    folder = Path(command.out) if command.out else Path("runs") / f"compare-{source_name(source)}"
    from snella.config.suites import is_suite, read_suite

    if command.recipe and is_suite(command.recipe):
        suite = read_suite(command.recipe, value_of(shared, "data"))
        rest = divided(shared, ["data"])[1]
        if suite.needs_folder:
            names = ", ".join(task.name for task in suite.tasks[:3])
            raise UserError(f"suite {suite.name} needs --data, the folder that holds {names} ...")
        if rest:
            suite = replace(suite, notes=(*suite.notes, f"not the suite's settings alone: {' '.join(rest)}"))
        tasks = tuple(PlannedTask(t.name, settings(rest, t.config), folder / t.name) for t in suite.tasks)
        plan = Plan(tasks, given or _usual_methods(tasks), grid, seeds, folder, suite)
    else:
        recipe = ["--recipe", command.recipe] if command.recipe else []
        tasks = (PlannedTask("", settings([*recipe, *shared], None), folder),)
        plan = Plan(tasks, given or _usual_methods(tasks), grid, seeds, folder)
    for config in plan.possible():
        validate(config)
    return plan


def _usual_methods(tasks: Sequence[PlannedTask]) -> tuple[str, ...]:
    """What is compared unless methods are named: no method that a task cannot train by."""
    configs = [task.config for task in tasks]
    left_out = {"linear"} if any(config.task == "generate" for config in configs) else set()  # it has no head
    left_out |= {"full"} if any(config.half_weights for config in configs) else set()
    return tuple(method for method in ("snella", "lora", "linear", "full") if method not in left_out)


def _listed(name: str, text: str, read: Callable[[str], T]) -> list[T]:
    """The values between commas, each once."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise UserError(f"{flag(name)} is empty; give values with commas between them")
    found = []
    for word in words:
        try:
            found.append(read(word))
        except UserError:
            raise
        except ValueError:
            raise UserError(f"{flag(name)}: {word} is no number; give numbers with commas between them") from None
    if len(set(found)) < len(found):
        raise UserError(f"{flag(name)} {text} names a value twice")
    return found


def _method(word: str) -> str:
    if word not in get_args(Method):
        raise choice_error("methods", word, get_args(Method))
    return word


def _rate(word: str) -> float:
    rate = float(word)
    if not 0 < rate < math.inf:
        raise UserError(f"--lr-grid: {word} is not above 0")
    return float(f"{rate:g}")  # as the folder's name has it
