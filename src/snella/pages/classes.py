"""The page of a classification: what is taken for what, which images, and whether its probabilities are to be believed.

Images come to their thumbnails in this order, until the page is full: the errors of each class, its least certain
images, then those of each cell of the confusion matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from snella.errors import counted
from snella.pages.calibration import (
    calibration_error,
    coverage,
    fitted_temperature,
    handed_over,
    probabilities,
    reliability,
)
from snella.pages.charts import ORDERS, confusion_chart, coverage_chart, reliability_chart
from snella.pages.intervals import Bounds, intervals, of_classes, rows_of
from snella.pages.kept import KeptRun
from snella.pages.parts import Cell, Chart, Clicked, Gallery, Grid, Part, Section, Shot, Words
from snella.pages.thumbnails import beside
from snella.report.outputs import Outputs
from snella.report.tables import NOTHING, percent
from snella.tasks.classification.class_rows import ClassRow

IN_A_ROW = 6  # images of a class's errors, and of its least certain ones
EXPLAINED = 12  # errors with a heat map
MAP_SIDE = 160  # pixels of the longer side of such an image, and of its map
IN_A_CELL = 12  # images of a cell of the confusion matrix
NAMED = 3  # images of a cell where no more thumbnails are made
SHOWN_CLASSES = 20  # classes whose images are shown, those with the most errors
MATRIX = 40  # classes of a matrix
MISTAKES = 15  # rows of the table of mistakes
ACCURACIES = (0.95, 0.99, 0.995)  # that images are handed to a person for


def class_bounds(run: KeptRun, outputs: Outputs) -> dict[str, Bounds]:
    """Return the interval of each metric."""
    logits, labels = outputs.values["logits"], outputs.values["labels"]
    return intervals(len(labels), of_classes(logits, labels))


class Told:
    """What a run tells of the images of a split."""

    def __init__(self, run: KeptRun, outputs: Outputs) -> None:
        self.run, self.names = run, outputs.names
        self.logits, self.labels = outputs.values["logits"], outputs.values["labels"]
        self.shares = probabilities(self.logits)  # (n, K)
        self.found = self.logits.argmax(1)
        self.confidence = self.shares.max(1)
        self.right = self.found == self.labels
        self.confusion, self.rows = rows_of(run.classes, self.logits, self.labels)

    def shot(self, i: int) -> Shot:
        """Return an image with what is told of it."""
        name = self.run.classes[self.found[i]]
        text = f"{name} {self.confidence[i]:.0%}"
        if not self.right[i]:
            text += f", is {self.run.classes[self.labels[i]]} ({self.shares[i, self.labels[i]]:.0%})"
        return Shot(self.names[i], text, self.run.thumbnails.of(self.names[i]))

    def gallery(self, chosen: np.ndarray, most: int, title: str = "") -> Gallery:
        """Return the first images of an order."""
        return Gallery([self.shot(i) for i in chosen[:most]], title, max(0, len(chosen) - most))


def class_sections(run: KeptRun, outputs: Outputs, bounds: Mapping[str, Bounds]) -> list[Section]:
    """Return the sections of a classification."""
    told = Told(run, outputs)
    images = Section("Images to look at", _images(told))
    return [
        Section("Which classes are taken for which", _confusion(told)),
        images,
        *_why(run, told),
        Section("Are its probabilities to be believed?", _calibration(run, told)),
        Section("How many images to hand to a person", _coverage(run, told)),
        Section("Each class", [_table(told.rows)]),
    ]


def _images(told: Told) -> list[Part]:
    """Return the most confident errors and the least certain images of the classes with the most errors."""
    parts: list[Part] = []
    classes = told.run.classes
    wrong = np.bincount(told.labels[~told.right], minlength=len(classes))
    chosen = np.argsort(-wrong, kind="stable")[:SHOWN_CLASSES]
    for k in chosen:
        own = np.flatnonzero(told.labels == k)
        if not len(own):
            continue
        errors = own[~told.right[own]]
        errors = errors[np.argsort(-told.confidence[errors], kind="stable")]
        unsure = own[np.argsort(told.confidence[own], kind="stable")]
        name = f"{classes[k]}: "
        if len(errors):
            title = f"{name}{counted(len(errors), 'error')} of {counted(len(own), 'image')}, the most confident first"
            parts.append(told.gallery(errors, IN_A_ROW, title))
        parts.append(told.gallery(unsure, IN_A_ROW, f"{name}the least certain"))
    if len(classes) > SHOWN_CLASSES:
        parts.append(Words([f"The {SHOWN_CLASSES} classes with the most errors, of {len(classes)}."]))
    return parts


def _why(run: KeptRun, told: Told) -> list[Section]:
    """Return the most confident errors with the heat map of what the told class rests on, where they are asked for."""
    if run.explain is None:
        return []
    errors = np.flatnonzero(~told.right)
    errors = errors[np.argsort(-told.confidence[errors], kind="stable")]
    shots = list[Shot]()
    for i in errors[:EXPLAINED]:
        picture = run.thumbnails.picture(told.names[i])
        if picture is not None:
            found = beside(picture, run.explain(picture, int(told.found[i])), side=MAP_SIDE)
            shots.append(replace(told.shot(i), thumbnail=run.thumbnails.add(found)))
    text = f"No image of {run.split} that can be shown is told wrong."
    if shots:
        text = (
            "The errors that it is surest of, each with a heat map: the brighter a place, the more it speaks for the "
        )
        text += "class that was told. A map says where the model looks, not whether it is right to."
    return [Section("What the most confident errors rest on", [Words([text]), Gallery(shots, wide=True)])]


def _confusion(told: Told) -> list[Part]:
    """Return the matrix, the images of a clicked cell, and the most frequent mistakes."""
    classes, confusion, parts = told.run.classes, told.confusion, list[Part]()
    wrong = confusion.sum(1) + confusion.sum(0) - 2 * confusion.diagonal()
    kept = np.sort(np.argsort(-wrong, kind="stable")[:MATRIX])
    if len(classes) > MATRIX:
        parts.append(Words([f"The {MATRIX} classes with the most mistakes, of {len(classes)}."]))
    mistakes = confusion.copy()
    np.fill_diagonal(mistakes, 0)
    pairs = np.argwhere(mistakes)
    pairs = pairs[np.argsort(-mistakes[tuple(pairs.T)], kind="stable")]
    listed = [(int(i), int(j)) for i, j in pairs[:MISTAKES]]
    cells = [(int(i), int(j)) for i in kept for j in kept if confusion[i, j]]
    order = dict.fromkeys([*listed, *sorted(cells, key=lambda pair: pair[0] == pair[1])])
    galleries = {_key(pair): _cell_gallery(told, *pair) for pair in order}
    parts += [
        Chart(confusion_chart(_cells(told, kept), len(kept)), "Confusion matrix: images by true and predicted class"),
        Clicked(galleries, "Click a cell, or a row of the table below, to see its images."),
    ]
    rows = [
        [
            Cell(classes[i], shows=_key((i, j))),
            classes[j],
            Cell(f"{confusion[i, j]:,}", float(confusion[i, j])),
            Cell(percent(confusion[i, j] / confusion[i].sum()), float(confusion[i, j] / confusion[i].sum())),
        ]
        for i, j in listed
    ]
    if rows:
        more = f"the {MISTAKES} most frequent of {len(pairs)} kinds" if len(pairs) > MISTAKES else ""
        parts.append(Grid(["is", "taken for", "images", "of the class"], rows, more, left=2))
    return parts


def _key(pair: tuple[int, int]) -> str:
    return f"{pair[0]},{pair[1]}"


def _cell_gallery(told: Told, i: int, j: int) -> Gallery:
    own = np.flatnonzero((told.labels == i) & (told.found == j))
    own = own[np.argsort(-told.confidence[own], kind="stable")]
    classes = told.run.classes
    title = f"{classes[i]} taken for {classes[j]}" if i != j else f"{classes[i]}, told right"
    room = told.run.thumbnails and not told.run.thumbnails.is_full
    return told.gallery(own, IN_A_CELL if room else NAMED, f"{title}: {counted(len(own), 'image')}, the surest first")


def _cells(told: Told, kept: Sequence[int] | np.ndarray) -> list[dict[str, object]]:
    """Return the cells of the matrix of these classes, with the places of their classes in each order."""
    classes, confusion = told.run.classes, told.confusion
    totals = np.maximum(confusion.sum(1), 1)
    ranks = [
        {k: place for place, k in enumerate(order)}
        for order in (
            list(kept),
            sorted(kept, key=lambda k: (told.rows[k].recall is None, told.rows[k].recall or 0.0)),
            sorted(kept, key=lambda k: -told.rows[k].count),
            sorted(kept, key=lambda k: classes[k]),
        )
    ]
    assert len(ranks) == len(ORDERS)
    return [
        {
            "true": classes[i],
            "predicted": classes[j],
            "count": int(confusion[i, j]),
            "text": f"{confusion[i, j]:,}" if confusion[i, j] else "",
            "share": float(confusion[i, j] / totals[i]),
            "cell": _key((int(i), int(j))),
            **{f"true_{r}": rank[i] for r, rank in enumerate(ranks)},
            **{f"predicted_{r}": rank[j] for r, rank in enumerate(ranks)},
        }
        for i in kept
        for j in kept
    ]


def _calibration(run: KeptRun, told: Told) -> list[Part]:
    """Return the calibration error and the reliability, before and after the temperature that is fitted to val."""
    before = reliability(told.confidence, told.right)
    found = {"as it is": before}
    val = run.outputs.get("val")
    rows = [["as it is", NOTHING, Cell(percent(calibration_error(before)), calibration_error(before))]]
    if val is not None and run.split != "val":
        temperature = fitted_temperature(val.values["logits"], val.values["labels"])
        after = reliability(probabilities(told.logits, temperature).max(1), told.right)
        found["with the temperature"] = after
        rows.append(["fitted to val", f"{temperature:.3g}", Cell(percent(calibration_error(after)))])
    lines = [
        "ECE is how far confidence and accuracy are apart, in the mean over the images: 0 is best. "
        "A temperature divides the logits; it changes no prediction."
    ]
    heads = ["probabilities", "temperature", f"ECE on {run.split}"]
    chart = Chart(reliability_chart(found), "Reliability diagram: accuracy by confidence")
    return [Words(lines), Grid(heads, rows), chart]


def _coverage(run: KeptRun, told: Told) -> list[Part]:
    """Return how accurate the surest images are, and how many are left to a person for some accuracies."""
    own, rows = coverage(told.confidence, told.right), list[list[Cell | str]]()
    val = run.outputs.get("val") if run.split != "val" else None
    seen = None
    if val is not None:
        sure = probabilities(val.values["logits"]).max(1)
        seen = coverage(sure, val.values["logits"].argmax(1) == val.values["labels"])
    for accuracy in ACCURACIES:
        there = handed_over(own, accuracy)
        handed = NOTHING if there is None else f"{there[0]:.1%} ({round(there[0] * len(told.labels)):,})"
        row: list[Cell | str] = [f"{accuracy:.1%}", Cell(handed, None if there is None else there[0])]
        if seen is not None:
            chosen = handed_over(seen, accuracy)
            row += _by_val(told, None if chosen is None else chosen[1])
        rows.append(row)
    heads = ["accuracy wanted", "to a person"]
    heads += ["threshold from val", "to a person then", f"accuracy on {run.split} then"] if seen is not None else []
    text = (
        "Images whose highest probability is below a threshold go to a person; the others are answered. "
        "A threshold that is chosen on val is what one can know beforehand."
    )
    chart = Chart(
        coverage_chart(own.answered.tolist(), own.accuracy.tolist()), "Accuracy by the share that is answered"
    )
    return [Words([text]), Grid(heads, rows), chart]


def _by_val(told: Told, threshold: float | None) -> list[str]:
    if threshold is None:
        return [NOTHING, NOTHING, NOTHING]
    answered = told.confidence >= threshold
    accuracy = percent(float(told.right[answered].mean())) if answered.any() else NOTHING
    return [f"{threshold:.3f}", percent(1 - float(answered.mean())), accuracy]


def _table(rows: Sequence[ClassRow]) -> Grid:
    cells = [
        [
            row.name,
            Cell(f"{row.count:,}", row.count),
            *(Cell(percent(x), x) for x in (row.recall, row.precision, row.f1)),
        ]
        for row in rows
    ]
    return Grid(["class", "images", "recall", "precision", "F1"], cells)
