"""Image folders: `root/CLASS/IMAGE`, and `root/{train,val,test}/CLASS/IMAGE`."""

from __future__ import annotations

import os
from dataclasses import dataclass

from snella.data.images import SUFFIXES, images_below, is_hidden, is_image
from snella.data.listing import Entry, Listing, label_entries, natural_order
from snella.errors import UserError

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class _Folder:
    """The visible content of one folder: sub-folders in natural order, images and other files."""

    folders: tuple[str, ...]
    images: tuple[str, ...]
    others: tuple[str, ...]


def image_folder(root: str) -> Listing:
    """List a folder of class folders, with or without split folders above them.

    Raises:
        UserError: no image, no class folders, a class folder without an image, two folders for one split.
    """
    content = _content(root)
    splits = [name for name in content.folders if name.lower() in SPLIT_NAMES]
    nested = [name for name in splits if _content(os.path.join(root, name)).folders]
    if nested:
        return _split_folders(root, content, splits)
    if splits and len(splits) == len(content.folders):
        raise UserError(
            f"{os.path.join(root, splits[0])} has no class folders; expected {splits[0]}/CLASS/IMAGE, "
            "or give a manifest (.csv or .jsonl)"
        )
    classes, entries, notes = _class_folders(root, content)
    return Listing("image folder", root, classes, {"all": entries}, notes=notes)


def _split_folders(root: str, content: _Folder, folders: list[str]) -> Listing:
    by_split: dict[str, str] = {}
    for folder in folders:
        split = SPLIT_NAMES[folder.lower()]
        if split in by_split:
            raise UserError(f"{root} has two {split} folders, {by_split[split]} and {folder}; keep one")
        by_split[split] = folder
    classes: set[str] = set()
    notes: list[str] = []
    found: list[tuple[str, tuple[str, ...], list[Entry]]] = []
    for split in sorted(by_split):
        folder = os.path.join(root, by_split[split])
        split_classes, entries, split_notes = _class_folders(folder, _content(folder), all_full=split == "train")
        found.append((split, split_classes, entries))
        classes |= set(split_classes)
        notes += split_notes
    ordered = tuple(sorted(classes, key=natural_order))
    position = {name: label for label, name in enumerate(ordered)}
    splits = {
        split: [(f"{by_split[split]}/{name}", position[split_classes[label]]) for name, label in entries]
        for split, split_classes, entries in found
    }
    left_out = [name for name in content.folders if name not in folders]
    if left_out:
        notes.append(f"folders beside the splits, left out: {', '.join(left_out)}")
    return Listing("image folder with splits", root, ordered, splits, notes=tuple(notes))


def _class_folders(
    root: str, content: _Folder, *, all_full: bool = True
) -> tuple[tuple[str, ...], list[Entry], tuple[str, ...]]:
    if not content.folders:
        raise UserError(_no_classes(root, content))
    names: list[str] = []
    labels: list[str] = []
    for label in content.folders:
        below = images_below(os.path.join(root, label))
        names += [f"{label}/{name}" for name in below]
        labels += [label] * len(below)
    if not names:
        raise UserError(f"{root} holds no image ({', '.join(SUFFIXES)}); expected {root}/CLASS/IMAGE")
    empty = [name for name in content.folders if name not in set(labels)]
    if empty and all_full:
        raise UserError(
            f"{os.path.join(root, empty[0])} holds no image, so its class has none"
            f"{_more(len(empty) - 1)}; add images or remove the folder"
        )
    classes, entries = label_entries(names, labels)
    notes = ()
    if content.images:
        notes = (f"{len(content.images)} images directly in {root}, outside every class folder, left out",)
    return classes, entries, notes


def _no_classes(root: str, content: _Folder) -> str:
    tables = [name for name in content.others if name.lower().endswith((".csv", ".jsonl"))]
    if tables:
        return f"{root} has no class folders but holds {tables[0]}; if that is a manifest, give its path"
    if content.images:
        return (
            f"{root} holds {len(content.images)} images but no class folders; "
            "move each to a folder named after its class, or give a manifest (.csv or .jsonl)"
        )
    if content.others:
        return f"{root} holds no image and no class folder; expected {root}/CLASS/IMAGE"
    return f"{root} is empty; expected {root}/CLASS/IMAGE"


def _content(folder: str) -> _Folder:
    folders, images, others = [], [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif is_image(entry.name):
                images.append(entry.name)
            else:
                others.append(entry.name)
    return _Folder(tuple(sorted(folders, key=natural_order)), tuple(sorted(images)), tuple(sorted(others)))


def _more(count: int) -> str:
    return f" (and {count} more such folders)" if count else ""
