"""Cross-validation: a run for each fold, then the predictions of all images by the run that has not trained on them.

OUT/config.yaml ─ fold 1 .. K, each an ordinary run in OUT/fold-k ─ OUT/predictions.csv ─ OUT/summary.json, written last
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from snella.compare.statistics import spread
from snella.config.schema import TrainConfig, run_folder
from snella.config.validation import validate
from snella.console import Terminal, print_line, working
from snella.data.dataset import ImageData
from snella.errors import UserError
from snella.files import write_text
from snella.report.tables import csv_text, format_metric, is_share, new_table
from snella.runs.folder import (
    check_claim,
    claim,
    fold_folders,
    read_about,
    read_summary,
    state_of,
    versions,
    write_summary,
)
from snella.runs.predict import own_predictions
from snella.runs.train import train
from snella.tasks.registry import task_named

PREDICTED = "predictions.csv"


def cross_validate(
    config: TrainConfig,
    console: Console | None = None,
    *,
    finished: Callable[[Path, ImageData[Any]], object] = lambda folder, data: None,
) -> dict[str, Any]:
    """Train and test each of the config's folds that is not finished; return what summary.json holds.

    `finished` is called with the folder and the data of each fold, as `train` does.

    Raises:
        UserError: something given is wrong, or the training of a fold has diverged.
        snella.training.interrupt.Interrupted: Ctrl-C or SIGTERM; --resume goes on with the same fold.
    """
    console = console or Terminal()
    validate(config)
    folds, folder = config.data.folds, run_folder(config)
    if config.estimate:
        return train(config.changed(fold=1), console)
    check_claim(folder, config)
    if config.resume and state_of(folder) == "finished" and all(map(_finished, fold_folders(folder, config))):
        print_line(console, f"{folder} is finished; --overwrite trains it again")
        return read_summary(folder)
    claimed = False

    def claim_whole() -> None:
        nonlocal claimed, config
        claim(folder, config)
        claimed, config = True, config.changed(overwrite=False, resume=True)

    for fold, own in enumerate(fold_folders(folder, config), start=1):
        print_line(console, f"fold {fold} of {folds}")
        resume = {"resume": not config.overwrite, "out": str(own), "fold": fold}
        try:
            train(config.changed(**resume), console, before_claim=claim_whole, finished=finished)
        except UserError as error:
            if not claimed and fold == 1:
                raise
            raise UserError(
                f"fold {fold} of {folds}: {error}; other settings for all folds want another --out"
            ) from None
    return _finish(config, folder, console)


def _finished(folder: Path) -> bool:
    return state_of(folder) == "finished"


def _finish(config: TrainConfig, folder: Path, console: Console) -> dict[str, Any]:
    """Predict all images, write what was found, and print it."""
    task, folders = task_named(config.task), fold_folders(folder, config)
    if not task.generates:
        rows = list(_predictions(folder, folders, config.device, console))
        write_text(folder / PREDICTED, csv_text(rows))
        print_line(
            console, f"{len(rows)} images predicted by the fold that has not trained on them: {folder / PREDICTED}"
        )
    found = [read_summary(own) for own in folders]
    summary = {
        "folds": len(found),
        **_means("test", found, task.metrics),
        **_means("val", found, task.metrics),
        "by_fold": [{name: run[name] for name in ("test", "val", "images") if name in run} for run in found],
        "trainable_parameters": found[0]["trainable_parameters"],
        "adapter_bytes": round(fmean(run["adapter_bytes"] for run in found)),
        "peak_memory_bytes": max(run["peak_memory_bytes"] for run in found),
        "seconds": round(sum(run["seconds"] for run in found), 3),
        "device": found[0].get("device", ""),
        "seed": config.seed,
        "versions": versions(),
    }
    write_summary(folder, summary)
    names = task.shown_metrics(len(read_about(folders[0])["classes"]))
    table = new_table(f"{config.method.name}, {len(found)} folds", left=["test"], right=list(names.values()))
    for fold, run in enumerate(found, start=1):
        table.add_row(f"fold {fold}", *(_shown(name, run["test"][name]) for name in names))
    table.add_row("mean", *(_shown(name, summary["test"][name]) for name in names))
    table.add_row("standard deviation", *(_shown(name, summary["test_std"][name]) for name in names))
    console.print(table)
    print_line(console, f"runs, predictions and summary in {folder}")
    return summary


def _means(split: str, found: list[dict[str, Any]], metrics: Mapping[str, str]) -> dict[str, dict[str, float | None]]:
    """Return mean and sample standard deviation over the folds; None where a fold has no finite value."""
    means: dict[str, float | None] = {}
    deviations: dict[str, float | None] = {}
    for name in metrics:
        values = [run[split][name] for run in found]
        whole = all(value is not None and math.isfinite(value) for value in values)
        over = spread(values) if whole else None
        means[name], deviations[name] = (over.mean, over.std) if over else (None, None)
    return {split: means, f"{split}_std": deviations}


def _shown(metric: str, value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}" if is_share(metric) else format_metric(metric, value)


def _predictions(folder: Path, folders: list[Path], device: str, console: Console) -> Iterator[dict[str, Any]]:
    """Yield a row for each image: its name, its fold, its label where it has one, and what its run finds."""
    for fold, own in enumerate(folders, start=1):
        with working(console, f"predicting fold {fold}") as progress:
            for row in own_predictions(own, folder, device, progress):
                yield {"file": row.pop("file"), "fold": fold, **row}
