"""Tables and lists of images inside a folder, before anything is made of their columns.

A file is a list if one of its columns names images of the folder, by path, by name or by name without ending. Its name
says the split (train.txt), or a column does.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from snella.data.dataset import SPLITS
from snella.data.folders.cvat import cvat_tags
from snella.data.folders.detections import coco_tags
from snella.data.folders.names import SPLIT_COLUMNS, SPLIT_NAMES, UNLABELLED, split_and_rest, split_of
from snella.data.folders.rows import read_table
from snella.data.folders.tree import Tree, as_written, has_image_ending, image_resolver, near_files, stem
from snella.data.images import SUFFIXES
from snella.data.paths import read_text
from snella.errors import UserError, listed

ENDINGS = (".txt", ".csv", ".tsv", ".lst", ".list", ".jsonl")
_OF_LISTS = frozenset(
    (
        *("list", "lists", "label", "labels", "annotation", "annotations", "image", "images", "set", "sets", "split"),
        *("file", "files", "meta", "metadata", "data", "gt", "info", "class", "classes", "names", "ids", "id"),
    )
)
_WITH_ENDING = re.compile(rf"(.*?(?:{'|'.join(map(re.escape, SUFFIXES))}))(?:\s+(.*))?$", re.I)
_POSITION = re.compile(r"(?:.*_)?[xy](?:_?[a-z0-9]{1,3})?|[xy]_?(?:min|max)|w|h|width|height|(?:.*[_ ])?bbox.*", re.I)
_RUNS = re.compile(r"encoded_?pixels|(?:mask_)?rle(?:_mask)?", re.I)  # of masks as run lengths
PARTITIONS = {"0": "train", "1": "val", "2": "test"}
NUMBERED = ("images.txt", "train_test_split.txt")  # of CUB-200
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


def found_lists(found: Tree) -> list[ImageList]:
    """Read all tables and lists of a folder, by split, those without labels included."""
    resolve = image_resolver(found)
    lists: list[ImageList] = []
    for file in near_files(found):
        split = split_of_file(file)
        names_classes = os.path.basename(file).lower().startswith(("classes", "class_names", "categories"))
        if not file.lower().endswith(ENDINGS) or split is None or names_classes:
            continue
        one = _read(found, file, split, resolve, list(list_rows(found.path(file))))
        if one is None and not file.lower().endswith((".csv", ".tsv", ".jsonl")):  # LABEL PATH
            one = _read(found, file, split, resolve, list(list_rows(found.path(file), by_spaces=True)))
        if one and not _numbers_images(one):
            lists.append(one)
    for file, tags in cvat_tags(found).items():
        images, *cells = zip(*tags, strict=True)
        in_splits = all(subset.lower() in SPLIT_NAMES for subset in cells[1])
        cells, titles = (cells, ("label", "subset")) if in_splits else (cells[:1], ("label",))
        lists.append(ImageList(file, "all", images, tuple(zip(*cells, strict=True)), titles))
    for file, tags in coco_tags(found).items():
        rows = tuple((label,) for _, label, _ in tags)
        lists.append(ImageList(file, tags[0][2] or "all", tuple(name for name, *_ in tags), rows, ("label",)))
    return sorted(lists, key=lambda one: (*SPLITS, one.split).index(one.split))


def labelled_lists(found: Tree, lists: Sequence[ImageList], asked: str | None = None) -> list[ImageList]:
    """Return the lists that say labels: one of each split, or one of all.

    Args:
        lists: all of the folder.
        asked: the columns that are meant, with commas between them.

    Raises:
        UserError: several that may be meant.
    """
    chosen = _of_labels([one for one in lists if one.columns and one.split != UNLABELLED and not is_partition(one)])
    if sum(one.split != "all" for one in chosen) > 1 and any(one.split == "train" for one in chosen):
        chosen = [one for one in chosen if one.split != "all"]
    columns = {name.strip().lower() for name in (asked or "").split(",")}
    chosen = [one for one in chosen if columns <= {*one.columns}] or chosen
    if {"train", "all"} <= {one.split for one in chosen}:
        told, other = (listed([one.file for one in chosen if (one.split == "all") == every]) for every in (0, 1))
        raise UserError(
            f"{found.root}: two readings: {told} lists what is trained on, or {other} lists all; keep the one that is "
            "meant, and move the other away"
        )
    _check_one_each(found, chosen)
    return chosen


def listed_splits(
    found: Tree, lists: Sequence[ImageList], known: Collection[str]
) -> tuple[dict[str, str], list[str]] | None:
    """Return the split of images, by lists without labels or a table of splits, and their files; None without such.

    Args:
        lists: all of the folder.
        known: the images that are divided.

    Raises:
        UserError: several lists of one split, an image in two splits.
    """
    table = next((one for one in lists if is_partition(one)), None)
    if table:
        of_cell = SPLIT_NAMES | PARTITIONS
        split_of = {
            name: of_cell[cells[0].lower()]
            for name, cells in zip(table.images, table.cells, strict=True)
            if name in known
        }
        return (split_of, [table.file]) if len({*split_of.values()}) > 1 else None
    bare = [one for one in lists if not one.columns and one.split in SPLITS and not {*known}.isdisjoint(one.images)]
    bare = list({(one.split, frozenset(one.images)): one for one in without_whole(bare)}.values())
    if len(bare) < 2 or bare[0].split != "train":
        return _numbered_splits(found, known)
    _check_one_each(found, bare)
    by_image: dict[str, str] = {}
    file_of: dict[str, str] = {}
    for one in bare:
        for name in one.images:
            if name in known and by_image.setdefault(name, one.split) != one.split:
                raise UserError(f"{found.root}: {name} is in {file_of[name]} and in {one.file}; keep it in one")
            file_of[name] = one.file
    return by_image, [one.file for one in bare]


def is_partition(one: ImageList) -> bool:
    """Tell whether a table says of each image its split alone, as words or, as CelebA's does, as 0, 1 and 2."""
    if len(one.columns) != 1:
        return False
    values = {cells[0].lower() for cells in one.cells}
    told = one.columns[0] in SPLIT_COLUMNS or not {"partition", "split", "splits"}.isdisjoint(_words(one.file))
    return told and (values <= SPLIT_NAMES.keys() or values <= PARTITIONS.keys())


def _numbered_splits(found: Tree, known: Collection[str]) -> tuple[dict[str, str], list[str]] | None:
    """Return the splits of CUB-200's files: NUMBER PATH a line, and NUMBER 1 (train) or 0 (test)."""
    files = {os.path.basename(file): file for file in near_files(found)}
    if not set(NUMBERED) <= files.keys():
        return None
    resolve = image_resolver(found)
    lines = [[line.split(maxsplit=1) for line in read_text(found.path(files[n])).splitlines()] for n in NUMBERED]
    paths, splits = (dict(row for row in rows if len(row) == 2) for rows in lines)
    by_image: dict[str, str] = {}
    for number, split in splits.items():
        name = resolve(paths.get(number, ""), "all")
        if name and name in known and split in ("0", "1"):
            by_image[name] = "train" if split == "1" else "test"
    return (by_image, [files[NUMBERED[1]]]) if len({*by_image.values()}) > 1 else None


def _of_labels(lists: Sequence[ImageList]) -> list[ImageList]:
    """Return the lists without those of masks, of boxes and points where there are others, and of train and val."""
    lists = [one for one in lists if not all(_RUNS.fullmatch(name) for name in one.columns)]
    boxed = [one for one in lists if any("bbox" in name for name in one.columns)]
    others = [one for one in lists if one not in boxed and not all(map(_POSITION.fullmatch, one.columns))]
    return without_whole(others or lists)


def without_whole(lists: Sequence[ImageList]) -> list[ImageList]:
    whole = [one for one in lists if "trainval" in one.file.lower()]
    return [one for one in lists if one not in whole or all(o.split != "train" or o in whole for o in lists)]


def _check_one_each(found: Tree, lists: Sequence[ImageList]) -> None:
    for split, count in Counter(one.split for one in lists).items():
        if count > 1:
            names = [one.file for one in lists if one.split == split]
            what = "lists of images" if split == "all" else f"lists of the {split} split"
            raise UserError(
                f"{found.root}: {count} readings: {what} are {listed(names)}; keep the one that is meant, and move the "
                "others away"
            )


def _numbers_images(one: ImageList) -> bool:
    """Tell whether the only other column is a number of each image, as in CUB-200."""
    numbers = [cells[0] for cells in one.cells if len(cells) == 1]
    return len(numbers) == len(one.cells) == len(set(numbers)) > 2 and all(map(str.isdecimal, numbers))


def split_of_file(file: str) -> str | None:
    """Return the split that a list's name says, "all" for one that says none, None for the name of no list."""
    split, rest = split_and_rest(stem(file))
    if "partition" in rest:
        return "all"
    if split:
        return split
    fits = all(word in _OF_LISTS or word.isdecimal() for word in rest) or rest[:1] == ("list",)
    if not fits and not file.lower().endswith((".csv", ".tsv", ".jsonl")):
        return None
    return split_of(os.path.basename(os.path.dirname(file))) or "all"  # train/_classes.csv, train/metadata.csv


def _words(file: str) -> tuple[str, ...]:
    return split_and_rest(stem(file))[1]


def _read(
    found: Tree, file: str, split: str, resolve: Callable[[str, str], str | None], rows: list[list[str]]
) -> ImageList | None:
    rows = _without_count(rows)
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
            f"{found.path(file)}: {' '.join(odd)[:60]!r} has {len(odd)} columns, others have {width}; mend it or move "
            "the file away"
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
    cells = _as_bits([[row[i] for row in body] for i in others])
    return ImageList(file, split, names, tuple(zip(*cells, strict=True)) if cells else ((),) * len(body), titles)


def _without_count(rows: list[list[str]]) -> list[list[str]]:
    """Return the rows without a first one that counts them, and with a title of the images where it lacks."""
    counts = len(rows) > 2 and len(rows[0]) == 1 and rows[0][0] in (str(len(rows) - 2), str(len(rows) - 1))
    if not counts:
        return rows
    titles, *body = rows[1:]
    return [[""] * (len(titles) + 1 == len(body[0])) + titles, *body]


def _as_bits(columns: list[list[str]]) -> list[list[str]]:
    """Return the columns, those of 1 and -1 as 1 and 0 where there are several, and all others hold neither."""
    signed = [i for i, column in enumerate(columns) if {*column} <= {"1", "-1"}]
    if len(signed) < 2 or not any("-1" in columns[i] for i in signed):
        return columns
    return [["0" if cell == "-1" else cell for cell in c] if i in signed else c for i, c in enumerate(columns)]


def list_rows(path: str, *, by_spaces: bool = False) -> Iterator[list[str]]:
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
