"""What a user says of the splits: a file of them, groups that stay together, folds; for every kind of data alike.

layout's listing ─ by_file ─ images checked ─ in_groups ─ in_fold ─ splits that are missing (`data.splits`)
"""

from __future__ import annotations

import csv
import io
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from snella.data.dataset import CROP, SPLITS, ImageData, name_in
from snella.data.folders.names import SPLIT_COLUMNS
from snella.data.folders.rows import column_names, read_table
from snella.data.groups import folds_of, groups_by_pattern, put_in_group
from snella.data.layouts.manifests import PATH_COLUMNS, find_column, split_value, text_value
from snella.data.listing import SplitListingT
from snella.data.paths import check_exists, composed
from snella.data.splits import Division
from snella.errors import UserError, counted, listed

COLUMNS = ("file", *PATH_COLUMNS, "filename")  # that name the image
ENDINGS = (".csv", ".jsonl")
TRIED = 200  # rows of a table in which a column of images is looked for


def by_file(data: str, listing: SplitListingT, division: Division) -> SplitListingT:
    """Divide the images as a file says (`--splits`), in place of the data's own splits; others are left out.

    Raises:
        UserError: not a table of files and splits, names that mean no image or several, two splits for one image.
    """
    if division.file is None:
        return listing
    file = os.path.expanduser(division.file)
    entries = [entry for part in listing.splits.values() for entry in part]
    names = [name_in(data, listing.path(entry[0]), listing.folder) for entry in entries]
    split_of = _splits_of(file, data, names, {name_in(data, e.path, listing.folder) for e in listing.skipped})
    splits = {
        split: [entry for i, entry in enumerate(entries) if split_of.get(i) == split]
        for split in SPLITS
        if split in set(split_of.values())
    }
    if "train" not in splits:
        raise UserError(f"{file} has no image to train on; give it rows of the split train")
    counts = ", ".join(f"{split} {len(part)}" for split, part in splits.items())
    notes = [*listing.notes, f"splits of {file}: {counts}"]
    rest = [name for i, name in enumerate(names) if i not in split_of]
    if rest:
        notes.append(f"{counted(len(rest), 'image')} that {file} does not name left out: {listed(rest)}")
    return replace(listing, splits=splits, notes=tuple(notes))


def _splits_of(file: str, data: str, names: Sequence[str], skipped: set[str]) -> dict[int, str]:
    """Return the split of each image, by position in `names`, that a file names."""
    check_exists(file, remedy="give a CSV file with the columns file and split, such as the splits.csv of a run")
    if not file.lower().endswith(ENDINGS):
        raise UserError(f"--splits {file} is not a CSV or JSONL file; give one with the columns file and split")
    rows = read_table(file)
    columns = column_names(rows)
    image_column = find_column(COLUMNS, columns, file, "images")
    split_column = find_column(("split",) if "split" in columns else SPLIT_COLUMNS, columns, file, "splits")
    find = _finder(names)
    split_of: dict[int, str] = {}
    missing, unclear, twice = [], [], []
    for line, row in rows:
        name, split = text_value(row, image_column, file, line), split_value(row, file, line, split_column)
        found = find(name)
        if not found and name not in skipped:
            missing.append(name)
        if len({names[i] for i in found}) > 1 and not any(CROP.search(names[i]) for i in found):
            unclear.append((name, sorted({names[i] for i in found})))
            continue
        twice += [(names[i], split_of[i], split) for i in found if split_of.setdefault(i, split) != split]
    if twice:
        name, one, other = twice[0]
        what = "1 image is" if len(twice) == 1 else f"{len(twice)} images are"
        raise UserError(f"{file}: {what} in two splits, the first: {name} in {one} and {other}; keep one row for each")
    if unclear:
        name, meant = unclear[0]
        what = "1 name means" if len(unclear) == 1 else f"{len(unclear)} names mean"
        raise UserError(f"{file}: {what} several images, the first: {name} ({listed(meant)}); write paths below {data}")
    if missing:
        raise UserError(
            f"{file}: {len(missing)} of its {counted(len(rows), 'row')} name no image of {data}, the first: "
            f"{missing[0]}; names are paths below the data, such as {names[0]}: mend or remove them"
        )
    return split_of


def _finder(names: Sequence[str]) -> Callable[[str], list[int]]:
    """Return what finds the images that a cell means: by path, with or without ending, else by the end of a path.

    Crops are found by their image too.
    """
    exact: tuple[defaultdict[str, list[int]], ...] = (defaultdict(list), defaultdict(list))
    by_last: defaultdict[str, dict[int, list[str]]] = defaultdict(dict)
    for i, name in enumerate(names):
        whole = _plain(CROP.sub("", name))
        for table, forms in zip(exact, ({_plain(name), whole}, {os.path.splitext(whole)[0]}), strict=True):
            for form in forms:
                table[form].append(i)
                by_last[form.rpartition("/")[2]].setdefault(i, []).append(f"/{form}")

    def find(cell: str) -> list[int]:
        for form in dict.fromkeys((_plain(cell), _plain(cell.replace("\\", "/")))):
            if found := next((table[form] for table in exact if form in table), None):
                return found
            near = by_last.get(form.rpartition("/")[2], {})
            ends = [i for i, forms in near.items() if any(x.endswith(f"/{form}") or form.endswith(x) for x in forms)]
            if ends:
                return ends
        return []

    return find


def _plain(name: str) -> str:
    return os.path.normpath(composed(name.strip())).replace(os.sep, "/")


def in_groups(data: str, listing: SplitListingT, division: Division) -> SplitListingT:
    """Find the group of each image, by a column that the layout has read or by a pattern of paths, and note it.

    Raises:
        UserError: a pattern that matches no image, a column that the data does not have.
    """
    names = list(dict.fromkeys(entry[0] for part in listing.splits.values() for entry in part))
    below = [name_in(data, listing.path(name), listing.folder) for name in names]
    groups, how = listing.groups, f"--group-column {division.group_column}"
    if division.group_column is not None and not groups:
        found, files = _by_tables(data, below, division.group_column)
        groups, how = {names[i]: group for i, group in found.items()}, f"{how} of {', '.join(files)}"
    if division.group_pattern is not None:
        by_name = groups_by_pattern(division.group_pattern, below)
        groups = {name: by_name[path] for name, path in zip(names, below, strict=True) if path in by_name}
        how = f"--group-pattern {division.group_pattern}"
    if not groups:
        return listing
    rest = [path for name, path in zip(names, below, strict=True) if name not in groups]
    known = {groups[name] for name in names if name in groups}
    note = f"{counted(len(known), 'group')} of {counted(len(names) - len(rest), 'image')} by {how}"
    if rest:
        each = "a group of its own" if len(rest) == 1 else "each a group of its own"
        note += f", which leaves out {len(rest)} of {len(names)}, {each}: {listed(rest)}"
    return replace(listing, groups=groups, notes=(*listing.notes, note))


def _by_tables(data: str, names: Sequence[str], column: str) -> tuple[dict[int, str], list[str]]:
    """Return the group of each image, by position in `names`, that tables in the data's folder say, and these.

    Raises:
        UserError: no table has the column beside one that names images, or an image is of two groups.
    """
    folder = os.path.expanduser(data)
    find, wanted = _finder(names), column.lower()
    tables = sorted(f for f in os.listdir(folder) if f.lower().endswith(ENDINGS)) if os.path.isdir(folder) else []
    groups: dict[int, str] = {}
    used, columns_of = [], dict[str, list[str]]()
    for file in tables:
        path = os.path.join(folder, file)
        rows = read_table(path)
        columns = columns_of[file] = column_names(rows)
        hits = {name: sum(bool(find(str(row.get(name, "")))) for _, row in rows[:TRIED]) for name in columns}
        images = max(hits, key=lambda name: hits[name])
        if wanted not in columns or not hits[images]:
            continue
        used.append(file)
        for line, row in rows:
            group = text_value(row, wanted, path, line)
            for i in find(text_value(row, images, path, line)):
                put_in_group(groups, i, group, f"{path} line {line}", names[i])
    if not groups:
        has = "; ".join(f"{file}: {', '.join(columns)}" for file, columns in columns_of.items())
        there = f"tables there have {has}" if has else "it holds no table (.csv, .jsonl)"
        raise UserError(
            f"--group-column {column}: no table in {data} has it beside a column of images; {there}; name groups by a "
            "column that is there, or by --group-pattern"
        )
    return groups, used


def in_fold(
    data: str, listing: SplitListingT, division: Division, class_of: Callable[[Any], str], *, seed: int
) -> SplitListingT:
    """Take one of the folds of train and val for the test split, and all others of them for train, and note it.

    Args:
        class_of: the name of the class of an entry of the listing.

    Raises:
        UserError: too few images or groups, or a class that one of the folds holds all images of.
    """
    if division.folds is None:
        return listing
    fold, folds = division.fold or 1, division.folds
    pool = [entry for split in ("all", "train", "val") for entry in listing.splits.get(split, ())]
    if not pool:
        raise UserError(f"{data} has no train split to make folds of; add one")
    labels = [class_of(entry) for entry in pool]
    at = folds_of([(entry[0], of) for entry, of in zip(pool, labels, strict=True)], listing.groups, folds, seed=seed)
    for of in dict.fromkeys(labels):
        inside = {k for k, other in zip(at, labels, strict=True) if other == of}
        strata = getattr(listing, "fixed_classes", False) or getattr(listing, "targets", None)
        if len(inside) == 1 and not strata:
            what = "group" if listing.groups else "image"
            raise UserError(
                f"{data}: class {of!r} is of one {what}, or all of it fell into one of the {folds} folds, whose "
                "training has none of it; add images of it or remove the class"
            )
    parts: Mapping[bool, list[Any]] = {True: [], False: []}
    for entry, k in zip(pool, at, strict=True):
        parts[k == fold - 1].append(entry)
    own = " of train and val" if "val" in listing.splits else ""
    note = f"fold {fold} of {folds} is the test split: {len(parts[True])} of the {len(pool)} images{own}"
    if listing.groups:
        note += ", by groups"
    if left := len(listing.splits.get("test", ())):
        note += f"; the data's own test split ({counted(left, 'image')}) is left alone"
    notes = (*listing.notes, f"{note}, seed {seed}")
    return replace(listing, splits={"train": parts[False], "test": parts[True]}, notes=notes)


def splits_table(data: ImageData[Any]) -> str:
    """Return the splits as CSV that `by_file` reads: the columns file, split and, where there are some, label."""
    labelled = bool(data.classes) and any(getattr(images, "labels", ()) for images in data.splits.values())
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "split", *(["label"] if labelled else [])])
    for split, images in data.splits.items():
        for i, path in enumerate(images.paths):
            label = [data.classes[images.labels[i]]] if labelled else []
            writer.writerow([name_in(data.root, path, data.folder), split, *label])
    return text.getvalue()
