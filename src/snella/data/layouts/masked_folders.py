"""Folders of images and masks: which image has which mask, and in which split.

root/images/NAME.jpg               root/masks/NAME.png
root/{train,val,test}/images/...   root/{train,val,test}/masks/...
root/images/{train,val,test}/...   root/masks/{train,val,test}/...
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from snella.data.folder_names import SPLIT_NAMES
from snella.data.images import images_below, is_hidden, is_image
from snella.data.masks.class_names import names_file
from snella.data.masks.listing import MaskListing, Pair
from snella.errors import UserError

IMAGES = ("images", "image", "imgs", "img", "jpegimages", "original")
MASKS = ("masks", "mask", "labels", "label", "annotations", "annotation", "gt", "segmentationclass", "ground truth")
MASK_SUFFIXES = ("_mask", "_seg", "_segmentation", "_label", "_gt")

EXPECTED = "images/NAME and masks/NAME, with or without train, val and test folders"


def is_masked_folder(root: str) -> bool:
    """Tell whether a folder holds folders of images and of masks, itself or in its split folders. No file is opened."""
    try:
        return _has_both(root) or any(_split_folders(root))
    except OSError:
        return False


def masked_folder(root: str) -> MaskListing:
    """Pair the images and masks below a folder.

    Raises:
        UserError: no images or no masks, no pair, two masks for one image, two folders for one role.
    """
    if _has_both(root):
        images, masks = _only_folder(root, IMAGES, "images"), _only_folder(root, MASKS, "masks")
        image_splits = {_split(name): name for name in _unique_splits(os.path.join(root, images))}
        mask_splits = {_split(name): name for name in _unique_splits(os.path.join(root, masks))}
        if image_splits and mask_splits:
            parts = {
                split: (f"{images}/{name}", f"{masks}/{mask_splits[split]}")
                for split, name in image_splits.items()
                if split in mask_splits
            }
            lone = [f"{images}/{name}" for split, name in image_splits.items() if split not in mask_splits]
            return pair_folders("images and masks with splits", root, parts, lone)
        return pair_folders("images and masks", root, {"all": (images, masks)}, [])
    folders = list(_split_folders(root))
    if not folders:
        raise UserError(_unknown(root))
    whole = _unique_splits(root)
    parts = {}
    for name in folders:
        folder = os.path.join(root, name)
        images, masks = _only_folder(folder, IMAGES, "images"), _only_folder(folder, MASKS, "masks")
        parts[_split(name)] = (f"{name}/{images}", f"{name}/{masks}")
    lone = [name for name in whole if name not in folders]
    return pair_folders("images and masks in split folders", root, parts, lone)


def pair_folders(layout: str, root: str, parts: dict[str, Pair], lone: Sequence[str]) -> MaskListing:
    """Match the images and masks of each split's two folders; `lone` are split folders without masks."""
    if not parts:
        raise UserError(f"{root}: no split has both images and masks; expected {EXPECTED}")
    splits: dict[str, list[Pair]] = {}
    notes = [f"{name} has no masks beside it, left out" for name in lone]
    for split, (image_folder, mask_folder) in parts.items():
        images = images_below(os.path.join(root, image_folder))
        masks = images_below(os.path.join(root, mask_folder))
        pairs = _match(images, masks, f"{root}/{image_folder}", f"{root}/{mask_folder}")
        splits[split] = [(f"{image_folder}/{image}", f"{mask_folder}/{mask}") for image, mask in pairs]
        notes += note_left_out(images, {image for image, _ in pairs}, image_folder, "images without a mask")
        notes += note_left_out(masks, {mask for _, mask in pairs}, mask_folder, "masks without an image")
    parents = [os.path.join(root, os.path.dirname(images)) for images, _ in parts.values()]
    return MaskListing(layout, root, splits, names_file([root, *parents]), tuple(notes))


def _match(images: list[str], masks: list[str], image_folder: str, mask_folder: str) -> list[Pair]:
    by_stem = _by_stem(images)
    masks_by_stem = _by_stem(masks)
    if not by_stem.keys() & masks_by_stem.keys():
        suffix = next((s for s in MASK_SUFFIXES if all(stem.lower().endswith(s) for stem in masks_by_stem)), "")
        masks_by_stem = {stem[: len(stem) - len(suffix)]: names for stem, names in masks_by_stem.items()}
    common = [stem for stem in by_stem if stem in masks_by_stem]
    if not common:
        raise UserError(
            f"no mask of {mask_folder} has the name of an image of {image_folder}: {_first(images)} and "
            f"{_first(masks)}; give mask and image the same name"
        )
    for stem in common:
        for names, folder, what in (
            (masks_by_stem[stem], mask_folder, "masks for one image"),
            (by_stem[stem], image_folder, "images for one mask"),
        ):
            if len(names) > 1:
                raise UserError(f"{folder} has {len(names)} {what}: {names[0]} and {names[1]}; keep one")
    return [(by_stem[stem][0], masks_by_stem[stem][0]) for stem in common]


def _by_stem(names: list[str]) -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        found[os.path.splitext(name)[0]].append(name)
    return dict(found)


def _first(names: list[str]) -> str:
    return names[0] if names else "nothing"


def note_left_out(names: Sequence[str], used: set[str], folder: str, what: str) -> list[str]:
    lone = [name for name in names if name not in used]
    if not lone:
        return []
    return [f"{folder}: {len(lone)} {what} left out: {', '.join(lone[:3])}{', ...' if len(lone) > 3 else ''}"]


def _folders(root: str, accept: Callable[[str], bool]) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(
            entry.name for entry in entries if not is_hidden(entry.name) and accept(entry.name) and entry.is_dir()
        )


def _roles(root: str, role: Sequence[str]) -> list[str]:
    """Return the sub-folders named after the role that hold an image; one of annotations as text does not."""
    named = _folders(root, lambda name: name.lower().replace("_", " ").replace("-", " ") in role)
    return [name for name in named if _any_image(os.path.join(root, name))]


def _any_image(folder: str) -> bool:
    return any(is_image(name) for _, _, files in os.walk(folder, followlinks=True) for name in files)


def _has_both(root: str) -> bool:
    return bool(_roles(root, IMAGES) and _roles(root, MASKS))


def _only_folder(root: str, role: Sequence[str], what: str) -> str:
    found = _roles(root, role)
    if len(found) > 1:
        raise UserError(f"{root} has two folders of {what}, {found[0]} and {found[1]}; keep one")
    return found[0]


def _split(name: str) -> str:
    return SPLIT_NAMES[name.lower()]


def _split_folders(root: str) -> Iterator[str]:
    """Yield the split folders that hold images and masks."""
    names = _folders(root, lambda name: name.lower() in SPLIT_NAMES)
    return (name for name in names if _has_both(os.path.join(root, name)))


def _unique_splits(root: str) -> list[str]:
    """Return all split folders. Raises UserError where two stand for one split."""
    by_split: dict[str, str] = {}
    for name in _folders(root, lambda name: name.lower() in SPLIT_NAMES):
        if _split(name) in by_split:
            raise UserError(f"{root} has two {_split(name)} folders, {by_split[_split(name)]} and {name}; keep one")
        by_split[_split(name)] = name
    return list(by_split.values())


def _unknown(root: str) -> str:
    for role, what, lacking in ((IMAGES, "images", "masks"), (MASKS, "masks", "images")):
        found = _roles(root, role)
        if found:
            return f"{root} has {what} ({found[0]}) but no folder of {lacking}; expected {EXPECTED}"
    return f"{root} holds no images with masks; expected {EXPECTED} (to train on class folders: --task classify)"
