"""The page of a run: what was trained on what, how well it does, how it came to it, and how to do it again."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snella.config.recipe import to_yaml
from snella.errors import counted
from snella.pages.charts import budget_chart, loss_curves, metric_curve
from snella.pages.classes import class_bounds, class_sections
from snella.pages.intervals import RESAMPLES, Bounds
from snella.pages.kept import KeptRun
from snella.pages.others import (
    label_bounds,
    label_sections,
    quantity_bounds,
    quantity_sections,
    region_bounds,
    region_sections,
    sample_sections,
)
from snella.pages.parts import Cell, Chart, Grid, Page, Part, Section, Words
from snella.pages.thumbnails import MOST
from snella.report.allocation import kept_shares
from snella.report.outputs import Outputs
from snella.report.rows import read_allocations, read_metrics
from snella.report.tables import NOTHING, decimal_bytes, duration, format_metric
from snella.runs.folder import CONFIG
from snella.tasks.registry import task_named


@dataclass(frozen=True)
class TaskPage:
    """What the page of a task has besides that of every run, from what is kept of the images of a split."""

    bounds: Callable[[KeptRun, Outputs], dict[str, Bounds]]
    sections: Callable[[KeptRun, Outputs, Mapping[str, Bounds]], list[Section]]


# of tasks that are not here a page has what all runs have
TASK_PAGES = {
    "classify": TaskPage(class_bounds, class_sections),
    "multilabel": TaskPage(label_bounds, label_sections),
    "regress": TaskPage(quantity_bounds, quantity_sections),
    "segment": TaskPage(region_bounds, region_sections),
}


def run_page(run: KeptRun, notes: list[str]) -> Page:
    """Return the page of a run; `notes` are said at its top."""
    task = TASK_PAGES.get(run.about["task"])
    notes = [*notes, *run.notes]
    bounds = {split: task.bounds(run, found) for split, found in run.outputs.items()} if task else {}
    sections = [Section("How well it does", _scores(run, bounds))]
    found = run.outputs.get(run.split)
    if task and found:
        sections += task.sections(run, found, bounds[run.split])
    elif task and not run.notes:
        again = f"snella evaluate {shlex.quote(str(run.folder))} --split {run.split}"
        notes = [*notes, f"This run keeps nothing of each image, so there is little to show: {again} writes it."]
    if task_named(run.about["task"]).generates:
        sections += sample_sections(run)
    sections += [*_training(run), *_budget(run), *_again(run)]
    if found and run.thumbnails.made:
        made = len(run.thumbnails.made)
        full = f"; a page has {MOST} at most" if run.thumbnails.is_full else ""
        text = f"Pictures of {made:,} of the {len(found.names):,} images of {run.split} are in this page{full}."
        sections[-1] = Section(sections[-1].title, [*sections[-1].parts, Words([text])])
    return Page(_title(run), _lead(run), _facts(run), sections, notes, run.thumbnails.made)


def _title(run: KeptRun) -> str:
    return f"{run.config.method.name} on {Path(run.config.data.source or '').name or run.config.data.source}"


def _lead(run: KeptRun) -> str:
    count = len(run.classes)
    what = {"classify": ("class", "classes"), "multilabel": ("label", "labels"), "regress": ("quantity", "quantities")}
    words = f" {counted(count, *what.get(run.about['task'], ('class', 'classes')))}," if count else ""
    images = ", ".join(f"{n:,} {split}" for split, n in run.summary.get("images", {}).items())
    model = f"{run.about['backbone']['name']}, tuned by {run.config.method.name} to {run.about['task']}"
    return f"{model}:{words} {images} images."


def _facts(run: KeptRun) -> list[tuple[str, str]]:
    summary = run.summary
    return [
        ("data", str(run.config.data.source)),
        ("trainable parameters", f"{summary['trainable_parameters']:,}"),
        ("adapter", decimal_bytes(summary["adapter_bytes"])),
        ("peak memory of a step", decimal_bytes(summary["peak_memory_bytes"])),
        ("training", duration(summary["seconds"])),
        ("device", str(summary.get("device", NOTHING))),
        ("seed", str(summary["seed"])),
    ]


def _scores(run: KeptRun, bounds: Mapping[str, Mapping[str, Bounds]]) -> list[Part]:
    """Return the metrics of test and val with their intervals."""
    splits = [split for split in ("test", "val") if split in run.summary]
    names = task_named(run.about["task"]).shown_metrics(len(run.classes))
    rows: list[list[Cell | str]] = []
    for metric, name in names.items():
        row: list[Cell | str] = [name]
        for split in splits:
            value = run.summary[split].get(metric)
            row.append(NOTHING if value is None else Cell(format_metric(metric, value), value))
            if split in bounds:
                found = bounds[split].get(metric)
                ends = (format_metric(metric, end) for end in (found.low, found.high)) if found else (NOTHING,)
                row.append(" to ".join(ends))
        rows.append(row)
    heads = ["", *(head for s in splits for head in ((s, "95 % interval") if s in bounds else (s,)))]
    parts: list[Part] = [Grid(heads, rows)]
    if bounds:
        text = f"Intervals are those of the bootstrap: percentiles of {RESAMPLES:,} resamples of the images, seed 0."
        parts.append(Words([f"{text} What another training would give is not in them."]))
    return parts


def _training(run: KeptRun) -> list[Section]:
    """Return the curves; none where metrics.jsonl is lost."""
    selection = run.summary.get("selection", {})
    rows = read_metrics(run.folder, selection.get("metric"))
    val = [row for row in rows if row["kind"] == "val"]
    if not val:
        return []
    steps = val[-1]["step"] / val[-1]["epoch"]
    train = [(row["step"] / steps, row["loss"]) for row in rows if row["kind"] == "train"]
    losses = [(row["epoch"], row.get("loss", math.nan)) for row in val]
    parts: list[Part] = [Chart(loss_curves(train, losses), "Loss of the training and of val by epoch")]
    metric = selection.get("metric")
    if metric is not None and metric != "loss":
        pairs = [(row["epoch"], row[metric]) for row in val]
        known = [(value, epoch) for epoch, value in pairs if math.isfinite(value)]
        best = _best(known, higher=selection["higher_is_better"])
        name = task_named(run.about["task"]).metrics.get(metric, metric)
        parts.append(Chart(metric_curve(pairs, metric, f"{name} on val", best), f"{name} on val by epoch"))
    return [Section("How the training went", parts)]


def _best(known: list[tuple[float, int]], *, higher: bool) -> int | None:
    """Return the epoch of the best value, the first of equal ones."""
    return max(known, key=lambda pair: (pair[0] if higher else -pair[0], -pair[1]))[1] if known else None


def _budget(run: KeptRun) -> list[Section]:
    """Return where the budget went; nothing of methods that have none."""
    records = read_allocations(run.folder)
    if not records:
        return []
    shares = kept_shares(records)
    first, last = shares.overall[[0, -1]]
    text = (
        f"Of {shares.entries:,} entries of the update its budget kept {first:.0%} at first and {last:.0%} at the end: "
        "the share of each weight matrix, by block."
    )
    return [Section("Where the budget went", [Words([text]), Chart(budget_chart(shares), "Kept share of each matrix")])]


def _again(run: KeptRun) -> list[Section]:
    """Return the settings, the versions and the command that trains it again."""
    command = ["snella", "train", "--recipe", str(run.folder / CONFIG), "--out", "NEW_FOLDER"]
    versions: Mapping[str, Any] = run.summary.get("versions", {})
    parts: list[Part] = [
        Words([shlex.join(command)], code=True),
        Words(to_yaml(run.config).splitlines(), code=True, title="All settings"),
        Words([f"{name} {value}" for name, value in versions.items()], code=True, title="Versions"),
    ]
    return [Section("How to do it again", parts)]
