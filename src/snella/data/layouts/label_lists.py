"""Tables and lists of images inside a folder: `train.txt` ("path, label[, label]"), `metadata.csv` (file_name, label).

A file is a list if one of its columns names images of the folder, by path, by name or by name without ending. Its name
says the split (train.txt), or a column does; one without labels divides class folders into splits.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from snella.data.dataset import SPLITS
from snella.data.folders.choices import Choices
from snella.data.folders.name_tables import class_names
from snella.data.folders.names import SPLIT_NAMES, UNLABELLED, split_and_rest
from snella.data.folders.tree import Tree, as_written, has_image_ending, image_resolver
from snella.data.images import SUFFIXES
from snella.data.layouts.manifests import (
    LABEL_COLUMNS,
    SPLIT_COLUMNS,
    check_single,
    class_of_bits,
    joined_bits,
    read_table,
)
from snella.data.listing import Listing, label_entries
from snella.data.paths import read_text
from snella.errors import UserError, counted, listed

BOXES = frozenset(("xmin", "ymin", "xmax", "ymax"))
NUMBERED = ("images.txt", "train_test_split.txt")  # of CUB-200
ENDINGS = (".txt", ".csv", ".tsv", ".lst", ".list", ".jsonl")
_OF_LISTS = frozenset(
    (
        *("list", "lists", "label", "labels", "annotation", "annotations", "image", "images", "set", "sets", "split"),
        *("file", "files", "meta", "metadata", "data", "gt", "info", "class", "classes", "names", "ids", "id"),
    )
)
_WITH_ENDING = re.compile(rf"(.*?(?:{'|'.join(map(re.escape, SUFFIXES))}))(?:\s+(.*))?$", re.I)
# columns of labels in the order in which they are taken where they say the same
USUAL = (*LABEL_COLUMNS, "labels", "category", "target", "class_name", "classname", "label_name", "class_id", "classid")
STEMS = 0.2  # share of all images that a list without their endings has to name
NAMED = 0.1  # share of a column's first cells that name an image: of a part of a data set few are there


@dataclass(frozen=True)
class ImageList:
    """One file: its rows of the image's name and further cells, and the names of these ("" where it has no header)."""

    file: str
    split: str
    images: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    titles: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(map(str.lower, self.titles))


class UnclearColumnError(UserError):
    """A table or list of images has several columns that may be their labels."""


def label_lists(found: Tree, choices: Choices) -> tuple[Listing, str] | None:
    """List the images that tables or lists of a folder name with labels, and the column of these; None without such.

    Raises:
        UserError: several columns of labels and none is chosen, an image with two labels, two files for a split.
    """
    lists = [one for one in found_lists(found) if one.columns and one.split != UNLABELLED]
    if not lists:
        return None
    boxes = next((one for one in lists if {name.replace("_", "") for name in one.columns} >= BOXES), None)
    if boxes and choices.label_column is None:
        raise UserError(
            f"{found.path(boxes.file)} has boxes ({', '.join(boxes.columns)}): classes of objects, not of images; if "
            "each image shows one object, add --label-column and the column of their classes"
        )
    lists = lists if choices.label_column else [_with_classes(one) for one in lists]
    column = _label_column(lists, choices)
    if choices.label_column is None:
        values = {cells[_position(one, column)] for one in lists for cells in one.cells}
        check_single(found.path(lists[0].file), values, column)
    splits: dict[str, list[tuple[str, str]]] = defaultdict(list)
    label_of: dict[str, tuple[str, str]] = {}
    for one in lists:
        at, split_at = _position(one, column), _split_position(one)
        for name, cells in zip(one.images, one.cells, strict=True):
            label = cells[at]
            other = label_of.setdefault(name, (label, one.file))
            if other[0] != label:
                where = one.file if one.file == other[1] else f"{other[1]} and {one.file}"
                raise UserError(f"{found.path(where)}: {name} has two labels, {other[0]} and {label}; keep one")
            splits[SPLIT_NAMES[cells[split_at].lower()] if split_at is not None else one.split].append((name, label))
    classes, names, notes = _classes(found, [label for entries in splits.values() for _, label in entries])
    position = {label: i for i, label in enumerate(classes)}
    names_of_columns = _names(lists[0])
    if len(names_of_columns) > 1:
        notes = [f"the labels are column {column} (of {', '.join(names_of_columns)}; --label-column)", *notes]
    notes += _unlisted(found, label_of)
    layout = f"images listed in {', '.join(one.file for one in lists)}"
    entries = {split: [(n, position[k]) for n, k in dict(splits[split]).items()] for split in SPLITS if split in splits}
    entries |= {"all": [(n, position[k]) for n, k in dict(splits["all"]).items()]} if "all" in splits else {}
    return Listing(layout, found.root, names, entries, notes=(*found.notes, *notes)), column


def split_by_lists(found: Tree, folders: Listing) -> Listing | None:
    """Divide class folders without splits by lists of images without labels; None where there are none."""
    label_of = dict(folders.splits.get("all", []))
    if not label_of:
        return None
    lists = [one for one in found_lists(found) if not one.columns and one.split in SPLIT_NAMES]
    names = {one.split: [name for name in one.images if name in label_of] for one in lists}
    files = [one.file for one in lists]
    if not names and set(NUMBERED) <= set(found.others):
        names, files = _numbered_splits(found, label_of), [NUMBERED[1]]
    if not names.get("train") or len(names) < 2:
        return None
    named = {name for inside in names.values() for name in inside}
    splits = {split: [(name, label_of[name]) for name in dict.fromkeys(inside)] for split, inside in names.items()}
    layout = f"{folders.layout} with the splits of {', '.join(files)}"
    return replace(folders, layout=layout, splits=splits, notes=(*folders.notes, *_unlisted(found, named)))


def _numbered_splits(found: Tree, known: Collection[str]) -> dict[str, list[str]]:
    """Return the splits of CUB-200's files: NUMBER PATH a line, and NUMBER 1 (train) or 0 (test)."""
    resolve = image_resolver(found)
    lines = [[line.split(maxsplit=1) for line in read_text(found.path(file)).splitlines()] for file in NUMBERED]
    paths, splits = (dict(row for row in rows if len(row) == 2) for rows in lines)
    names: dict[str, list[str]] = {"train": [], "test": []}
    for number, split in splits.items():
        name = resolve(paths.get(number, ""), "all")
        if name and name in known and split in ("0", "1"):
            names["train" if split == "1" else "test"].append(name)
    return names


def found_lists(found: Tree) -> list[ImageList]:
    resolve = image_resolver(found)
    lists: list[ImageList] = []
    for file in found.others:
        split = _split_of_file(file)
        names_classes = os.path.basename(file).lower().startswith(("classes", "class_names", "categories"))
        if file.count("/") > 1 or not file.lower().endswith(ENDINGS) or split is None or names_classes:
            continue
        one = _read(found, file, split, resolve, list(_rows(found.path(file))))
        if one is None and not file.lower().endswith((".csv", ".tsv", ".jsonl")):  # LABEL PATH
            one = _read(found, file, split, resolve, list(_rows(found.path(file), by_spaces=True)))
        if one and not _numbers_images(one):
            lists.append(one)
    lists.sort(key=lambda one: (*SPLITS, one.split).index(one.split))
    whole = [one for one in lists if "trainval" in one.file.lower()]
    if any(one.split == "train" and one not in whole for one in lists):
        lists = [one for one in lists if one not in whole]
    with_splits = [one for one in lists if one.split != "all"]
    if len(with_splits) > 1 and {one.split for one in with_splits} >= {"train"}:
        lists = with_splits
    labelled = [one for one in lists if one.columns]
    if {"train", "all"} <= {one.split for one in labelled}:
        told, other = (listed([one.file for one in labelled if (one.split == "all") == every]) for every in (0, 1))
        raise UserError(
            f"{found.root}: two readings: {told} lists what is trained on, or {other} lists all; keep the one that is "
            "meant, and move the other away"
        )
    for split, count in Counter(one.split for one in lists if one.columns).items():
        if count > 1:
            names = [one.file for one in lists if one.split == split and one.columns]
            what = "lists of images" if split == "all" else f"lists of the {split} split"
            raise UserError(
                f"{found.root}: {count} readings: {what} are {listed(names)}; keep the one that is meant, and move the "
                "others away"
            )
    return lists


def _numbers_images(one: ImageList) -> bool:
    """Tell whether the only other column is a number of each image, as in CUB-200."""
    numbers = [cells[0] for cells in one.cells if len(cells) == 1]
    return len(numbers) == len(one.cells) == len(set(numbers)) > 2 and all(map(str.isdecimal, numbers))


def _split_of_file(file: str) -> str | None:
    """Return the split that a list's name says, "all" for one that says none, None for the name of no list."""
    split, rest = split_and_rest(os.path.splitext(os.path.basename(file))[0])
    fits = all(word in _OF_LISTS or word.isdecimal() for word in rest)
    if split:
        return split
    return "all" if fits or file.lower().endswith((".csv", ".tsv", ".jsonl")) else None


def _read(
    found: Tree, file: str, split: str, resolve: Callable[[str, str], str | None], rows: list[list[str]]
) -> ImageList | None:
    if not rows:
        return None
    width = Counter(map(len, rows)).most_common(1)[0][0]
    if len({len(row) for row in rows[1:]}) > 1 and file.lower().endswith((".txt", ".lst", ".list")):
        rows = [[row[0], " ".join(row[1:])] if len(row) > 1 else row for row in rows]  # labels of several words
        width = Counter(map(len, rows)).most_common(1)[0][0]
    few = rows[1:201] or rows
    named = [sum(resolve(row[i], split) is not None for row in few if i < len(row)) for i in range(width)]
    endings = [sum(i < len(row) and has_image_ending(row[i]) for row in few) for i in range(width)]
    at = max(range(width), key=lambda i: (named[i], endings[i]))
    if named[at] < max(1, NAMED * len(few)):
        return None
    titled = len(rows) > 1 and len(rows[0]) == width and named[at] > 0
    header = titled and resolve(rows[0][at], split) is None and not has_image_ending(rows[0][at])
    body = rows[header:]
    odd = next((row for row in body if len(row) != width), None)
    if odd:
        raise UserError(
            f"{found.path(file)}: {' '.join(odd)[:60]!r} has {len(odd)} columns, others have {width}; mend it"
        )
    images = [resolve(row[at], split) for row in body]
    others = [i for i in range(width) if i != at]
    if any(2 * endings[i] > len(few) and 2 * named[i] > len(few) for i in others):
        return None  # images and their masks
    bare = split == "all" and not endings[at] and not any("/" in row[at] for row in few)
    if bare and len(set(filter(None, images))) < STEMS * len(found.images):
        return None  # numbers of classes, say, that happen to be names of images
    titles = tuple(rows[0][i] if header else "" for i in others)
    names = tuple(name or as_written(row[at]) for name, row in zip(images, body, strict=True))
    return ImageList(file, split, names, tuple(tuple(row[i] for i in others) for row in body), titles)


def _rows(path: str, *, by_spaces: bool = False) -> Iterator[list[str]]:
    """Yield the rows of a table or list as cells; none of a file that is not text."""
    if path.lower().endswith(".jsonl"):
        rows = [row for _, row in read_table(path)]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        yield columns
        yield from ([str(row.get(name, "")) for name in columns] for row in rows)
        return
    try:
        lines = [line for line in read_text(path).splitlines() if line.strip() and not line.startswith("#")]
        mark = next((mark for mark in "\t;," if lines and all(mark in line for line in lines[:20])), None)
        if mark and not by_spaces:
            yield from [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=mark)]
            return
    except (UserError, csv.Error):  # cells of 100,000 characters, which no list of images has
        return
    for line in lines:
        found = None if by_spaces else _WITH_ENDING.match(line.strip())
        yield [found[1], *(found[2] or "").split()] if found else line.split()


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
        if wanted.isdecimal() and 1 <= int(wanted) <= len(names):
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
