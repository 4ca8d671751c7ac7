"""Images of any number of labels, in the layouts in which people have them.

A manifest; tables and lists in a folder; class folders that hold the same image several times; boxes of objects, whose
classes are the labels of the image.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from snella.data.folders.choices import Choices
from snella.data.folders.detections import detection_format, detections
from snella.data.folders.tree import Tree, tree
from snella.data.layouts.class_folders import class_folders
from snella.data.layouts.manifests import is_manifest
from snella.data.layouts.masks_beside import without_masks
from snella.data.layouts.registry import are_parts
from snella.data.layouts.rows import Table, list_data, with_choices
from snella.data.listing import Entry, Listing, natural_order
from snella.data.readers.labelled import Lister
from snella.data.readers.suspicions import equal_files
from snella.data.readers.tables import ImageTable, folder_table, manifest_table
from snella.errors import UserError, counted, listed
from snella.tasks.multilabel.columns import LABEL_COLUMN, read_labels

NO_LABEL = -1  # stratum of an image without labels


def lister(separator: str | None, known: Sequence[str] | None = None) -> Lister:
    """Return what lists images of several labels.

    Args:
        separator: as `read_labels` takes it.
        known: the labels of a trained model; None in a training.
    """

    def listing(data: str, seed: int, choices: Choices) -> Listing:
        layouts: Table[Listing] = (
            with_choices("a manifest (.csv, .jsonl)", is_manifest, partial(_manifest, separator, known)),
            with_choices(
                "a folder with a table of its images, or with class folders that share images",
                os.path.isdir,
                partial(_folder, separator, known),
                any_folder=True,
            ),
        )
        return list_data(layouts, data, seed=seed, holder="the folder of the images", choices=choices)

    return listing


def _manifest(separator: str | None, known: Sequence[str] | None, path: str, choices: Choices) -> Listing:
    return _of_table(manifest_table(path, repeated=True), choices, separator, known)


def _of_table(table: ImageTable, choices: Choices, separator: str | None, known: Sequence[str] | None) -> Listing:
    table, groups = table.grouped(choices.group_column)
    try:
        labels = read_labels(table, choices.label_column, separator, known)
    except UserError:
        if choices.label_column is None or not choices.of_run:
            raise
        labels = read_labels(table, None, separator, known)  # the columns of other data may be called otherwise
    notes = (*table.notes, *labels.notes)
    listing = _listing(table.layout, table.folder, labels.classes, labels.of_image, table.splits(), notes)
    return replace(listing, groups=groups)


def _folder(separator: str | None, known: Sequence[str] | None, path: str, choices: Choices) -> Listing:
    """List a folder by its table, by boxes or by class folders. Raises UserError where two of them may be meant."""
    found = tree(path)
    if detection_format(found) and choices.label_column is None and choices.classes is None:
        return _boxes(found)
    found = without_masks(found)
    table = None if choices.classes else folder_table(found, choices.label_column)
    try:
        folders, refusal = class_folders(found, choices), None
    except UserError as error:
        folders, refusal = None, error
    sure = folders is not None and len(folders.classes) > 1 and not are_parts(folders.classes)
    if table is None or (folders is not None and choices.classes):
        if folders is None:
            raise refusal or UserError(f"{path} has no class folders")
        return _shared(path, folders, known)
    if folders is not None and sure and choices.label_column is None:
        raise UserError(
            f"{path}: two readings: {counted(len(folders.classes), 'label')} ({listed(folders.classes)}) by the "
            f"folders, to choose by --classes top, or those of {table.name}, to choose by {LABEL_COLUMN}"
        )
    return _of_table(table, choices, separator, known)


def _shared(path: str, folders: Listing, known: Sequence[str] | None) -> Listing:
    """Join the images of class folders that are equal byte for byte, in each split: they have the labels of all."""
    of_image: dict[str, frozenset[str]] = {}
    splits: dict[str, list[str]] = {}
    joined = 0
    for split, entries in folders.splits.items():
        groups = equal_files([folders.path(name) for name, _ in entries], limit=None)
        single = set(range(len(entries))) - {i for group in groups for i in group}
        for group in sorted([*groups, *([i] for i in single)], key=lambda group: group[0]):
            name = entries[group[0]][0]
            of_image[name] = frozenset(folders.classes[entries[i][1]] for i in group)
            splits.setdefault(split, []).append(name)
            joined += len(of_image[name]) > 1
    if not joined and known is None:
        raise UserError(
            f"{path}: each image lies in one class folder alone, so its labels are classes; --task classify learns them"
        )
    notes = (
        *folders.notes,
        f"{counted(joined, 'image')} in several class folders, equal byte for byte: one image each",
    )
    split_of = {name: split for split, names in splits.items() for name in names}
    return _listing(f"{folders.layout}, shared images", folders.folder, folders.classes, of_image, split_of, notes)


def _boxes(found: Tree) -> Listing:
    """List images by the classes of the objects in them."""
    read = detections(found)
    of_image = {name: frozenset(shape.label for shape in shapes) for name, shapes in read.shapes.items()}
    classes = sorted({label for of in of_image.values() for label in of}, key=natural_order)
    rest = [name for name in found.images if name not in of_image]
    notes = [*found.notes, f"the labels are the classes of the objects in an image ({read.in_words()})"]
    notes += [f"{counted(len(rest), 'image')} without annotations left out: {listed(rest)}"] if rest else []
    split_of = {name: read.splits.get(name, "all") for name in of_image}
    return _listing(f"images of {read.kind}", found.root, classes, of_image, split_of, notes)


def _listing(
    layout: str,
    folder: str,
    classes: Sequence[str],
    of_image: Mapping[str, frozenset[str]],
    split_of: Mapping[str, str],
    notes: Sequence[str],
) -> Listing:
    """Return the listing; the stratum of an image is its rarest label."""
    position = {name: k for k, name in enumerate(classes)}
    counts = Counter(name for of in of_image.values() for name in of)
    splits: dict[str, list[Entry]] = {}
    for image, of in of_image.items():
        rarest = min(of, key=lambda name: (counts[name], position[name]), default=None)
        stratum = NO_LABEL if rarest is None else position[rarest]
        splits.setdefault(split_of[image], []).append((image, stratum))
    targets = {image: tuple(float(name in of) for name in classes) for image, of in of_image.items()}
    return Listing(layout, folder, tuple(classes), splits, notes=tuple(notes), targets=targets, binary=True)
