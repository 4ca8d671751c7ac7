"""The pages of the other tasks: labels, quantities, masks, generated images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from snella.pages.charts import interval_chart, scatter_chart
from snella.pages.intervals import Bounds, intervals, of_labels, of_quantities, of_regions, resamples
from snella.pages.kept import KeptRun
from snella.pages.parts import Cell, Chart, Clicked, Figure, Gallery, Grid, Part, Section, Shot, Words
from snella.pages.thumbnails import figure_uri
from snella.report.outputs import Outputs
from snella.report.tables import NOTHING, percent
from snella.tasks.multilabel.label_rows import label_rows

SHOWN = 20  # labels, quantities or classes that images or charts are shown of
IN_A_ROW = 6  # images of a gallery
DRAWN = 2000  # points of a scatter
LARGEST = 12  # errors
GRIDS = 4  # sample grids between the first and the last


def within(bounds: Mapping[str, Bounds], name: str, shown: str = ".1%") -> str:
    """Write an interval; a dash where there is none."""
    found = bounds.get(name)
    return NOTHING if found is None else f"{found.low:{shown}} to {found.high:{shown}}"


# ---- labels


def label_bounds(run: KeptRun, outputs: Outputs) -> dict[str, Bounds]:
    """Return the interval of each metric, and of each label's average precision."""
    found, true = outputs.values["probabilities"], outputs.values["targets"]
    return intervals(len(true), of_labels(found, true, run.about["thresholds"]), cost=true.shape[1])


def label_sections(run: KeptRun, outputs: Outputs, bounds: Mapping[str, Bounds]) -> list[Section]:
    """Return the sections of a multi-label classification."""
    found, true = outputs.values["probabilities"], outputs.values["targets"].astype(bool)
    known = torch.from_numpy(found), torch.from_numpy(outputs.values["targets"])
    rows = label_rows(run.classes, *known, run.about["thresholds"])
    cells = [
        [
            row.name,
            Cell(f"{row.count:,}", row.count),
            Cell(percent(row.average_precision), row.average_precision),
            within(bounds, f"ap:{k}"),
            Cell(f"{row.threshold:.3f}", row.threshold),
            *(Cell(percent(x), x) for x in (row.recall, row.precision, row.f1)),
        ]
        for k, row in enumerate(rows)
    ]
    heads = ["label", "images", "average precision", "95 % interval", "threshold", "recall", "precision", "F1"]
    parts: list[Part] = [Grid(heads, cells)]
    if (count := resamples(*true.shape)) < resamples(len(true)):
        parts.append(Words([f"Intervals are of {count} resamples: the images and labels are many."]))
    galleries: list[Part] = []
    for k in np.argsort([2.0 if row.f1 is None else row.f1 for row in rows], kind="stable")[:SHOWN]:
        without, having = np.flatnonzero(~true[:, k]), np.flatnonzero(true[:, k])
        over = without[np.argsort(-found[without, k], kind="stable")]
        under = having[np.argsort(found[having, k], kind="stable")]
        for title, chosen in (
            ("it is not there, and thought likely", over),
            ("it is there, and thought unlikely", under),
        ):
            shots = [
                Shot(outputs.names[i], f"{found[i, k]:.0%}", run.thumbnails.of(outputs.names[i]))
                for i in chosen[:IN_A_ROW]
            ]
            if shots:
                galleries.append(Gallery(shots, f"{run.classes[k]}: {title}"))
    return [Section("Each label", parts), Section("Images to look at", galleries)]


# ---- quantities


def quantity_bounds(run: KeptRun, outputs: Outputs) -> dict[str, Bounds]:
    """Return the interval of each metric, and of each quantity's."""
    std = [scale["std"] for scale in run.about["scales"]]
    return intervals(len(outputs.names), of_quantities(outputs.values["predicted"], outputs.values["true"], std))


def quantity_sections(run: KeptRun, outputs: Outputs, bounds: Mapping[str, Bounds]) -> list[Section]:
    """Return the sections of a regression."""
    predicted, true = outputs.values["predicted"], outputs.values["true"]
    rows = []
    for k, row in enumerate(run.summary.get("targets", [])):
        cells: list[Cell | str] = [row["name"], Cell(f"{row['count']:,}", row["count"])]
        for name in ("mae", "rmse", "r2"):
            cells += [Cell(f"{row[name]:.4g}", row[name]), within(bounds, f"{name}:{k}", ".4g")]
        rows.append(cells)
    heads = ["quantity", "images", "MAE", "95 % interval", "RMSE", "95 % interval", "R2", "95 % interval"]
    parts: list[Part] = [Grid(heads, rows)] if rows else []
    order = np.random.default_rng(0).permutation(len(true))[:DRAWN]
    for k, name in enumerate(run.classes[:SHOWN]):
        picked = [outputs.names[i] for i in order]
        chart = scatter_chart(true[order, k].tolist(), predicted[order, k].tolist(), picked, name)
        parts.append(Chart(chart, f"Predicted against true values of {name}"))
    if len(true) > DRAWN:
        parts.append(Words([f"{DRAWN:,} of {len(true):,} images are drawn, taken at random."]))
    error = np.abs(predicted - true) / np.array([scale["std"] for scale in run.about["scales"]])
    worst = np.argsort(-error.max(1), kind="stable")[:LARGEST]

    def shot(i: int) -> Shot:
        pairs = zip(run.classes, predicted[i], true[i], strict=True)
        text = ", ".join(f"{name} {told:.4g}, is {known:.4g}" for name, told, known in list(pairs)[:3])
        return Shot(outputs.names[i], text, run.thumbnails.of(outputs.names[i]))

    largest = Gallery([shot(i) for i in worst])
    drawn = {f"image:{outputs.names[i]}": Gallery([shot(i)], outputs.names[i]) for i in order}
    parts.append(Clicked(drawn, "Click a point to see its image."))
    return [Section("Each quantity", parts), Section("The largest errors", [largest])]


# ---- masks


def region_bounds(run: KeptRun, outputs: Outputs) -> dict[str, Bounds]:
    """Return the interval of each metric, and of each class's IoU."""
    counts = outputs.values["counts"]
    return intervals(len(counts), of_regions(counts), cost=counts[0].size)


def region_sections(run: KeptRun, outputs: Outputs, bounds: Mapping[str, Bounds]) -> list[Section]:
    """Return the sections of a segmentation."""
    rows = run.summary.get("classes", [])
    cells = [
        [
            row["name"],
            Cell(f"{row['pixels']:,}", row["pixels"]),
            Cell(percent(row["iou"]), row["iou"]),
            within(bounds, f"iou:{k}"),
            *(Cell(percent(row[name]), row[name]) for name in ("dice", "recall", "precision")),
        ]
        for k, row in enumerate(rows)
    ]
    heads = ["class", "pixels", "IoU", "95 % interval", "Dice", "recall", "precision"]
    drawn = [
        {"name": row["name"], "value": row["iou"], "low": bounds[f"iou:{k}"].low, "high": bounds[f"iou:{k}"].high}
        for k, row in enumerate(rows)
        if row["iou"] is not None and f"iou:{k}" in bounds
    ]
    parts: list[Part] = [Grid(heads, cells)]
    if drawn:
        parts.append(Chart(interval_chart(drawn[:SHOWN], "IoU", share=True), "IoU of each class, with its interval"))
    met, true, _ = outputs.values["counts"].sum(2).T
    wrong = 1 - met / np.maximum(true, 1)
    order = np.argsort(-wrong, kind="stable")[:LARGEST]
    named = ((outputs.names[i], f"{wrong[i]:.1%} of its pixels are wrong") for i in order)
    worst = Gallery([Shot(name, text, run.thumbnails.of(name)) for name, text in named])
    return [
        Section("Each class", parts),
        Section("Where it is worst", [*_figures(run.folder, {"worst": "The images with most wrong pixels"}), worst]),
        Section("What was found", _figures(run.folder, {
            "overlays": "Images spread over the split: image, mask, prediction, wrong pixels",
            "confusion": "Which classes are taken for which, in pixels",
        })),
    ]  # fmt: skip


def _figures(folder: Path, labels: Mapping[str, str]) -> list[Part]:
    found = {label: figure_uri(folder / f"{name}.png") for name, label in labels.items()}
    return [Figure(source, label) for label, source in found.items() if source is not None]


# ---- generated images


def sample_sections(run: KeptRun) -> list[Section]:
    """Return the sections of a run that makes images: its grids before, through and after the training."""
    samples = run.folder / "samples"
    between = sorted(samples.glob("epoch-*.png"))
    every = max(1, -(-len(between) // GRIDS))
    files = [samples / "before.png", *between[::every], samples / "after.png"]
    parts: list[Part] = [
        Figure(source, path.stem.replace("-0", " ").replace("-", " "), pixelated=True)
        for path in files
        if (source := figure_uri(path)) is not None
    ]
    beside = _figures(
        run.folder, {"before-after": "Before, after, and real images", "levels": "Loss by how much noise there was"}
    )
    return [Section("Images that it makes", parts), Section("Before and after", beside)]
