"""Images with numbers: of the columns of a table, or those that their classes stand for."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from snella.config.fields import read_number
from snella.data.folders.choices import Choices
from snella.data.folders.tree import tree
from snella.data.layouts import registry
from snella.data.layouts.label_lists import USUAL
from snella.data.layouts.manifests import is_manifest
from snella.data.layouts.masks_beside import without_masks
from snella.data.layouts.rows import Layout, list_data, with_choices
from snella.data.listing import Entry, Listing
from snella.data.readers.labelled import Lister
from snella.data.readers.tables import ImageTable, folder_table, manifest_table
from snella.errors import UserError, brief, counted, listed

TARGET_COLUMN = "--target-column"
NAMES = ("target", "value", "score", "y", *USUAL)  # of columns of numbers, where there are several
OF_CLASS = "value"  # what the number is called that a class stands for
STRATA = 4  # parts of equal size by the first number, in which splits are drawn
DIVIDED_FROM = 40  # images from which on there are such parts


def lister(target_column: str | None, known: Sequence[str] | None = None) -> Lister:
    """Return what lists images with numbers.

    Args:
        target_column: the columns that hold them, with commas between them; None: found, where it is sure.
        known: what the numbers of a trained model are called; None in a training.
    """

    def columns(table: ImageTable) -> list[str]:
        if known is not None and set(known) <= set(table.columns):
            return list(known)
        return _columns(table, target_column)

    def manifest(path: str, choices: Choices) -> Listing:
        table, groups = manifest_table(path).grouped(choices.group_column)
        return replace(_of_table(table, columns(table)), groups=groups)

    def folder(path: str, choices: Choices) -> Listing:
        table = None if choices.classes or choices.label_pattern else folder_table(without_masks(tree(path)))
        if table is not None and (target_column is not None or table.mostly(_is_number)):
            table, groups = table.grouped(choices.group_column)
            return replace(_of_table(table, columns(table)), groups=groups)
        if target_column is not None and not choices.of_run:
            raise UserError(f"{TARGET_COLUMN}: {path} holds no table or list of its images; leave it out")
        return _of_classes(
            list_data(registry.LABELLED, path, seed=0, holder="the folder of the images", choices=choices)
        )

    layouts = (
        with_choices("a manifest (.csv, .jsonl)", is_manifest, manifest),
        with_choices(
            "a folder with a table of its images, or of class folders called as numbers",
            os.path.isdir,
            folder,
            any_folder=True,
        ),
        *(_with_levels(layout) for layout in registry.LABELLED if not layout.any_folder),
    )

    def listing(data: str, seed: int, choices: Choices) -> Listing:
        return list_data(layouts, data, seed=seed, holder="the folder of the images", choices=choices)

    return listing


def _with_levels(layout: Layout[Listing]) -> Layout[Listing]:
    def of_levels(path: str, seed: int, choices: Choices) -> Listing:
        return _of_classes(layout.list(path, seed, choices))

    return replace(layout, list=of_levels)


def _is_number(cell: str) -> bool:
    return _number(cell) is not None


def _number(cell: str) -> float | None:
    """Return a finite number as tables write it; None for any other text."""
    try:
        value = read_number(cell, float)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _columns(table: ImageTable, asked: str | None) -> list[str]:
    """Return the columns of numbers. Raises UserError where several may be meant and none is named."""
    if asked is not None:
        return table.named(asked, TARGET_COLUMN)
    numbers = table.mostly(_is_number)
    usual = [name for name in numbers if name.lower() in NAMES]
    if len(numbers) != 1 and len(usual) != 1:
        what = f"several columns of numbers: {listed(numbers, 8)}" if numbers else "no column of numbers"
        remedy = f"choose one or several by {TARGET_COLUMN} A,B" if numbers else "add one"
        raise UserError(f"{table.name} has {what}; {remedy}")
    return numbers if len(numbers) == 1 else usual


def _of_table(table: ImageTable, columns: Sequence[str]) -> Listing:
    targets: dict[str, tuple[float, ...]] = {}
    for row in table.rows:
        values = {name: _number(row.cells[name]) for name in columns}
        odd = next((name for name, value in values.items() if value is None), None)
        if odd is not None:
            cell = row.cells[odd]
            is_what = "empty" if not cell else f"{brief(cell)}, which is not a finite number"
            raise UserError(f"{row.place}: {odd} is {is_what}; write a number such as 1.5, or remove the row")
        if row.image in targets:
            raise UserError(f"{row.place}: {row.image} is there twice; keep one")
        targets[row.image] = tuple(value for value in values.values() if value is not None)
    note = f"{counted(len(columns), 'number')} of an image: {listed(columns, 8)}"
    rest = [name for name in table.columns if name not in columns]
    notes = [*table.notes, note, *([f"other columns: {listed(rest, 8)} ({TARGET_COLUMN})"] if rest else [])]
    return _listing(table.layout, table.folder, columns, targets, table.splits(), notes)


def _of_classes(found: Listing) -> Listing:
    """Return images of classes with the numbers that these stand for. Raises UserError for a class that is none."""
    values = [_number(name) for name in found.classes] if not found.levels else list(found.levels)
    for name, value in zip(found.classes, values, strict=True):
        if value is None:
            raise UserError(
                f"{found.folder or found.layout}: class {name!r} is not a number to learn; add --task classify, or "
                "give a table with a column of numbers"
            )
    numbers = [value for value in values if value is not None]
    targets = {name: (numbers[label],) for entries in found.splits.values() for name, label in entries}
    shown = ", ".join(f"{name} {value:.4g}" for name, value in zip(found.classes, numbers, strict=True))
    note = f"the number of an image is that of its class: {shown}" if found.levels else "a class is its number"
    return replace(found, classes=(OF_CLASS,), targets=targets, binary=False, levels=(), notes=(*found.notes, note))


def _listing(
    layout: str,
    folder: str,
    columns: Sequence[str],
    targets: Mapping[str, tuple[float, ...]],
    split_of: Mapping[str, str],
    notes: Sequence[str],
) -> Listing:
    """Return the listing; the stratum of an image is its quarter by the first number."""
    ranked = sorted(targets, key=lambda name: (targets[name], name))
    strata = STRATA if len(targets) >= DIVIDED_FROM else 1
    splits: dict[str, list[Entry]] = {}
    stratum = {name: place * strata // len(ranked) for place, name in enumerate(ranked)}
    for name in targets:
        splits.setdefault(split_of[name], []).append((name, stratum[name]))
    return Listing(layout, folder, tuple(columns), splits, notes=tuple(notes), targets=targets)
