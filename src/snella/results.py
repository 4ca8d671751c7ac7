"""What runs came to, side by side: read from their run folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from snella.report.intervals import Difference, Spread, paired_difference, spread
from snella.runfolder import read_config, read_rows, read_summary

REFERENCE = "lora"  # what the other methods are compared with
OWN_LINES = 3  # of a task's protocol; the others are the same for all tasks of a suite


@dataclass(frozen=True)
class RunResult:
    """A finished run; its metrics by name."""

    folder: str
    lr: float
    seed: int
    metric: str  # the one that chooses
    higher_is_better: bool
    test: dict[str, float]  # of the best epoch on val
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
class MethodResult:
    """A method on a task."""

    method: str
    lr: float | None  # the best of the grid on val; None: no run of the grid finished
    grid: dict[float, float | None]  # learning rate -> val score with the first seed; None: failed
    runs: tuple[RunResult, ...]  # at `lr`, by seed


@dataclass(frozen=True)
class TaskResult:
    """All methods on a task."""

    name: str
    metric: str  # the one that chooses
    label: str  # what people call it
    higher_is_better: bool
    methods: tuple[MethodResult, ...]
    protocol: tuple[str, ...]
    notes: tuple[str, ...]

    def spread(self, row: MethodResult, split: str) -> Spread | None:
        """Of the metric over the seeds; `split` is test, test_last or val. None: no run finished."""
        return spread([getattr(run, split)[self.metric] for run in row.runs]) if row.runs else None

    def difference(self, row: MethodResult) -> Difference | None:
        """How much better than LoRA with the same seeds (+ is better); None where there is nothing to pair."""
        reference = next((other for other in self.methods if other.method == REFERENCE), None)
        if reference is None or row is reference:
            return None
        ours, theirs = ({run.seed: run.test[self.metric] for run in r.runs} for r in (row, reference))
        seeds = [seed for seed in ours if seed in theirs]
        if not seeds:
            return None
        pair = [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]
        return paired_difference(*(pair if self.higher_is_better else reversed(pair)))


def read_result(folder: Path) -> RunResult:
    """What a finished run came to."""
    config, summary = read_config(folder), read_summary(folder)
    metrics = {name: summary[name] for name in ("test", "test_last", "val")}
    names = ("trainable_parameters", "adapter_bytes", "peak_memory_bytes", "seconds", "images", "device", "versions")
    images = min(config.batch_size, summary["images"]["train"]) * config.accumulate
    return RunResult(
        str(folder),
        lr=config.lr,
        seed=config.seed,
        step_seconds=step_seconds(read_rows(folder / "metrics.jsonl"), images),
        **summary["selection"],
        **metrics,
        **{name: summary[name] for name in names},
    )


def step_seconds(rows: list[dict[str, Any]], images: int) -> float:
    """Median time of an optimiser step of so many images, from the speeds in metrics.jsonl; no validation is in it."""
    return median(images / row["images_per_second"] for row in rows if row["kind"] == "train")


def averages(row: MethodResult) -> dict[str, float]:
    """Costs of a method's runs: means over the seeds, of the peak memory the largest."""
    return {
        "trainable_parameters": row.runs[0].trainable_parameters,
        "adapter_bytes": round(fmean(run.adapter_bytes for run in row.runs)),
        "peak_memory_bytes": max(run.peak_memory_bytes for run in row.runs),
        "seconds": fmean(run.seconds for run in row.runs),
        "step_seconds": median(run.step_seconds for run in row.runs),
    }
