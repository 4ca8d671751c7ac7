"""Layouts of published segmentation benchmarks: Pascal VOC (VOCdevkit/VOC2012), ADE20K, CamVid, Cityscapes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from snella.data.folders.tree import tree
from snella.data.images import images_below
from snella.data.layouts.masked_folders import masked_folder, note_left_out, pair_folders
from snella.data.masks.class_names import ADE_FILE, ade_names, camvid_names, cityscapes_names, voc_names
from snella.data.masks.listing import MaskListing, Pair
from snella.data.paths import read_text
from snella.errors import UserError, counted

CITY_FOLDERS = ("leftImg8bit", "gtFine")
CITY_IMAGE = "_leftImg8bit.png"
CITY_KINDS = ("labelTrainIds", "labelIds")  # of masks, the better first
CAMVID_FOLDERS = ("train", "trainannot")
CAMVID_SEQUENCES = ("0001TP_", "0006R0_", "0016E5_", "Seq05VD_")


def is_voc(root: str) -> bool:
    """Tell whether Pascal VOC lies in a folder or where its archive unpacks below it."""
    return _voc_root(root) is not None


def voc(root: str) -> MaskListing:
    """List Pascal VOC by its own lists of names.

    Raises:
        UserError: a list that is missing or empty, a split none of whose images has both its files.
    """
    root = _voc_root(root) or root
    lists = {name: _list(root, name) for name in ("train", "val", "trainval")}
    test = lists["val"]
    if test is None or (lists["train"] is None and lists["trainval"] is None):
        raise UserError(f"{root}/ImageSets/Segmentation lacks val.txt or train.txt; take them from the data set")
    train = lists["train"]
    if train is None:
        train = [name for name in lists["trainval"] or [] if name not in set(test)]
    splits: dict[str, list[Pair]] = {}
    notes = ["the published val set is test here (published figures are on it)"]
    for split, names in (("train", train), ("test", test)):
        pairs = {name: (f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png") for name in names}
        there = {name for name, pair in pairs.items() if all(os.path.isfile(os.path.join(root, file)) for file in pair)}
        if not there:
            raise UserError(f"{root}: no image of {split} has both its files, such as {' and '.join(pairs[names[0]])}")
        splits[split] = [pair for name, pair in pairs.items() if name in there]
        notes += note_left_out(list(pairs), there, f"{split} list", "names without image or mask")
    return MaskListing("Pascal VOC", root, splits, voc_names(), tuple(notes))


def is_ade(root: str) -> bool:
    """Tell whether ADE20K lies in a folder or where its archive unpacks below it."""
    return _ade_root(root) is not None


def ade(root: str) -> MaskListing:
    """List ADE20K by its folders of training and validation.

    Raises:
        UserError: neither split has images and masks, a table of classes that cannot be read.
    """
    root = _ade_root(root) or root
    names = ade_names(os.path.join(root, ADE_FILE))
    parts = {
        split: (f"images/{name}", f"annotations/{name}")
        for split, name in (("train", "training"), ("test", "validation"))
        if all(os.path.isdir(os.path.join(root, side, name)) for side in ("images", "annotations"))
    }
    listing = pair_folders("ADE20K", root, parts, [])
    note = "the published validation set is test here (published figures are on it)"
    return MaskListing("ADE20K", root, listing.splits, names, (*listing.notes, note))


def is_camvid(root: str) -> bool:
    """Tell whether CamVid lies in a folder as SegNet's authors publish it: by its folders and its sequences' names."""
    folder = os.path.join(root, CAMVID_FOLDERS[0])
    if not all(os.path.isdir(os.path.join(root, name)) for name in CAMVID_FOLDERS):
        return False
    images = images_below(folder)
    return bool(images) and all(name.startswith(CAMVID_SEQUENCES) for name in images)


def camvid(root: str) -> MaskListing:
    """List CamVid with its published splits, its classes' names and 11, unlabelled, for no class."""
    note = "CamVid as SegNet's authors publish it: value 11 of the masks (unlabelled) stands for no class"
    listing = masked_folder(root)
    return replace(listing, layout="CamVid", names=listing.names or camvid_names(), notes=(*listing.notes, note))


def is_cityscapes(root: str) -> bool:
    """Tell whether Cityscapes lies in a folder or where its archives unpack below it."""
    return _city_root(root) is not None


def cityscapes(root: str) -> MaskListing:
    """List Cityscapes, images of leftImg8bit with masks of gtFine: labelTrainIds where all have them, else labelIds.

    Raises:
        UserError: no image of the training split has such a mask.
    """
    root = _city_root(root) or root
    found = tree(root)
    images = [name for name in found.images if name.startswith(f"{CITY_FOLDERS[0]}/") and name.endswith(CITY_IMAGE)]
    labelled = [name for name in images if name.split("/")[1] != "test"]
    there = set(found.images)
    by_kind = {kind: [(i, m) for i in labelled if (m := _city_mask(i, kind)) in there] for kind in CITY_KINDS}
    kind = max(CITY_KINDS, key=lambda kind: len(by_kind[kind]))  # of equals the first
    folders = {"train": "train", "val": "test"}
    splits = {
        split: pairs
        for folder, split in folders.items()
        if (pairs := [pair for pair in by_kind[kind] if pair[0].split("/")[1] == folder])
    }
    if "train" not in splits:
        raise UserError(
            f"{root}: no image of leftImg8bit/train has its mask, gtFine/train/CITY/NAME_gtFine_labelIds.png; unpack "
            "gtFine_trainvaltest.zip beside leftImg8bit"
        )
    notes = [f"masks are gtFine's {kind}; the published val set is test here (published figures are on it)"]
    if len(images) > len(labelled):
        notes.append(f"{counted(len(images) - len(labelled), 'image')} of the test set, whose masks are not published")
    used = {mask for _, mask in by_kind[kind]}
    notes += note_left_out(labelled, {image for image, _ in by_kind[kind]}, CITY_FOLDERS[0], "images without mask")
    others = [name for name in (*found.images, *found.others) if name.startswith(f"{CITY_FOLDERS[1]}/")]
    if rest := [name for name in others if name not in used]:
        notes.append(f"{counted(len(rest), 'other file')} of gtFine left out, as {rest[0]}")
    return MaskListing("Cityscapes", root, splits, cityscapes_names(kind == CITY_KINDS[0]), (*found.notes, *notes))


def _city_mask(image: str, kind: str) -> str:
    """Return the mask of leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png."""
    return f"{CITY_FOLDERS[1]}{image.removeprefix(CITY_FOLDERS[0]).removesuffix(CITY_IMAGE)}_gtFine_{kind}.png"


def _list(root: str, name: str) -> list[str] | None:
    path = os.path.join(root, "ImageSets", "Segmentation", f"{name}.txt")
    if not os.path.isfile(path):
        return None
    names = list(dict.fromkeys(read_text(path).split()))
    if not names:
        raise UserError(f"{path} is empty; it must hold one image name a line")
    return names


def _ade_root(root: str) -> str | None:
    return _folder_with(root, ("", "ADEChallengeData2016"), ("images", "annotations", ADE_FILE))


def _city_root(root: str) -> str | None:
    return _folder_with(root, ("", "cityscapes", "Cityscapes"), CITY_FOLDERS)


def _voc_root(root: str) -> str | None:
    needed = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
    return _folder_with(root, ("", "VOC2012", "VOCdevkit/VOC2012"), needed)


def _folder_with(root: str, places: Sequence[str], needed: Sequence[str]) -> str | None:
    """Return the first of the places below `root` that holds all that is needed."""
    for place in places:
        folder = os.path.join(root, place) if place else root
        if all(os.path.exists(os.path.join(folder, name)) for name in needed):
            return folder
    return None
