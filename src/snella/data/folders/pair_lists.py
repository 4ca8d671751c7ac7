"""Lists of images with their masks: two paths a line (`images/1.jpg masks/1.png`), or two columns of a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from snella.data.folders.image_lists import ENDINGS, list_rows, split_of_file
from snella.data.folders.names import MASK_WORDS, SPLIT_COLUMNS, SPLIT_NAMES, split_and_rest
from snella.data.folders.tree import Tree, as_written, has_image_ending, image_resolver, near_files
from snella.errors import UserError, listed

LOOKED_AT = 20  # rows by which a list is known


@dataclass(frozen=True)
class ListedPairs:
    """The pairs (image, mask) of each split, the files that name them, and how many rows name no file."""

    splits: dict[str, list[tuple[str, str]]]
    files: tuple[str, ...]
    missing: int


def listed_pairs(found: Tree) -> ListedPairs | None:
    """Read the lists of pairs in a folder; None where there are none, or most of their files are not there.

    Raises:
        UserError: several lists of one split, an image in two splits.
    """
    lists = {file: rows for file in near_files(found) if (rows := _pair_rows(found, file))}
    split_of = {file: split_of_file(file) or "all" for file in lists}
    if any(split == "train" and "trainval" not in file for file, split in split_of.items()):
        split_of = {file: split for file, split in split_of.items() if split != "all" and "trainval" not in file}
    for split, count in Counter(split_of.values()).items():
        if count > 1:
            names = [file for file, of in split_of.items() if of == split]
            raise UserError(
                f"{found.root}: {count} readings: lists of pairs are {listed(names)}; keep the one that is meant, and "
                "move the others away"
            )
    places = set(found.images)
    resolve = image_resolver(found)
    split_at: dict[tuple[str, str], str] = {}
    by_image: dict[str, str] = {}
    missing = 0
    for file, split in split_of.items():
        for image, mask, own in _ordered(lists[file]):
            pair = [_place(cell, places) or resolve(cell, split) for cell in (image, mask)]
            if pair[0] is None or pair[1] is None:
                missing += 1
            elif by_image.setdefault(pair[0], own or split) != (own or split):
                raise UserError(f"{found.path(file)}: {pair[0]} is in {by_image[pair[0]]} and {own or split}; keep one")
            else:
                split_at[pair[0], pair[1]] = own or split
    if missing >= len(split_at):
        return None
    splits: dict[str, list[tuple[str, str]]] = {}
    for pair, split in split_at.items():
        splits.setdefault(split, []).append(pair)
    return ListedPairs(splits, tuple(split_of), missing)


def _pair_rows(found: Tree, file: str) -> list[list[str]]:
    """Return the cells of images, masks and splits of a list of pairs, a row of titles first; none of other files."""
    if not file.lower().endswith(ENDINGS) or split_of_file(file) is None:
        return []
    rows = [row for row in list_rows(found.path(file)) if len(row) > 1]
    few = rows[1 : 1 + LOOKED_AT] or rows
    width = min(map(len, rows), default=0)
    named = [i for i in range(width) if few and all(has_image_ending(row[i]) for row in few)]
    if len(named) != 2:
        return []
    titles = ["", ""] if has_image_ending(rows[0][named[0]]) else [rows[0][i] for i in named]
    body = rows if titles == ["", ""] else rows[1:]
    at = next((i for i in range(width) if titles != ["", ""] and rows[0][i].lower() in SPLIT_COLUMNS), None)
    if at is not None and not all(row[at].lower() in SPLIT_NAMES for row in body):
        at = None
    splits = ["" if at is None else SPLIT_NAMES[row[at].lower()] for row in body]
    pairs = ([row[named[0]], row[named[1]], split] for row, split in zip(body, splits, strict=True))
    return [[*titles, ""], *pairs]


def _ordered(rows: Sequence[list[str]]) -> list[tuple[str, str, str]]:
    """Return image, mask and split of each row: the first column holds images, unless its words are those of masks."""
    titles, *body = rows
    first, second = (_says_mask(titles[i]) or all(_says_mask(row[i]) for row in body[:LOOKED_AT]) for i in (0, 1))
    swapped = first and not second
    return [(row[swapped], row[not swapped], row[2]) for row in body]


def _says_mask(text: str) -> bool:
    return any(not MASK_WORDS.isdisjoint(split_and_rest(part)[1]) for part in as_written(text).split("/"))


def _place(cell: str, places: set[str]) -> str | None:
    """Return the file that a path means, which may begin at another machine's root."""
    parts = as_written(cell).split("/")
    return next((name for i in range(len(parts)) if (name := "/".join(parts[i:])) in places), None)
