"""Results of finished runs side by side, read from their run folders."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, geometric_mean, median
from typing import Any

from snella.compare.plan import Entrant
from snella.compare.statistics import Difference, Spread, mean_of_pairs, spread
from snella.errors import UserError
from snella.report.rows import read_metrics
from snella.runs.folder import read_config, read_summary

REFERENCE = "lora"  # what the other methods are compared with
COSTS = ("trainable_parameters", "adapter_bytes", "peak_memory_bytes", "step_seconds", "seconds")  # of a run
ALONE, SOUP, ENSEMBLE = "best rate alone", "soup", "ensemble"  # of the rates of the first seed
KINDS = (ALONE, SOUP, ENSEMBLE)
OWN_LINES = 4  # of a task's protocol; the others are the same for all tasks of a suite


@dataclass(frozen=True)
class RunResult:
    """A finished run; its metrics by name."""

    folder: str
    lr: float
    seed: int
    metric: str  # the one that chooses
    higher_is_better: bool
    test: dict[str, float]  # of the best epoch on val; empty where it was not tested
    test_last: dict[str, float]  # of the last epoch
    val: dict[str, float]
    trainable_parameters: int
    adapter_bytes: int
    peak_memory_bytes: int
    seconds: float  # of the training, with its validations
    step_seconds: float
    images: dict[str, int]  # split -> how many
    device: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Combination:
    """Runs of several learning rates as one model; its metrics by name."""

    kind: str  # ALONE, SOUP or ENSEMBLE
    runs: tuple[str, ...]  # folders of those that were taken, the best on val first
    val: dict[str, float]
    test: dict[str, float]

    @property
    def command(self) -> str:
        """The call that makes the soup, or predicts by the ensemble."""
        if self.kind == SOUP:
            out = Path(self.runs[0]).parents[1] / SOUP  # METHOD/lr-RATE/seed-SEED
            return shlex.join(["snella", "soup", *self.runs, "--take-all", "--out", str(out)])
        return shlex.join(["snella", "predict", *self.runs, "IMAGES"])


@dataclass(frozen=True)
class MethodResult:
    """An entrant on a task: a method, or one on a backbone."""

    entrant: Entrant
    lr: float | None  # the best of the grid on val; None: no run of the grid finished
    grid: dict[float, float | None]  # learning rate -> val score with the first seed; None: failed
    runs: tuple[RunResult, ...]  # at `lr`, by seed
    combined: tuple[Combination, ...] = ()  # of the rates of the first seed, the best alone first

    @property
    def name(self) -> str:
        """What tables and charts call it."""
        return self.entrant.name


@dataclass(frozen=True)
class TaskResult:
    """All entrants on a task."""

    name: str
    metric: str  # the one that chooses
    label: str  # what people call it
    higher_is_better: bool
    methods: tuple[MethodResult, ...]
    protocol: tuple[str, ...]
    notes: tuple[str, ...]

    def spread(self, row: MethodResult, split: str) -> Spread | None:
        """Return mean and spread of the metric over the seeds on test, test_last or val; None: no run finished."""
        return spread([getattr(run, split)[self.metric] for run in row.runs]) if row.runs else None

    def differences(self, row: MethodResult) -> dict[int, float]:
        """Return seed -> how much better than LoRA on the same backbone (+ is better), for the seeds of both.

        None for LoRA itself.
        """
        reference = next((other for other in self.methods if other.entrant == reference_of(row.entrant)), None)
        if reference is None or row is reference:
            return {}
        ours, theirs = ({run.seed: run.test[self.metric] for run in r.runs} for r in (row, reference))
        sign = 1 if self.higher_is_better else -1
        return {seed: sign * (score - theirs[seed]) for seed, score in ours.items() if seed in theirs}

    def difference(self, row: MethodResult) -> Difference | None:
        """Return how much better than LoRA with the same seeds (+ is better); None where there is nothing to pair."""
        by_seed = self.differences(row)
        return mean_of_pairs(list(by_seed.values())) if by_seed else None


def reference_of(entrant: Entrant) -> Entrant:
    """Return what an entrant is compared with: LoRA on the same backbone."""
    return replace(entrant, method=REFERENCE)


def have_one_metric(results: Sequence[TaskResult]) -> bool:
    """Return whether all tasks have one metric, so that means over them mean something."""
    return len({result.metric for result in results}) == 1


def entrants_of(results: Sequence[TaskResult]) -> list[Entrant]:
    """Return the entrants of all tasks, each once."""
    return list(dict.fromkeys(row.entrant for result in results for row in result.methods))


def paired_tasks(
    results: Sequence[TaskResult], entrant: Entrant
) -> list[tuple[TaskResult, MethodResult, MethodResult]]:
    """Return the tasks on which both the entrant and LoRA have runs, with the rows of the two."""
    rows = ((result, {row.entrant: row for row in result.methods if row.runs}) for result in results)
    reference = reference_of(entrant)
    return [
        (result, known[entrant], known[reference]) for result, known in rows if known.keys() >= {entrant, reference}
    ]


def mean_difference(results: Sequence[TaskResult], entrant: Entrant) -> Difference | None:
    """Return how much better than LoRA, in the mean over the tasks of both; the pairs are the seeds that all have."""
    by_task = [result.differences(row) for result, row, _ in paired_tasks(results, entrant)]
    seeds = sorted(set.intersection(*map(set, by_task))) if by_task else []
    return mean_of_pairs([fmean(by_seed[seed] for by_seed in by_task) for seed in seeds]) if seeds else None


def cost_ratios(results: Sequence[TaskResult], entrant: Entrant) -> dict[str, float]:
    """Return cost (column of `averages`) -> its ratio to LoRA's, geometric mean over the tasks of both."""
    pairs = [(averages(ours), averages(theirs)) for _, ours, theirs in paired_tasks(results, entrant)]
    return {name: geometric_mean(ours[name] / theirs[name] for ours, theirs in pairs) for name in COSTS if pairs}


def mean_result(results: Sequence[TaskResult]) -> TaskResult:
    """Average tasks of one metric into one, for a chart: scores and costs of each entrant and seed that all have."""
    metric = results[0].metric
    methods = []
    for row in results[0].methods:
        same_rows = [[other for other in r.methods if other.entrant == row.entrant] for r in results]
        by_task = [{run.seed: run for other in others for run in other.runs} for others in same_rows]
        runs = []
        for seed in sorted(set.intersection(*map(set, by_task))):
            same = [by_seed[seed] for by_seed in by_task]
            scores = {
                split: {metric: fmean(getattr(run, split)[metric] for run in same)}
                for split in ("test", "test_last", "val")
            }
            costs = {name: fmean(getattr(run, name) for run in same) for name in COSTS}
            runs.append(replace(same[0], folder="", **scores, **costs))
        methods.append(replace(row, grid={}, runs=tuple(runs)))
    return replace(results[0], name=f"mean of {len(results)} tasks", methods=tuple(methods), protocol=(), notes=())


def read_result(folder: Path) -> RunResult:
    """Read the result of a finished run; of the grid only what was chosen is tested."""
    config, summary = read_config(folder), read_summary(folder)
    metrics = {name: numbers(summary.get(name, {})) for name in ("test", "test_last", "val")}
    names = ("trainable_parameters", "adapter_bytes", "peak_memory_bytes", "seconds", "images", "device", "versions")
    if missing := [name for name in (*names, "selection") if name not in summary]:
        raise UserError(f"the summary.json of {folder} has no {missing[0]}; train it again with --overwrite")
    if any(summary["selection"]["metric"] not in found for found in metrics.values() if found):
        raise UserError(f"the summary.json of {folder} lacks the metric that chooses; train it again with --overwrite")
    images = min(config.data.images_per_batch, summary["images"]["train"]) * config.loop.accumulate
    return RunResult(
        str(folder),
        lr=config.loop.peak_lr,
        seed=config.seed,
        step_seconds=step_seconds(read_metrics(folder), images),
        **summary["selection"],
        **metrics,
        **{name: summary[name] for name in names},
    )


def numbers(metrics: dict[str, float | None]) -> dict[str, float]:
    """Return metrics with NaN where JSON has null."""
    return {name: math.nan if value is None else value for name, value in metrics.items()}


def step_seconds(rows: list[dict[str, Any]], images: int) -> float:
    """Return the median time of an optimiser step of so many images, from the speeds in metrics.jsonl.

    No validation is in it. NaN where there are no rows.
    """
    speeds = (row["images_per_second"] for row in rows if row["kind"] == "train")
    seconds = [images / speed for speed in speeds if speed > 0]
    return median(seconds) if seconds else math.nan


def averages(row: MethodResult) -> dict[str, float]:
    """Return the costs of an entrant's runs: means over the seeds, and the largest peak memory."""
    return {
        "trainable_parameters": row.runs[0].trainable_parameters,
        "adapter_bytes": round(fmean(run.adapter_bytes for run in row.runs)),
        "peak_memory_bytes": max(run.peak_memory_bytes for run in row.runs),
        "seconds": fmean(run.seconds for run in row.runs),
        "step_seconds": median(run.step_seconds for run in row.runs),
    }
