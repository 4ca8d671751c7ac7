"""Layouts of images with masks: which mask is whose, before any of them is opened.

root/images + root/masks                     root/{train,val,test}/{images,masks}
root/{images,masks}/{train,val,test}         ADE20K, Pascal VOC
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from PIL import Image
from torch import Tensor

from snella.data.folders import SPLIT_NAMES
from snella.data.images import hidden, images_below, open_image
from snella.data.masks import RGB, MaskCode, read_mask
from snella.errors import UserError

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "original")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations", "annotation", "gt", "ground truth")
MASK_SUFFIXES = ("_mask", "_seg", "_label", "_gt", "_segmentation")
VOC_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

Pair = tuple[str, str]  # an image's path and its mask's


@dataclass(frozen=True)
class Pairs:
    """What a layout says it holds. `splits` has "all" alone where there are none, otherwise some of the three."""

    layout: str
    splits: dict[str, list[Pair]]
    names: tuple[str, ...] | None = None  # of the classes, where the layout fixes them
    code: MaskCode | None = None  # likewise
    palette: tuple[RGB, ...] | None = None
    notes: tuple[str, ...] = ()
    read: Callable[[str], Image.Image] = open_image
    read_mask: Callable[[str, MaskCode], Tensor] = read_mask
    names_beside: tuple[str, ...] = ()  # folders that a names file may lie in


def is_paired(root: str) -> bool:
    """Whether a folder looks like images with masks: by the names of its folders alone."""
    try:
        return _voc_root(root) is not None or _ade_root(root) is not None or _folders(root) is not None
    except OSError:
        return False


def find_pairs(root: str) -> Pairs:
    """Recognise the layout of a folder and match images with masks.

    Raises:
        UserError: no such layout; folders without images or masks; no image that has a mask; two masks for one.
    """
    if voc := _voc_root(root):
        return _voc(voc)
    if ade := _ade_root(root):
        return _ade(ade)
    folders = _folders(root)
    if folders is None:
        raise UserError(
            f"{root} holds no images with masks; expected {os.path.join(root, 'images')} and "
            f"{os.path.join(root, 'masks')}, with one mask for each image under the same name"
        )
    splits, notes = _matched_splits(folders)
    layout = "images and masks" if "all" in splits else "images and masks with splits"
    parents = {os.path.dirname(folder) for pair in folders.values() for folder in pair}
    return Pairs(layout, splits, notes=tuple(notes), names_beside=(root, *sorted(parents - {root})))


def matched(images: str, masks: str) -> tuple[list[Pair], list[str]]:
    """Images and masks of two folders under the same name, and what is left over, in words.

    Names are compared without their endings; a part such as `_mask` that all masks have at their end is left out.
    """
    image_of, mask_of = _by_name(images), _by_name(masks)
    suffix = next((s for s in MASK_SUFFIXES if mask_of and all(name.endswith(s) for name in mask_of)), "")
    mask_of = {name.removesuffix(suffix): path for name, path in mask_of.items()}
    for found, folder in ((image_of, images), (mask_of, masks)):
        if not found:
            raise UserError(f"{folder} holds no image; expected one for each image of the data set")
    both = [name for name in image_of if name in mask_of]
    if not both:
        raise UserError(
            f"no image of {images} has a mask in {masks}: {next(iter(image_of))} and {next(iter(mask_of))}, for "
            "instance; give a mask the name of its image"
        )
    notes = []
    sides = (("images without a mask", image_of, mask_of), ("masks without an image", mask_of, image_of))
    for what, found, other in sides:
        alone = [path for name, path in found.items() if name not in other]
        if alone:
            more = ", ..." if len(alone) > 3 else ""
            names = ", ".join(os.path.basename(path) for path in alone[:3])
            notes.append(f"{len(alone)} {what} left out: {names}{more}")
    return [(image_of[name], mask_of[name]) for name in both], notes


def _by_name(folder: str) -> dict[str, str]:
    """Relative name without ending -> path, of all images below a folder."""
    found: dict[str, str] = {}
    for name in images_below(folder):
        key = str(PurePosixPath(name).with_suffix(""))
        path = os.path.join(folder, name)
        if key in found:
            raise UserError(f"{found[key]} and {path} have one name; keep one of the two")
        found[key] = path
    return found


def _folders(root: str) -> dict[str, Pair] | None:
    """Split -> its folder of images and its folder of masks; None where the names say nothing of the kind."""
    if pair := _image_and_mask(root):
        images, masks = pair
        inside = [_splits_of(images), _splits_of(masks)]
        if inside[0] and inside[0].keys() == inside[1].keys():
            return {split: (folder, inside[1][split]) for split, folder in inside[0].items()}
        return {"all": pair}
    splits = {split: _image_and_mask(folder) for split, folder in _splits_of(root).items()}
    found = {split: pair for split, pair in splits.items() if pair}
    return found if "train" in found else None


def _image_and_mask(folder: str) -> Pair | None:
    below = {name.lower(): os.path.join(folder, name) for name in _subfolders(folder)}
    images = [below[name] for name in IMAGE_FOLDERS if name in below]
    masks = [below[name] for name in MASK_FOLDERS if name in below]
    return (images[0], masks[0]) if images and masks else None


def _splits_of(folder: str) -> dict[str, str]:
    return {
        SPLIT_NAMES[name.lower()]: os.path.join(folder, name)
        for name in _subfolders(folder)
        if name.lower() in SPLIT_NAMES
    }


def _subfolders(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not hidden(entry.name))


def _inside(root: str, marks: Sequence[str], places: Sequence[str]) -> str | None:
    """The folder, `root` itself or one of the usual places below it, that has all the marks."""
    for place in ("", *places):
        folder = os.path.join(root, place) if place else root
        if all(os.path.exists(os.path.join(folder, mark)) for mark in marks):
            return folder
    return None


def _ade_root(root: str) -> str | None:
    marks = ("objectInfo150.txt", "images/training", "annotations/training")
    return _inside(root, marks, ("ADEChallengeData2016",))


def _ade(root: str) -> Pairs:
    """ADE20K as the scene-parsing challenge has it: values 1 to 150, 0 is no class."""
    table = os.path.join(root, "objectInfo150.txt")
    with open(table, encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file][1:]
    names = tuple(row[-1].split(",")[0].strip() for row in rows if row[0].strip().isdecimal())
    if len(names) != 150:
        raise UserError(f"{table} names {len(names)} classes instead of 150; fetch the file anew")
    folders = {
        ours: (os.path.join(root, "images", part), os.path.join(root, "annotations", part))
        for ours, part in {"train": "training", "test": "validation"}.items()
    }
    splits, notes = _matched_splits(folders)
    notes.append("test is the published validation split, which published figures are of; 0 in a mask is no class")
    return Pairs("ADE20K", splits, names, MaskCode(tuple(range(1, 151)), ignore=(0,)), notes=tuple(notes))


def _matched_splits(folders: Mapping[str, Pair]) -> tuple[dict[str, list[Pair]], list[str]]:
    splits, notes = {}, []
    for split, (images, masks) in folders.items():
        splits[split], said = matched(images, masks)
        notes += said
    return splits, notes


def _voc_root(root: str) -> str | None:
    marks = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation/train.txt")
    return _inside(root, marks, ("VOC2012", "VOCdevkit/VOC2012"))


def _voc(root: str) -> Pairs:
    """Pascal VOC: palette masks, 255 (the rim of objects) is no class."""
    splits = {}
    for ours, part in {"train": "train", "test": "val"}.items():
        table = os.path.join(root, "ImageSets", "Segmentation", f"{part}.txt")
        if not os.path.isfile(table):
            continue
        with open(table, encoding="utf-8") as file:
            names = file.read().split()
        splits[ours] = [
            (os.path.join(root, "JPEGImages", f"{name}.jpg"), os.path.join(root, "SegmentationClass", f"{name}.png"))
            for name in names
        ]
    note = "test is the published validation split, which published figures are of; 255 in a mask is no class"
    return Pairs("Pascal VOC", splits, VOC_NAMES, MaskCode(tuple(range(21)), ignore=(255,)), notes=(note,))
