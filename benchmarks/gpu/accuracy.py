"""Accuracy on a device: each method at the best of a ladder of learning rates, over seeds, several runs at once.

The search is that of `snella compare`, whose results and tables it shares. Tasks come one after the other: where the
time ends, the first ones are whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.workers import train_all
from snella.compare.plan import Entrant, Plan, PlannedTask
from snella.compare.results import MethodResult, RunResult, TaskResult, read_result
from snella.compare.search import best_rate
from snella.compare.tables import as_json
from snella.config.schema import TrainConfig
from snella.runs.folder import state_of
from snella.tasks.registry import task_named

METHODS = ("snella", "lora", "dora", "full")
SEEDS = (0, 1, 2, 3, 4)
SAVE_EVERY = 15.0  # seconds between two writings of what there is

Grid = dict[float, RunResult | None]


@dataclass
class _Search:
    """The runs of a method on a task: rounds of them, each of which depends on what the one before has found."""

    rounds: Generator[list[TrainConfig], None, None]
    waiting: list[TrainConfig] = field(default_factory=list)
    running: set[str] = field(default_factory=set)  # run folders
    ended: bool = False

    def next_config(self) -> TrainConfig | None:
        """Return a run that can begin, None where there is none now."""
        if not self.waiting and not self.running and not self.ended:
            self.waiting = next(self.rounds, [])
            self.ended = not self.waiting
        if not self.waiting:
            return None
        config = self.waiting.pop(0)
        self.running.add(config.out or "")
        return config


class Accuracy:
    """A comparison under way, and what it has found so far."""

    def __init__(self, plan: Plan, say: Callable[[str], None], save: Callable[[dict[str, Any]], None]) -> None:
        self.plan, self.say, self.save = plan, say, save
        self.grids: dict[tuple[str, Entrant], Grid] = {}
        self.failed: dict[str, str] = {}
        self.runs = 0
        self._searches = [_Search(self._rounds(task, entrant)) for task in plan.tasks for entrant in plan.entrants]
        self._saved = time.monotonic()

    def run(self, *, workers: int, deadline: float) -> dict[str, Any]:
        """Train until all is done or until `deadline`, and return the result."""
        complete = train_all(self._configs(), self._done, workers=workers, deadline=deadline)
        return self.result(complete)

    def _configs(self) -> Iterator[TrainConfig | None]:
        """Yield the next run of the first search that has one; None while all wait for what is under way."""
        while not all(search.ended for search in self._searches):
            config = next(filter(None, (search.next_config() for search in self._searches)), None)
            if config is not None or any(search.running for search in self._searches):
                yield config

    def _rounds(self, task: PlannedTask, entrant: Entrant) -> Generator[list[TrainConfig], None, None]:
        """Yield the rounds of a method on a task: rates with the first seed, more rates, the test and other seeds."""
        plan, first = self.plan, self.plan.seeds[0]
        grid = self.grids.setdefault((task.name, entrant), {})
        tried: tuple[float, ...] = ()
        rates = plan.first_rates(task, entrant)
        while rates != tried:
            yield [plan.config(task, entrant, lr, first).changed(test="none") for lr in rates if lr not in tried]
            found = {lr: self._finished(task, entrant, lr, (first,), tested=False) for lr in rates}
            grid.clear()  # ascending, as `best_rate` has it
            grid.update({lr: runs[0] if runs else None for lr, runs in found.items()})
            tried, rates = rates, plan.more(task, rates, best_rate(grid.values()))
        best = best_rate(grid.values())
        if best is not None:
            yield [plan.config(task, entrant, best, seed) for seed in plan.seeds]

    def _done(self, config: TrainConfig, reason: str | None) -> None:
        folder = config.out or ""
        name = str(Path(folder).relative_to(self.plan.folder))
        self.runs += 1
        if reason is not None:
            self.failed[name] = reason
        self.say(f"{self.runs} runs: {name}{f' failed: {reason}' if reason else ''}")
        for search in self._searches:
            search.running.discard(folder)
        if time.monotonic() > self._saved + SAVE_EVERY:
            self.save(self.result(False))
            self._saved = time.monotonic()

    def result(self, complete: bool) -> dict[str, Any]:
        """Return all tasks of which a run was tested, and what failed."""
        found = [self._task(task) for task in self.plan.tasks]
        tasks = [as_json(result) for result in found if result is not None]
        return {"complete": complete, "runs": self.runs, "failed": self.failed, "tasks": tasks}

    def _task(self, task: PlannedTask) -> TaskResult | None:
        rows = []
        for entrant in self.plan.entrants:
            grid = self.grids.get((task.name, entrant), {})
            lr = best_rate(grid.values())
            runs = self._finished(task, entrant, lr, self.plan.seeds) if lr is not None else []
            val = {rate: run.val[run.metric] if run else None for rate, run in grid.items()}
            rows.append(MethodResult(entrant, lr, val, tuple(runs)))
        run = next((row.runs[0] for row in rows if row.runs), None)
        if run is None:
            return None
        label = task_named(task.config.task).metrics[run.metric]
        return TaskResult(task.name, run.metric, label, run.higher_is_better, tuple(rows), (), ())

    def _finished(
        self, task: PlannedTask, entrant: Entrant, lr: float, seeds: Sequence[int], *, tested: bool = True
    ) -> list[RunResult]:
        folders = [Path(self.plan.config(task, entrant, lr, seed).out or "") for seed in seeds]
        runs = [read_result(folder) for folder in folders if state_of(folder) == "finished"]
        return [run for run in runs if run.test_last or not tested]


def measure_accuracy(
    configs: dict[str, TrainConfig],
    folder: Path,
    seconds: float,
    say: Callable[[str], None],
    save: Callable[[dict[str, Any]], None],
    *,
    workers: int,
    methods: tuple[str, ...] = METHODS,
    rates: tuple[float, ...] | None = None,
    seeds: tuple[int, ...] = SEEDS,
) -> dict[str, Any]:
    """Compare the methods on tasks by name, in run folders below `folder`, where finished ones are taken over.

    Args:
        rates: learning rates of all methods; None: found on the ladder.
    """
    deadline = time.monotonic() + seconds
    tasks = tuple(PlannedTask(name, config, folder / name) for name, config in configs.items())
    plan = Plan(tasks=tasks, methods=methods, grid=rates, seeds=seeds, folder=folder)
    return Accuracy(plan, say, save).run(workers=workers, deadline=deadline)
