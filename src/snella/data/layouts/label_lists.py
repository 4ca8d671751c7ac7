"""Tables and lists of images inside a folder: `train.txt` ("path, label[, label]"), `metadata.csv` (file_name, label).

A file is a list if one of its columns names images of the folder, by path, by name or by name without ending. Its name
says the split (train.txt), or a column does; one without labels divides class folders into splits.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace

from snella.data.dataset import SPLITS
from snella.data.folders.choices import Choices
from snella.data.folders.image_lists import ImageList, found_lists, labelled_lists, listed_splits
from snella.data.folders.name_tables import class_names
from snella.data.folders.names import SPLIT_COLUMNS, SPLIT_NAMES, split_of
from snella.data.folders.tree import Tree
from snella.data.layouts.class_folders import class_folders
from snella.data.layouts.manifests import LABEL_COLUMNS, check_single, class_of_bits, joined_bits
from snella.data.listing import Listing, label_entries
from snella.errors import UserError, brief, counted, listed

BOXES = frozenset(("xmin", "ymin", "xmax", "ymax"))
BOXED = re.compile(r"(\S+)(?: -?[\d.]+){4}(?: \1(?: -?[\d.]+){4})* ?")  # a class and its boxes, as ImageNet's tables
# columns of labels in the order in which they are taken where they say the same
USUAL = (*LABEL_COLUMNS, "labels", "category", "target", "class_name", "classname", "label_name", "class_id", "classid")


class UnclearColumnError(UserError):
    """A table or list of images has several columns that may be their labels."""


def label_lists(found: Tree, choices: Choices) -> tuple[Listing, str] | None:
    """List the images that tables or lists of a folder name with labels, and the column of these; None without such.

    Raises:
        UserError: several columns of labels and none is chosen, an image with two labels, two files for a split.
    """
    everything = found_lists(found)
    lists = labelled_lists(found, everything, choices.label_column)
    if not lists:
        return None
    lists, column, left_out = _with_one_column(found, lists, choices)
    splits: dict[str, list[tuple[str, str]]] = defaultdict(list)
    label_of: dict[str, tuple[str, str]] = {}
    for one in lists:
        at, split_at = _position(one, column), _split_position(one)
        for name, cells in zip(one.images, one.cells, strict=True):
            label = cells[at]
            other = label_of.setdefault(name, (label, one.file))
            if other[0] != label:
                where = one.file if one.file == other[1] else f"{other[1]} and {one.file}"
                raise UserError(
                    f"{found.path(where)}: {name} has two labels, {other[0]} and {label}; keep one, or add --task "
                    "multilabel"
                )
            splits[SPLIT_NAMES[cells[split_at].lower()] if split_at is not None else one.split].append((name, label))
    files = [one.file for one in lists]
    if splits.keys() == {"all"} and (told := listed_splits(found, everything, label_of)):
        pairs, files = splits.pop("all"), [*files, *told[1]]
        for name, label in pairs:
            if name in told[0]:
                splits[told[0][name]].append((name, label))
        label_of = {name: label for name, label in label_of.items() if name in told[0]}
    classes, names, notes = _classes(found, [label for entries in splits.values() for _, label in entries])
    position = {label: i for i, label in enumerate(classes)}
    names_of_columns = _names(lists[0])
    if len(names_of_columns) > 1:
        notes = [f"the labels are column {column} (of {', '.join(names_of_columns)}; --label-column)", *notes]
    notes += [*left_out, *_unlisted(found, label_of)]
    layout = f"images listed in {', '.join(files)}"
    entries = {split: [(n, position[k]) for n, k in dict(splits[split]).items()] for split in SPLITS if split in splits}
    entries |= {"all": [(n, position[k]) for n, k in dict(splits["all"]).items()]} if "all" in splits else {}
    return Listing(layout, found.root, names, entries, notes=(*found.notes, *notes)), column


def _with_one_column(
    found: Tree, lists: Sequence[ImageList], choices: Choices
) -> tuple[list[ImageList], str, list[str]]:
    """Return the lists that have labels, the column of these, and notes. Raises UserError where it is not clear."""
    boxes = next((one for one in lists if {name.replace("_", "") for name in one.columns} >= BOXES), None)
    if boxes and choices.label_column is None:
        raise UserError(
            f"{found.path(boxes.file)} has boxes ({', '.join(boxes.columns)}): classes of objects, not of images; if "
            "each image shows one object, add --label-column and the column of their classes"
        )
    lists = list(lists) if choices.label_column else [_with_classes(one) for one in lists]
    column = _label_column(lists, choices)
    without = [one for one in lists if one.split == "test" and column not in _names(one)]
    lists = [one for one in lists if one not in without]
    values = {cells[_position(one, column)] for one in lists for cells in one.cells}
    if any(map(BOXED.fullmatch, values)):
        boxed = next(value for value in sorted(values) if BOXED.fullmatch(value))
        raise UnclearColumnError(
            f"{found.path(lists[0].file)} has boxes in column {column} ({brief(boxed)}): classes of objects, not of "
            "images; write the class alone, or sort the images into class folders"
        )
    if choices.label_column is None:
        try:
            check_single(found.path(lists[0].file), values, column)
        except UserError as error:
            raise UnclearColumnError(str(error)) from None
    return lists, column, [f"{one.file} has no column {column}, so its images are left out" for one in without]


def train_folders_and_lists(found: Tree) -> Listing | None:
    """List class folders of a train split beside val and test without, whose images a list labels, as ImageNet has it.

    Splits that no list labels are left out. None where this is not the layout.
    """
    split_at = {name: next(filter(None, map(split_of, name.split("/")[:-1])), None) for name in found.images}
    rest = {name for name, split in split_at.items() if split in ("val", "test")}
    if not rest or "train" not in split_at.values():
        return None
    try:
        train = class_folders(found.only(lambda name: split_at[name] == "train"))
    except UserError:
        return None
    classes = set(train.classes)
    if train.splits.keys() != {"train"} or any(classes.intersection(name.split("/")[:-1]) for name in rest):
        return None
    label_of: dict[str, str] = {}
    files = []
    for one in found_lists(found):
        for column in zip(*one.cells, strict=True):
            labels = [boxed[1] if (boxed := BOXED.fullmatch(cell)) else cell for cell in column]
            if classes.issuperset(labels) and rest.issuperset(one.images):
                label_of |= dict(zip(one.images, labels, strict=True))
                files.append(one.file)
                break
    if not label_of:
        return None
    splits = dict(train.splits)
    for split in ("val", "test"):
        entries = [(n, train.classes.index(label)) for n, label in label_of.items() if split_at[n] == split]
        splits |= {split: entries} if entries else {}
    left = [name for name in found.images if split_at[name] != "train" and name not in label_of]
    notes = [f"{counted(len(left), 'image')} without labels left out: {listed(left)}"] if left else []
    layout = f"{train.layout}, and images listed in {', '.join(files)}"
    return replace(train, layout=layout, splits=splits, notes=(*train.notes, *notes))


def split_by_lists(found: Tree, folders: Listing) -> Listing | None:
    """Divide class folders without splits by lists of images without labels; None where there are none."""
    label_of = dict(folders.splits.get("all", []))
    told = listed_splits(found, found_lists(found), label_of) if label_of else None
    if told is None:
        return None
    split_of, files = told
    splits = {split: [(n, label_of[n]) for n, of in split_of.items() if of == split] for split in SPLITS}
    splits = {split: entries for split, entries in splits.items() if entries}
    layout = f"{folders.layout} with the splits of {', '.join(files)}"
    return replace(folders, layout=layout, splits=splits, notes=(*folders.notes, *_unlisted(found, split_of)))


def _label_column(lists: Sequence[ImageList], choices: Choices) -> str:
    """Return the column of labels: a name, or a number counted from the image's, which is 0.

    Raises:
        UserError: none is chosen and several may be meant, or the one that is chosen is not there.
    """
    first = lists[0]
    names = _names(first)
    if choices.label_column is not None:
        wanted = choices.label_column.lower()
        if wanted in names:
            return wanted
        if wanted.isascii() and wanted.isdecimal() and 1 <= int(wanted) <= len(names):
            return names[int(wanted) - 1]
        raise UserError(
            f"--label-column {choices.label_column}: {first.file} has the columns {', '.join(names)}; name one"
        )
    usual = [name for name in USUAL if name in names]
    columns = [[cells[names.index(name)] for cells in first.cells] for name in usual]
    if usual and all(_determines(columns[0], other) and _determines(other, columns[0]) for other in columns[1:]):
        return usual[0]
    splits = _split_position(first)
    free = [i for i in range(len(names)) if i != splits]
    values = [[cells[i] for one in lists for cells in one.cells if i < len(cells)] for i in free]
    if free and (
        len(free) == 1 or (not first.columns[0] and all(_determines(values[0], other) for other in values[1:]))
    ):
        return names[free[0]]
    texts = [f"{names[i]} ({counted(len(set(column)), 'value')})" for i, column in zip(free, values, strict=True)]
    raise UnclearColumnError(
        f"{first.file} has several columns that may be labels: {', '.join(texts)}; choose one by --label-column"
    )


def _names(one: ImageList) -> list[str]:
    """Return what the columns of a list are called: by its header or, the image's being 0, by number."""
    return [column or str(i) for i, column in enumerate(one.columns, start=1)]


def _with_classes(one: ImageList) -> ImageList:
    """Join columns of 0 and 1, where no other column may be the labels. Raises UnclearColumnError for several ones."""
    rows = [dict(zip(one.columns, cells, strict=True)) for cells in one.cells]
    bits = [] if set(USUAL) & set(one.columns) or "" in one.columns else joined_bits(one.columns, rows)
    if not bits:
        return one
    kept = [i for i, name in enumerate(one.columns) if name not in bits]
    written = dict(zip(one.columns, one.titles, strict=True))
    try:
        named = [class_of_bits(row, bits, f"{one.file}, {name}") for row, name in zip(rows, one.images, strict=True)]
    except UserError as error:
        raise UnclearColumnError(str(error)) from None
    cells = tuple((written[of], *(row[i] for i in kept)) for of, row in zip(named, one.cells, strict=True))
    return replace(one, titles=(LABEL_COLUMNS[0], *(one.titles[i] for i in kept)), cells=cells)


def _determines(first: Sequence[str], other: Sequence[str]) -> bool:
    """Tell whether equal values in one column have equal values in the other, as coarser classes have."""
    return len(set(zip(first, other, strict=True))) == len(set(first))


def _position(one: ImageList, column: str) -> int:
    names = _names(one)
    if column not in names:
        raise UserError(f"{one.file} has no column {column}, as the other lists have; name it alike in all")
    return names.index(column)


def _split_position(one: ImageList) -> int | None:
    """Return the column that says the split, if its values are splits alone."""
    for i, name in enumerate(one.columns):
        if name in SPLIT_COLUMNS and all(cells[i].lower() in SPLIT_NAMES for cells in one.cells):
            return i
    return None


def _classes(found: Tree, labels: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...], list[str]]:
    """Return the different labels in order, the names of their classes, and notes."""
    values = label_entries(labels, labels)[0]
    named = class_names(found, values)
    if named is None:
        return values, values, []
    names, source = named
    return values, names, [f"names of the classes from {source}"]


def _unlisted(found: Tree, listed_images: Collection[str]) -> list[str]:
    rest = [name for name in found.images if name not in listed_images]
    return [f"{counted(len(rest), 'image')} that no list names left out: {listed(rest)}"] if rest else []
