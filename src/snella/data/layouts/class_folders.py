"""Image folders: `root/CLASS/IMAGE` and `root/{train,val,test}/CLASS/IMAGE`, with wrapping folders, nested or in names.

A folder is read where there is one reading. Where there are several (nested folders; images of a class beside folders
of classes; folders that are named as splits are) all are named, and `Choices.classes` says which is meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os.path import basename

from snella.data.folders.choices import NO_CHOICE, Choices
from snella.data.folders.class_labels import beginning, has_class_in_name, labelling, offer_names
from snella.data.folders.names import SPLIT_NAMES, UNLABELLED, split_of, splits_among
from snella.data.folders.tree import UNREAD, Tree, tree
from snella.data.images import SUFFIXES
from snella.data.layouts.masks_beside import without_masks
from snella.data.listing import Entry, Listing, label_entries, natural_order
from snella.errors import UserError, brief, counted, listed

EXPECTED_SPLITS = "or give a manifest (.csv or .jsonl)"


@dataclass(frozen=True)
class _Part:
    """A split or all: the folder that its class folders are in, "" or ending in "/", and the images below it."""

    split: str
    folder: str
    images: tuple[str, ...]
    below_classes: bool = False  # CLASS/train/IMAGE


def image_folder(root: str, choices: Choices = NO_CHOICE) -> Listing:
    """List a folder of class folders, with or without split folders above (or right below) them.

    Raises:
        UserError: no image, no class folders, a class folder without an image, two folders for one split, two readings.
    """
    return class_folders(without_masks(tree(root)), choices)


def class_folders(found: Tree, choices: Choices = NO_CHOICE) -> Listing:
    """List the class folders of a tree without masks, as `image_folder` does."""
    if not found.images:
        raise UserError(_empty(found))
    parts, notes = _parts(found, choices)
    names = [name for part in parts for name in part.images]
    folder = found.path(parts[0].folder) if parts[0].split == "all" else ""
    if all(part.below_classes for part in parts):
        choices = Choices("top")
    label_of, more = labelling(found.root, folder, names, choices)
    classes, entries = label_entries(
        [part.folder + name for part in parts for name in part.images], [label_of(name) for name in names]
    )
    splits, start = {}, 0
    for part in parts:
        splits[part.split] = entries[start : start + len(part.images)]
        start += len(part.images)
    layout = "image folder" if "all" in splits else "image folder with splits"
    if label_of is beginning:
        layout = layout.replace("image folder", "images named after their class")
    return Listing(layout, found.root, classes, splits, notes=(*found.notes, *notes, *more))


def named_by_pattern(found: Tree, choices: Choices) -> Listing | None:
    """List images whose paths hold their labels, as a pattern says, in the splits that folders are called as.

    None for data to test a run on whose paths hold none.

    Raises:
        UserError: it matches no image.
    """
    assert choices.label_pattern is not None
    compiled = re.compile(choices.label_pattern)
    named = "label" in compiled.groupindex
    label_of: dict[str, str] = {}
    for name in found.images:
        if match := compiled.search(name):
            parts = [match["label"]] if named else match.groups()
            label_of[name] = next((part for part in parts if part is not None), match[0])
    if not label_of:
        if choices.of_run:
            return None
        first = f", such as {found.images[0]}" if found.images else ""
        raise UserError(
            f"--label-pattern {brief(choices.label_pattern)} matches none of the "
            f"{counted(len(found.images), 'image')} of {found.root}{first}; it is searched for in their paths below it"
        )
    classes, entries = label_entries(list(label_of), list(label_of.values()))
    splits: dict[str, list[Entry]] = {}
    for entry in entries:
        split = next((of for part in entry[0].split("/")[:-1] if (of := split_of(part))), "all")
        splits.setdefault(split, []).append(entry)
    notes = [*found.notes, f"the label of an image is what {choices.label_pattern} finds in its path"]
    if len(splits) > 1 and "all" in splits:
        outside = splits.pop("all")
        notes.append(f"{counted(len(outside), 'image')} outside the splits left out: {listed([n for n, _ in outside])}")
    splits.pop(UNLABELLED, None)
    rest = [name for name in found.images if name not in label_of]
    notes += [f"{counted(len(rest), 'image')} that it does not match left out: {listed(rest)}"] if rest else []
    return Listing("images with labels in their names", found.root, classes, splits, notes=tuple(notes))


def _parts(found: Tree, choices: Choices) -> tuple[list[_Part], list[str]]:
    """Divide the images by split folders, or take all, after folders that wrap all of them."""
    base = _wrapper(found.images)
    notes = [f"the images are in {base.rstrip('/')}"] if base else []
    names = [name[len(base) :] for name in found.images]
    tops = sorted({name.split("/")[0] for name in names if "/" in name}, key=natural_order)
    below = {top: [name.partition("/")[2] for name in names if name.startswith(f"{top}/")] for top in tops}
    below = dict(_unwrapped(top, inside) for top, inside in below.items())
    splits = {top: split for top in below if (split := splits_among(map(basename, below)).get(basename(top)))}
    named = list(splits)
    nested = [top for top in named if _has_folders(below[top])]
    if nested:
        folders = [top for top in named if top in nested or basename(top).lower() in SPLIT_NAMES]
        folders = [top for top in folders if splits[top] != UNLABELLED]
        notes += _beside_splits(names, below, folders)
        return _split_folders(found, base, {top: below[top] for top in folders}, splits, notes, choices), notes
    if named and choices.classes not in ("top", "path", "leaf"):
        return _flat_splits(found, base, below, splits, choices, notes), notes
    direct = [name for name in names if "/" not in name]
    inside = [name for name in names if "/" in name]
    if not direct and not choices.classes:
        parts = _splits_below(base, inside)
        if parts:
            return parts, [*notes, "the split folders are below the class folders"]
    if direct and not inside and not all(has_class_in_name(name, choices) for name in direct):
        raise UserError(_no_classes(found, base, direct))
    if direct and inside:
        folder = found.path(base.rstrip("/")) if base else found.root
        notes.append(f"{len(direct)} images directly in {folder}, outside every class folder, left out")
    notes += _check_full(found, base, inside, choices)
    return [_Part("all", base, _in_order(inside or direct))], notes


def _unwrapped(top: str, names: list[str]) -> tuple[str, list[str]]:
    """Return a folder and the names in it, without an inner one of its name, or its split, that holds all of it."""
    inner = {name.split("/")[0] if "/" in name else "" for name in names}
    folder = inner.pop() if len(inner) == 1 else ""
    if folder and (folder == top or (split_of(top) and split_of(folder) == split_of(top))):
        return f"{top}/{folder}", [name.partition("/")[2] for name in names]
    return top, names


def _wrapper(names: Sequence[str]) -> str:
    """Return the folder below which all images lie in folders, "" or ending in "/"; a split's folder wraps nothing."""
    base = ""
    while True:
        rest = [name[len(base) :] for name in names]
        top = rest[0].split("/")[0]
        if split_of(top) or not all(name.startswith(f"{top}/") and name.count("/") > 1 for name in rest):
            return base
        base += f"{top}/"


def _split_folders(
    found: Tree,
    base: str,
    below: dict[str, list[str]],
    split_names: Mapping[str, str],
    notes: list[str],
    choices: Choices,
) -> list[_Part]:
    """Return the splits of folders with class folders in them."""
    parts = []
    for split, folder in sorted(_folder_of_splits(found, base, below, split_names).items()):
        wrapper = _wrapper(below[folder])
        place = f"{base}{folder}/{wrapper}"
        inside = [name[len(wrapper) :] for name in below[folder]]
        kept = [name for name in inside if "/" in name]
        if not kept:
            raise UserError(
                f"{found.path(base + folder)} has no class folders; expected {folder}/CLASS/IMAGE, {EXPECTED_SPLITS}; "
                "if its images have no labels, move the folder away"
            )
        if len(kept) < len(inside):
            count = len(inside) - len(kept)
            notes.append(f"{count} images directly in {found.path(place[:-1])}, outside every class folder, left out")
        if split == "train":
            notes += _check_full(found, place, kept, choices)
        parts.append(_Part(split, place, _in_order(kept)))
    return parts


def _folder_of_splits(found: Tree, base: str, folders: Iterable[str], split_names: Mapping[str, str]) -> dict[str, str]:
    """Return the folder of each split. Raises UserError where two stand for one."""
    by_split: dict[str, str] = {}
    for folder in sorted(folders, key=lambda name: "eval" in name.lower()):
        split = split_names[folder]
        if "eval" in folder.lower() and "test" in by_split:
            split = "val"
        if split in by_split:
            place = found.path(base.rstrip("/")) if base else found.root
            raise UserError(f"{place} has two {split} folders, {by_split[split]} and {folder}; keep one")
        by_split[split] = folder
    return by_split


def _flat_splits(
    found: Tree,
    base: str,
    below: dict[str, list[str]],
    split_names: Mapping[str, str],
    choices: Choices,
    notes: list[str],
) -> list[_Part]:
    """Return splits of folders without class folders, whose images' names hold the class."""
    holding = {top: [name for name in names if has_class_in_name(name, choices)] for top, names in below.items()}
    whole = {top: names for top, names in holding.items() if top in split_names and len(names) == len(below[top])}
    if len({beginning(name) for names in whole.values() for name in names}) > 1:
        unnamed = [top for top in below if top not in whole]
        mixed = next((top for top in unnamed if holding[top]), None)
        if mixed:
            odd = next(name for name in below[mixed] if name not in holding[mixed])
            raise UserError(f"{found.path(base + mixed)}: the name of {odd} holds no class, others do; rename it")
        if unnamed:
            texts = [f"{top} ({counted(len(below[top]), 'image')})" for top in unnamed]
            notes.append(f"folders of images without labels, left out: {', '.join(texts)}")
        by_split = _folder_of_splits(found, base, whole, split_names)
        return [_Part(split, f"{base}{top}/", _in_order(whole[top])) for split, top in sorted(by_split.items())]
    first = next(iter(split_names))
    others = [top for top in below if top not in split_names]
    if others:
        raise UserError(
            f"{found.root}: two readings: {first} is a split without class folders, or {listed(list(below))} are "
            f"{len(below)} classes; for the first move it away or sort its images into {first}/CLASS/IMAGE, "
            f"{EXPECTED_SPLITS}, for the second add --classes top"
        )
    raise UserError(
        f"{found.path(base + first)} has no class folders; expected {first}/CLASS/IMAGE, {EXPECTED_SPLITS}"
        f"{offer_names(below[first])}"
    )


def _splits_below(base: str, names: Sequence[str]) -> list[_Part]:
    """Return splits where every class folder is divided into split folders: CLASS/train/IMAGE."""
    by_split: dict[str, list[str]] = {}
    for name in names:
        folders = name.split("/")[:-1]
        split = split_of(folders[1]) if len(folders) == 2 else None
        if split is None:
            return []
        by_split.setdefault(split, []).append(name)
    by_split.pop(UNLABELLED, None)
    return [_Part(split, base, _in_order(inside), True) for split, inside in sorted(by_split.items())]


def _check_full(found: Tree, place: str, names: Sequence[str], choices: Choices) -> list[str]:
    """Refuse a folder in the place of a class that holds no image; return a note on those of annotations and the like.

    To test a run on, they need not hold any: what classes have no image is said of the whole.

    Raises:
        UserError: a folder that is empty, or holds files in formats that are not read.
    """
    full = {name.split("/")[0] for name in names}
    inside = [name[len(place) :] for name in found.folders if name.startswith(place)]
    without = sorted((name for name in inside if "/" not in name and name not in full), key=natural_order)
    texts = [name for name in without if _holds_texts_alone(found, f"{place}{name}/")]
    empty = [name for name in without if name not in texts]
    if full and empty and not choices.of_run and choices.classes != "names":
        more = f" (and {len(empty) - 1} more such folders)" if len(empty) > 1 else ""
        path = found.path(place + empty[0])
        raise UserError(f"{path} holds no image, so its class has none{more}; add images or remove the folder")
    left_out = without if choices.of_run else texts
    return [f"folders without images, left out: {listed(left_out)}"] if full and left_out else []


def _holds_texts_alone(found: Tree, folder: str) -> bool:
    files = [name for name in found.others if name.startswith(folder)]
    pictures = tuple(ending for ending in UNREAD if ending != ".mat")  # that one holds labels as well
    return bool(files) and not any(name.lower().endswith(pictures) for name in files)


def _beside_splits(names: Sequence[str], below: dict[str, list[str]], folders: Sequence[str]) -> list[str]:
    others = [f"{top} ({counted(len(inside), 'image')})" for top, inside in below.items() if top not in folders]
    direct = sum("/" not in name for name in names)
    notes = [f"folders beside the splits, left out: {', '.join(others)}"] if others else []
    return [*notes, *([f"{counted(direct, 'image')} beside the split folders left out"] if direct else [])]


def _has_folders(names: Sequence[str]) -> bool:
    return any("/" in name for name in names)


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Sort by the first folder, numbers by their value, and then by name."""
    ordered = sorted(names)
    folders = {name.split("/")[0] for name in ordered if "/" in name}
    place = {folder: i for i, folder in enumerate(sorted(folders, key=natural_order))}
    return tuple(sorted(ordered, key=lambda name: place.get(name.split("/")[0], -1)))


def _no_classes(found: Tree, base: str, names: Sequence[str]) -> str:
    empty = [name for name in found.folders if "/" not in name and f"{name}/" != base]
    tables = [name for name in found.others if "/" not in name and name.lower().endswith((".csv", ".jsonl"))]
    if empty:
        return f"{found.path(empty[0])} holds no image; expected {found.root}/CLASS/IMAGE"
    if tables:
        return f"{found.root} has no class folders but holds {tables[0]}; if that is a manifest, give its path"
    return (
        f"{found.root} holds {len(names)} images but no class folders; move each to a folder named after its class, "
        f"{EXPECTED_SPLITS}{offer_names(names)}"
    )


def _empty(found: Tree) -> str:
    tables = [basename(name) for name in found.others if name.lower().endswith((".csv", ".jsonl"))]
    unread = next((note for note in found.notes if note.startswith("files of formats")), None)
    if unread:
        return f"{found.root} holds no image ({', '.join(SUFFIXES)}) but {unread}; save them as PNG"
    if tables and not found.folders:
        return f"{found.root} has no class folders but holds {tables[0]}; if that is a manifest, give its path"
    if found.folders:
        return f"{found.root} holds no image ({', '.join(SUFFIXES)}); expected {found.root}/CLASS/IMAGE"
    if found.others:
        return f"{found.root} holds no image and no class folder; expected {found.root}/CLASS/IMAGE"
    return f"{found.root} is empty; expected {found.root}/CLASS/IMAGE"
