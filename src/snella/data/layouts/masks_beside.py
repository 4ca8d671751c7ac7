"""Masks in the same folder as their images: `NAME.jpg` with `NAME.png`, or `NAME.png` with `NAME_mask.png`.

A name that ends in `_mask` and the like beside an image of the rest of the name is a mask, whatever it holds. A second
file of the same stem is one if its pixels are those of masks: few values, or nearly all of them black or white.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from PIL import Image

from snella.data.folders.image_lists import found_lists, listed_splits
from snella.data.folders.names import MASK_WORDS, VAGUE, holds_images, split_and_rest, split_of
from snella.data.folders.pair_lists import listed_pairs
from snella.data.folders.tree import Tree, tree
from snella.data.masks.class_names import names_file
from snella.data.masks.listing import MaskListing, Pair
from snella.errors import UserError, counted, listed

FIRST = 5  # files of a folder whose name does not tell that are opened
LOOKED_AT = 100  # second files of a stem that are opened, evenly chosen
FEW = 64  # values of a mask of classes
FLAT = 0.9  # share of its pixels that the two commonest values of a mask with soft edges have
_WORDS = "mask|masks|seg|segmentation|label|labels|gt|groundtruth"
MASK_SUFFIX = re.compile(rf"^(.+)[ _.-](?:{_WORDS})(?:[ _-]?\d+)?$", re.I)
MASK_PREFIX = re.compile(rf"^(?:{_WORDS})[ _.-](.+)$", re.I)


@dataclass(frozen=True)
class Beside:
    """Images with the mask beside each; `several` are masks of images that have more than one."""

    pairs: tuple[Pair, ...] = ()
    several: tuple[str, ...] = ()

    @property
    def masks(self) -> frozenset[str]:
        return frozenset([*(mask for _, mask in self.pairs), *self.several])


def masks_beside(found: Tree) -> Beside:
    """Find the masks among the images of a tree.

    Raises:
        UserError: of the second files of a stem some look like masks, others do not.
    """
    masks_of: defaultdict[str, list[str]] = defaultdict(list)
    by_stem: defaultdict[str, list[str]] = defaultdict(list)
    for name in found.images:
        by_stem[os.path.splitext(name)[0]].append(name)
    for stem, names in by_stem.items():
        folder, _, last = stem.rpartition("/")
        of = MASK_SUFFIX.match(last) or MASK_PREFIX.match(last)
        images = by_stem.get(f"{folder}/{of[1]}" if folder else of[1], []) if of else []
        if images:
            masks_of[images[0]] += names
    for image, mask in _masks_of_one_beginning(found, by_stem):
        masks_of[image].append(mask)
    masks = {mask for names in masks_of.values() for mask in names}
    twins = [names for stem, names in by_stem.items() if len(names) == 2 and not masks.intersection(names)]
    for image, mask in _masks_of_one_stem(found, twins):
        masks_of[image].append(mask)
    for image, mask in _masks_in_folders(found):
        masks_of[image].append(mask)
    pairs = tuple((image, names[0]) for image, names in sorted(masks_of.items()) if len(names) == 1)
    several = tuple(name for _, names in sorted(masks_of.items()) if len(names) > 1 for name in names)
    return Beside(pairs, several)


def without_masks(found: Tree) -> Tree:
    """Return the tree without masks that lie beside images, and a note that says so."""
    masks = masks_beside(found).masks
    if not masks:
        return found
    first = next(name for name in found.images if name in masks)
    note = f"{counted(len(masks), 'mask')} beside the images left out, the first: {first} (--task segment reads them)"
    return found.only(lambda name: name not in masks, note)


def has_masks_beside(root: str) -> bool:
    """Tell whether most images of a folder, which has no class folders, have a mask beside them."""
    if not os.path.isdir(root):
        return False
    found = tree(root)
    beside = masks_beside(found)
    images = [name for name in found.images if name not in beside.masks]
    folders = {os.path.dirname(name) for name in images}
    plain = len(folders) == 1 or all(split_of(part) for folder in folders for part in folder.split("/"))
    return plain and 2 * len(beside.pairs) > len(images)


def beside_folder(root: str) -> MaskListing | None:
    """List images with the masks beside them, split by split folders; None where there are none.

    Raises:
        UserError: two folders for one split.
    """
    found = tree(root)
    beside = masks_beside(found)
    if not beside.pairs:
        if beside.several:
            raise UserError(
                f"{root}: images have several masks each, such as {listed(beside.several, 2)}, of objects or of "
                "classes; join them to one mask for each image"
            )
        return None
    splits: defaultdict[str, list[Pair]] = defaultdict(list)
    folder_of: dict[str, str] = {}
    for image, mask in beside.pairs:
        folder = image.split("/")[0] if "/" in image else ""
        split = split_of(folder) or "all"
        if split != "all" and folder_of.setdefault(split, folder) != folder:
            raise UserError(f"{root} has two {split} folders, {folder_of[split]} and {folder}; keep one")
        splits[split].append((image, mask))
    notes = list(found.notes)
    if "all" in splits and len(splits) > 1:
        notes.append(
            f"{counted(len(splits['all']), 'image')} outside the splits left out, as {splits.pop('all')[0][0]}"
        )
    known = {name for pair in beside.pairs for name in pair}
    lone = [name for name in found.images if name not in known and name not in beside.several]
    if lone:
        notes.append(f"{counted(len(lone), 'image')} without a mask left out: {listed(lone)}")
    if beside.several:
        notes.append(f"images with more than one mask left out; the masks: {listed(beside.several)}")
    return MaskListing("masks beside the images", root, dict(splits), names_file([root]), tuple(notes))


def pairs_in_lists(root: str) -> MaskListing | None:
    """List the images and masks that lists or tables of a folder pair; None without such, or if they are no masks.

    Raises:
        UserError: several lists of one split, an image in two splits.
    """
    found = tree(root)
    told = listed_pairs(found) if found.images else None
    if told is None:
        return None
    pairs = [pair for inside in told.splits.values() for pair in inside]
    if not all(looks_like_mask(found.path(mask)) for _, mask in pairs[:FIRST]):
        return None
    known = {name for pair in pairs for name in pair}
    rest = [name for name in found.images if name not in known]
    notes = [f"{counted(told.missing, 'row')} of the lists that name no file left out"] if told.missing else []
    notes += [f"{counted(len(rest), 'file')} that no list names left out: {listed(rest)}"] if rest else []
    layout = f"pairs listed in {', '.join(told.files)}"
    return MaskListing(layout, root, told.splits, names_file([root]), (*found.notes, *notes))


def in_listed_splits(root: str, listing: MaskListing) -> MaskListing:
    """Divide pairs without splits by lists of their images (`train.txt`, `val.txt`), where there are such."""
    if listing.splits.keys() != {"all"}:
        return listing
    name_of = {
        os.path.relpath(listing.path(pair[0]), root).replace(os.sep, "/"): pair for pair in listing.splits["all"]
    }
    images = tree(root).only(lambda name: name in name_of)
    told = listed_splits(images, found_lists(images), name_of)
    if told is None:
        return listing
    splits: defaultdict[str, list[Pair]] = defaultdict(list)
    for name, split in told[0].items():
        splits[split].append(name_of[name])
    rest = [name for name in name_of if name not in told[0]]
    notes = [f"{counted(len(rest), 'image')} that no list names left out: {listed(rest)}"] if rest else []
    layout = f"{listing.layout} with the splits of {', '.join(told[1])}"
    return replace(listing, layout=layout, splits=dict(splits), notes=(*listing.notes, *notes))


def looks_like_mask(path: str) -> bool:
    """Tell whether a file's pixels are those of a mask: few values or colours, or nearly all black or white."""
    return _mask_likeness(path) > 0


def _mask_likeness(path: str) -> int:
    """Return 0 for a photograph, 1 for few colours, 2 for few levels of grey or a palette."""
    try:
        with Image.open(path) as image:
            if image.mode == "1":
                return 2
            if image.mode in ("P", "L", "LA", "PA") or image.mode.startswith("I"):
                pixels = np.asarray(image)
                counts = np.unique(pixels[..., 0] if pixels.ndim == 3 else pixels, return_counts=True)[1]
                commonest = np.sort(counts)[::-1]
                return 2 * bool(len(counts) <= FEW or commonest[:2].sum() >= FLAT * counts.sum())
            return int(len(image.convert("RGB").getcolors(1 << 24) or range(FEW + 1)) <= FEW)
    except Exception:  # what cannot be read is named where images are checked
        return 0


def _masks_of_one_beginning(found: Tree, by_stem: Mapping[str, list[str]]) -> list[Pair]:
    """Return (image, mask) of NAME_sat.jpg and NAME_mask.png, where each mask has one such image and looks like one."""
    beside: defaultdict[str, list[str]] = defaultdict(list)
    masks: dict[str, str] = {}
    for stem, names in by_stem.items():
        folder, _, last = stem.rpartition("/")
        ending = MASK_SUFFIX.match(last)
        beginning = ending or re.match(r"^(.+)[ _.-][^ _.-]+$", last)
        if beginning and not (ending and f"{folder}/{ending[1]}".lstrip("/") in by_stem):
            key = f"{folder}/{beginning[1]}"
            if ending:
                masks[key] = names[0]
            else:
                beside[key] += names
    pairs = [(beside[key][0], mask) for key, mask in masks.items() if len(beside.get(key, ())) == 1]
    sure = 2 <= len(pairs) == len(masks) and all(looks_like_mask(found.path(mask)) for _, mask in pairs[:FIRST])
    return pairs if sure else []


def _masks_of_one_stem(found: Tree, twins: Sequence[list[str]]) -> list[Pair]:
    """Return (image, mask) of pairs of one stem, if the pairs looked at hold a mask each."""
    chosen = [twins[i] for i in np.linspace(0, len(twins) - 1, min(len(twins), LOOKED_AT)).astype(int)]
    looks = [[_mask_likeness(found.path(name)) for name in pair] for pair in chosen]
    masks = [pair[alike.index(max(alike))] for pair, alike in zip(chosen, looks, strict=True) if alike[0] != alike[1]]
    if not masks:
        return []
    endings = {os.path.splitext(mask)[1].lower() for mask in masks}
    odd = next((pair for pair, alike in zip(chosen, looks, strict=True) if alike[0] == alike[1]), None)
    pairs = [
        (image, mask)
        for first, second in twins
        for image, mask in ((first, second), (second, first))
        if os.path.splitext(mask)[1].lower() in endings and os.path.splitext(image)[1].lower() not in endings
    ]
    if odd or len(pairs) < len(twins):
        some = odd or next(pair for pair in twins if tuple(pair) not in {*pairs, *((b, a) for a, b in pairs)})
        raise UserError(
            f"{found.root}: of two files of one name one is a mask in some places, but not in all "
            f"({' and '.join(some)}); two readings: images and their masks, or images all; name masks NAME_mask.png, "
            "or images otherwise"
        )
    return pairs


def _holds_masks(found: Tree, folder: str, files: Mapping[str, str]) -> bool:
    """Tell whether a folder holds masks by its name and, where that may be a class as well, by the first files."""
    words = set(split_and_rest(folder.rpartition("/")[2])[1])
    if not words & MASK_WORDS:
        return False
    first = islice(files.values(), FIRST)
    return bool(words & MASK_WORDS - VAGUE) or all(looks_like_mask(found.path(name)) for name in first)


def _masks_in_folders(found: Tree) -> list[Pair]:
    """Return (image, mask) of class folders that hold a folder of images and one of masks.

    Masks of no image's stem, such as those of single objects, go to the first image.
    """
    by_folder: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for name in found.images:
        folder, _, file = name.rpartition("/")
        by_folder[folder][os.path.splitext(file)[0]] = name
    inside: defaultdict[str, list[str]] = defaultdict(list)
    for folder in by_folder:
        if "/" in folder:
            inside[folder.rpartition("/")[0]].append(folder)
    pairs = []
    for folders in inside.values():
        images = [folder for folder in folders if holds_images(folder.rpartition("/")[2])]
        masks = [folder for folder in folders if _holds_masks(found, folder, by_folder[folder])]
        for image_folder in images[:1]:
            first = next(iter(by_folder[image_folder].values()))
            for mask_folder in masks:
                of = by_folder[image_folder]
                pairs += [(of.get(stem, first), mask) for stem, mask in by_folder[mask_folder].items()]
    return pairs
