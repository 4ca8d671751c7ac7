"""Folders of images and masks: which image has which mask, and in which split.

root/images/NAME.jpg               root/masks/NAME.png
root/{train,val,test}/images/...   root/{train,val,test}/masks/...
root/images/{train,val,test}/...   root/masks/{train,val,test}/...
root/{train,val,test}/NAME.jpg     root/{train,val,test}_masks/NAME.png, or trainannot, labels_train, ...
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from snella.data.folders.names import IMAGE_WORDS, MASK_WORDS, VAGUE, split_and_rest, split_of
from snella.data.folders.tree import tree
from snella.data.images import images_below, is_hidden, is_image
from snella.data.layouts.masks_beside import FIRST, looks_like_mask
from snella.data.masks.class_names import names_file
from snella.data.masks.listing import MaskListing, Pair
from snella.data.paths import composed
from snella.errors import UserError, listed

MASK_SUFFIXES = ("_mask", "_seg", "_segmentation", "_label", "_gt")
SURE = 0.5  # share of the masks that have an image, where names of folders alone do not tell

EXPECTED = "images/NAME and masks/NAME, with or without train, val and test folders"
Role = Literal["images", "masks"]


def is_masked_folder(root: str) -> bool:
    """Tell whether a folder holds folders of images and of masks, itself or in its split folders."""
    try:
        root = _unwrapped(root)
        return _has_both(root) or any(_split_folders(root))
    except OSError:
        return False


def masked_folder(root: str) -> MaskListing:
    """Pair the images and masks below a folder.

    Raises:
        UserError: no images or no masks, no pair, two masks for one image, two folders for one role.
    """
    inner = _unwrapped(root)
    beside = tree(root).notes
    if _has_both(inner):
        images, masks = _folders_of(inner, "images"), _folders_of(inner, "masks")
        parts = {split or "all": (name, masks[split]) for split, name in images.items() if split in masks}
        lone = [name for split, name in images.items() if split not in masks]
        layout = "images and masks"
        if "all" in parts:
            whole, parts = parts["all"], _inner_splits(inner, *parts["all"])
            lone = [f"{whole[0]}/{name}" for name in _unique_splits(os.path.join(inner, whole[0])).values()]
            lone = [name for name in lone if name not in {pair[0] for pair in parts.values()}]
            parts, lone = (parts, lone) if parts else ({"all": whole}, [])
        layout += "" if "all" in parts else " with splits"
        return pair_folders(layout, inner, parts, lone, beside)
    folders = list(_split_folders(inner))
    if not folders:
        raise UserError(_unknown(root))
    parts = {}
    for name in folders:
        images, masks = (_folders_of(os.path.join(inner, name), role)[None] for role in ("images", "masks"))
        parts[split_of(name) or name] = (f"{name}/{images}", f"{name}/{masks}")
    lone = [name for name in _unique_splits(inner).values() if name not in folders]
    return pair_folders("images and masks in split folders", inner, parts, lone, beside)


def pair_folders(
    layout: str, root: str, parts: dict[str, Pair], lone: Sequence[str], notes: Sequence[str] = ()
) -> MaskListing:
    """Match the images and masks of each split's two folders; `lone` are split folders without masks."""
    if not parts:
        raise UserError(f"{root}: no split has both images and masks; expected {EXPECTED}")
    splits: dict[str, list[Pair]] = {}
    notes = [*notes, *(f"{name} has no masks beside it, left out" for name in lone)]
    for split, (image_folder, mask_folder) in parts.items():
        images = images_below(os.path.join(root, image_folder))
        masks = images_below(os.path.join(root, mask_folder))
        inner = {mask.partition("/")[0] for mask in masks if "/" in mask}
        if len(inner) == 1 and all("/" in mask for mask in masks) and not any("/" in image for image in images):
            mask_folder = f"{mask_folder}/{inner.pop()}"
            masks = images_below(os.path.join(root, mask_folder))
        pairs = _match(images, masks, f"{root}/{image_folder}", f"{root}/{mask_folder}")
        splits[split] = [(f"{image_folder}/{image}", f"{mask_folder}/{mask}") for image, mask in pairs]
        notes += note_left_out(images, {image for image, _ in pairs}, image_folder, "images without a mask")
        notes += note_left_out(masks, {mask for _, mask in pairs}, mask_folder, "masks without an image")
    parents = [os.path.join(root, os.path.dirname(images)) for images, _ in parts.values()]
    return MaskListing(layout, root, splits, names_file([root, *parents]), tuple(notes))


def _match(images: list[str], masks: list[str], image_folder: str, mask_folder: str) -> list[Pair]:
    by_stem, masks_by_stem = _stems(images, masks)
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


def _stems(images: list[str], masks: list[str]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return images and masks by what they have in common: the stem, or the stem less what all of a folder end in."""
    by_stem, masks_by_stem = _by_stem(images), _by_stem(masks)
    if by_stem.keys() & masks_by_stem.keys():
        return by_stem, masks_by_stem
    suffix = next((s for s in MASK_SUFFIXES if all(stem.lower().endswith(s) for stem in masks_by_stem)), "")
    if suffix:
        return by_stem, _without_ending(masks_by_stem, len(suffix))
    endings = [_common_ending(by_stem), _common_ending(masks_by_stem)]
    for image_ending, mask_ending in ((0, endings[1]), (endings[0], endings[1])):
        shorter = _without_ending(by_stem, image_ending), _without_ending(masks_by_stem, mask_ending)
        if len(masks) > 1 and mask_ending and shorter[0].keys() & shorter[1].keys():
            return shorter
    return by_stem, masks_by_stem


def _common_ending(stems: Sequence[str] | dict[str, list[str]]) -> int:
    """Return the length of the ending that all stems have, from its first mark on: _leftImg8bit of a_1_leftImg8bit."""
    first, last = min(stems, key=_backwards), max(stems, key=_backwards)
    length = next((i for i in range(len(first)) if first[-i - 1 :] != last[-i - 1 :]), len(first))
    ending = first[len(first) - length :]
    marks = [i for i, letter in enumerate(ending) if letter in "_-. "]
    return len(ending) - marks[0] if marks else 0


def _backwards(stem: str) -> str:
    return stem[::-1]


def _without_ending(by_stem: dict[str, list[str]], length: int) -> dict[str, list[str]]:
    return {stem[: len(stem) - length]: names for stem, names in by_stem.items()}


def _by_stem(names: list[str]) -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        found[composed(os.path.splitext(name)[0])].append(name)
    return dict(found)


def _first(names: list[str]) -> str:
    return names[0] if names else "nothing"


def note_left_out(names: Sequence[str], used: set[str], folder: str, what: str) -> list[str]:
    lone = [name for name in names if name not in used]
    if not lone:
        return []
    return [f"{folder}: {len(lone)} {what} left out: {listed(lone)}"]


def _unwrapped(root: str) -> str:
    """Return the folder below which all lies: the only one with images, again and again."""
    inner = root
    while True:
        with os.scandir(inner) as entries:
            shown = [entry for entry in entries if not is_hidden(entry.name)]
        folders = [entry.name for entry in shown if entry.is_dir() and _any_image(entry.path)]
        if len(folders) != 1 or split_of(folders[0]) or _role(folders[0]) or any(is_image(e.name) for e in shown):
            return inner
        inner = os.path.join(inner, folders[0])


def _folders(root: str, accept: Callable[[str], object]) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(
            entry.name for entry in entries if not is_hidden(entry.name) and accept(entry.name) and entry.is_dir()
        )


def _role(name: str) -> Role | None:
    """Return what a folder holds by its name; one named after a split alone holds images."""
    split, words = split_and_rest(name)
    if any(word in MASK_WORDS for word in words):
        return "masks"
    return "images" if any(word in IMAGE_WORDS for word in words) or (split and not words) else None


def _roles(root: str) -> dict[str, Role | None]:
    """Return what the sub-folders with an image hold, by their names; of two that say nothing, by their files."""
    full = [name for name in _folders(root, lambda name: True) if _any_image(os.path.join(root, name))]
    roles: dict[str, Role | None] = {name: _role(name) for name in full}
    if len(full) == 2 and "masks" not in roles.values():
        for images, masks in (full, full[::-1]):
            image_folder, mask_folder = os.path.join(root, images), os.path.join(root, masks)
            photographs = [os.path.join(image_folder, name) for name in images_below(image_folder)[:FIRST]]
            if _go_together(image_folder, mask_folder, False) and not any(map(looks_like_mask, photographs)):
                return {images: "images", masks: "masks"}
    for masks in [name for name, role in roles.items() if role == "masks"]:
        split = split_and_rest(masks)[0]
        inside = [name for name in full if split_and_rest(name)[0] == split and name != masks]
        if len(inside) == 1 and roles[inside[0]] is None:  # as top beside gts_for_participants
            image_folder, mask_folder = os.path.join(root, inside[0]), os.path.join(root, masks)
            if _go_together(image_folder, mask_folder, False):
                roles[inside[0]] = "images"
    return roles


def _folders_of(root: str, role: Role) -> dict[str | None, str]:
    """Return the sub-folder of each split (None: of all) named after the role that hold an image; text does not count.

    Raises:
        UserError: two folders for one split.
    """
    found: dict[str | None, str] = {}
    for name, own in _roles(root).items():
        if own != role:
            continue
        split = split_and_rest(name)[0]
        if split in found:
            of = f" of the {split} split" if split else ""
            raise UserError(f"{root} has two folders of {role}{of}, {found[split]} and {name}; keep one")
        found[split] = name
    return found


def _any_image(folder: str) -> bool:
    return any(is_image(name) for _, _, files in os.walk(folder, followlinks=True) for name in files)


def _has_both(root: str) -> bool:
    """Tell whether a folder has folders of images and of masks; files of one stem decide where a split's is bare."""
    roles = _roles(root)
    for image in (name for name, role in roles.items() if role == "images"):
        for mask in (name for name, role in roles.items() if role == "masks"):
            (split, words), (mask_split, mask_words) = split_and_rest(image), split_and_rest(mask)
            if split != mask_split:
                continue
            told = VAGUE.isdisjoint((*words, *mask_words)) and _role(mask) == "masks"
            if (told and words) or _go_together(os.path.join(root, image), os.path.join(root, mask), told):
                return True
    return False


def _go_together(image_folder: str, mask_folder: str, told: bool) -> bool:
    """Tell whether most masks have an image of their stem and, where the name does not tell, look like masks."""
    masks = images_below(mask_folder)
    by_stem, masks_by_stem = _stems(images_below(image_folder), masks)
    paired = len(by_stem.keys() & masks_by_stem.keys()) >= SURE * len(masks_by_stem)
    return paired and (told or all(looks_like_mask(os.path.join(mask_folder, name)) for name in masks[:FIRST]))


def _inner_splits(root: str, images: str, masks: str) -> dict[str, Pair]:
    """Return the folders of each split that both folders have inside."""
    image_splits, mask_splits = (_unique_splits(os.path.join(root, folder)) for folder in (images, masks))
    return {
        split: (f"{images}/{name}", f"{masks}/{mask_splits[split]}")
        for split, name in image_splits.items()
        if split in mask_splits
    }


def _split_folders(root: str) -> Iterator[str]:
    """Yield the split folders that hold images and masks."""
    names = _folders(root, split_of)
    return (name for name in names if _has_both(os.path.join(root, name)))


def _unique_splits(root: str) -> dict[str, str]:
    """Return the folder of each split. Raises UserError where two stand for one."""
    by_split: dict[str, str] = {}
    for name in _folders(root, split_of):
        split = split_of(name) or ""
        if split in by_split:
            raise UserError(f"{root} has two {split} folders, {by_split[split]} and {name}; keep one")
        by_split[split] = name
    return by_split


def _unknown(root: str) -> str:
    for role, lacking in (("images", "masks"), ("masks", "images")):
        named = _folders(root, lambda name, role=role: _role(name) == role)
        full = [name for name in named if _any_image(os.path.join(root, name))]
        if full:
            return f"{root} has {role} ({full[0]}) but no folder of {lacking}; expected {EXPECTED}"
    return f"{root} holds no images with masks; expected {EXPECTED} (to train on class folders: --task classify)"
