"""The layouts that are known: a table for each kind of data, a row for each layout, asked from the top down.

A new layout is a file in this folder (a set that a package carries: in `bundled/`) and a row here. A path that exists
goes before a bundled set or a hub's name that is spelt alike, so rows of names and rows of paths never compete.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace

from snella.data.bundled import (
    brain,
    climate,
    digits,
    elpv,
    hub_datasets,
    image_folders,
    photos,
    torchvision_datasets,
    webdataset,
)
from snella.data.folders.choices import NO_CHOICE, Choices
from snella.data.folders.detections import FORMATS, detection_format, detections
from snella.data.folders.names import SPLIT_COLUMNS, holds_images
from snella.data.folders.rows import column_names, read_table
from snella.data.folders.tree import Tree, tree
from snella.data.layouts.caption_folders import Captions, caption_folder, is_captioned
from snella.data.layouts.class_folders import class_folders, named_by_pattern
from snella.data.layouts.crops import crops, has_outlines, outlined
from snella.data.layouts.label_lists import UnclearColumnError, label_lists, split_by_lists, train_folders_and_lists
from snella.data.layouts.manifests import is_manifest, manifest
from snella.data.layouts.masked_folders import EXPECTED, is_masked_folder, masked_folder
from snella.data.layouts.masks_beside import (
    beside_folder,
    has_masks_beside,
    in_listed_splits,
    pairs_in_lists,
    without_masks,
)
from snella.data.layouts.rows import Table, at_path, below_prefix, bundled_set, recognised, with_choices
from snella.data.layouts.voc_ade import ade, camvid, cityscapes, is_ade, is_camvid, is_cityscapes, is_voc, voc
from snella.data.layouts.vtab_fgvc import fgvc, is_fgvc, is_vtab, vtab
from snella.data.listing import Listing
from snella.data.masks.listing import MaskListing
from snella.data.paths import same_file_key
from snella.errors import UserError, counted, listed


def _masks(path: str) -> MaskListing:
    """List masks beside images, in class folders too, or outlines, or say what a folder lacks."""
    found = tree(path)
    return outlined(found) if detection_format(found) else beside_folder(path) or masked_folder(path)


def _listed_pairs(path: str) -> MaskListing:
    found = pairs_in_lists(path)
    assert found is not None
    return found


MASKED: Table[MaskListing] = (
    at_path("the folder of Pascal VOC", is_voc, voc),
    at_path("the folder of ADE20K", is_ade, ade),
    at_path("the folder of Cityscapes", is_cityscapes, cityscapes),
    at_path("the folder of CamVid (SegNet's)", is_camvid, camvid),
    at_path(
        "a folder with lists of pairs (images/1.jpg masks/1.png)",
        lambda path: os.path.isdir(path) and pairs_in_lists(path) is not None,
        _listed_pairs,
    ),
    at_path(f"a folder with {EXPECTED}", is_masked_folder, lambda path: in_listed_splits(path, masked_folder(path))),
    at_path(
        "a folder of images with a mask beside each (NAME.jpg, NAME_mask.png)",
        has_masks_beside,
        lambda path: in_listed_splits(path, _masks(path)),
        any_folder=True,
    ),
    at_path("a folder of images with outlines (COCO, LabelMe)", has_outlines, lambda path: outlined(tree(path))),
    bundled_set(brain.NAME, brain.brain),
)

CAPTIONED: Table[tuple[Listing, Captions]] = (
    with_choices(
        "a folder of images, with captions (metadata.jsonl, or NAME.txt beside NAME.png), in class folders, "
        "or with neither",
        is_captioned,
        caption_folder,
        any_folder=True,
    ),
    *(bundled_set(name, photos.photos) for name in photos.SETS),
)


def _labelled_folder(path: str, choices: Choices) -> Listing:
    """List a folder by its lists of images, or by its class folders; here is decided where both are there.

    Raises:
        UserError: images and masks, which are not two classes; lists and folders that say different classes.
    """
    found = tree(path)
    if choices.label_pattern and (named := named_by_pattern(without_masks(found), choices)):
        return named
    kind = detection_format(found)
    if choices.crops and not (choices.of_run and kind is None):
        if kind is None:
            raise UserError(
                f"--crops cuts boxes out, and {path} holds none that are known ({', '.join(FORMATS)}); leave it out"
            )
        return crops(found)
    if kind and not choices.classes and not choices.label_column:
        raise UserError(_objects(path, found))
    if not choices.classes and not choices.label_column and recognised(MASKED, path):
        raise UserError(
            f"{path} holds images with masks; add --task segment; to classify give the folder of the images alone, or "
            "add --classes top if its folders are classes, --label-column if a table or list names them"
        )
    if choices.classes and choices.label_column:
        raise UserError("--classes takes the classes from folders, --label-column from a list; pass one of them")
    images = without_masks(found)
    if not choices.classes and not choices.label_column and not choices.of_run:
        _check_no_patients(found, images)
    found = _without_other_tables(images, choices)
    if choices.classes == "names" or choices.label_column:
        found = _without_paired_masks(found, path)
    if choices.classes:
        folders = class_folders(found, choices)
        return split_by_lists(found, folders) or folders
    try:
        return (None if choices.label_column else train_folders_and_lists(found)) or _lists_or_folders(
            path, found, choices
        )
    except UserError as error:
        mats = [name for name in found.others if name.lower().endswith(".mat")]
        if not mats:
            raise
        raise UserError(
            f"{error}; {listed(mats, 1)} may hold labels: Matlab's files are not read, so write them as a manifest"
        ) from None


def _check_no_patients(found: Tree, images: Tree) -> None:
    """Refuse folders of a patient, a scene or an image each, all of whose images have masks: they may be no classes.

    Raises:
        UserError: they have numbers for names, or as many as there are images, and nothing says what they are.
    """
    folders = {os.path.dirname(name).removesuffix("/images") for name in images.images}
    masks = len(found.images) - len(images.images)
    numbered = all(re.search(r"\d\d", os.path.basename(folder)) for folder in folders)
    if len(folders) > 2 and masks >= len(images.images) and (numbered or len(folders) == len(images.images)):
        raise UserError(
            f"{found.root}: two readings: {len(folders)} folders ({listed(sorted(folders))}) of images that have "
            "masks, to learn these by --task segment, or classes, by --classes top or leaf"
        )


def _without_paired_masks(found: Tree, path: str) -> Tree:
    """Return the tree without the masks of images, which are named as these and would be images of their classes."""
    layout = next((row for row in MASKED if row.recognises(path)), None)
    if layout is None:
        return found
    listing = layout.list(path, 0, NO_CHOICE)
    masks = {
        os.path.relpath(listing.path(mask), found.root).replace(os.sep, "/")
        for pairs in listing.splits.values()
        for image, mask in pairs
        if image != mask
    }
    note = f"{counted(len(masks), 'mask')} of the images left out (--task segment reads them)"
    return found.only(lambda name: name not in masks, note) if masks else found


def _without_other_tables(found: Tree, choices: Choices) -> Tree:
    """Return the tree without the tables that say only the groups or the splits of images, as the choices name them."""

    def labels(file: str) -> bool:
        if not is_manifest(found.path(file)):
            return True
        if choices.splits and same_file_key(found.path(file)) == same_file_key(os.path.expanduser(choices.splits)):
            return False
        columns = column_names(read_table(found.path(file), first=True)) if choices.group_column else []
        rest = [name for name in columns if name not in SPLIT_COLUMNS]
        return not (len(rest) == 2 and (choices.group_column or "").lower() in rest)

    return replace(found, others=tuple(filter(labels, found.others)))


def _lists_or_folders(path: str, found: Tree, choices: Choices) -> Listing:
    """List images by tables or lists of them, or by their folders, where one of the two says the classes."""
    try:
        folders, refusal = class_folders(found, choices), None
    except UserError as error:
        folders, refusal = None, error
    sure = folders is not None and len(folders.classes) > 1
    try:
        found_lists = label_lists(found, choices)
    except UnclearColumnError as error:
        if folders is None or not sure:
            raise
        if not are_parts(folders.classes):
            return replace(folders, notes=(*folders.notes, f"left out: {error}"))
        raise UserError(
            f"{path}: two readings: {counted(len(folders.classes), 'class', 'classes')} ({listed(folders.classes)}) by "
            f"the folders, to choose by --classes top, or those of a table: {error}"
        ) from None
    if found_lists and (folders is None or not sure or choices.label_column):
        return found_lists[0]
    if choices.label_column and not choices.of_run:
        raise UserError(f"--label-column: {path} holds no table or list of its images; leave it out")
    if folders is None:
        raise refusal or UserError(f"{path} has no class folders")
    if not sure and all(map(holds_images, folders.classes)):
        raise UserError(
            f"{path} holds {counted(len(found.images), 'image')} in {listed(folders.classes)} but no class folders; "
            "sort them into class folders, or give a manifest (.csv or .jsonl)"
        )
    if found_lists is None:
        return split_by_lists(found, folders) or folders
    return _one_of(path, *found_lists, folders)


def _objects(path: str, found: Tree) -> str:
    """Return the refusal to classify data whose classes are of objects."""
    segment = ", --task segment to learn their outlines" if has_outlines(path) else ""
    folders = sorted({name.split("/")[0] for name in found.images if "/" in name})
    tops = f", or --classes top to take its folders ({listed(folders)}) for classes" if len(folders) > 1 else ""
    return (
        f"{path} holds {detections(found).in_words()}: classes of objects, not of images; add --crops to classify what "
        f"is in each box{segment}{tops}"
    )


def _one_of(path: str, lists: Listing, column: str, folders: Listing) -> Listing:
    """Return the lists where they say the same classes as the folders, or where these are parts of no meaning."""
    by_folder = dict(entry for entries in folders.splits.values() for entry in entries)
    entries = [entry for entries in lists.splits.values() for entry in entries]
    both = {(by_folder[name], label) for name, label in entries if name in by_folder}
    if len(both) == len({folder for folder, _ in both}) == len({label for _, label in both}):
        return folders if lists.splits.keys() <= folders.splits.keys() else lists
    if are_parts(folders.classes):
        return lists
    raise UserError(
        f"{path}: two readings: {counted(len(lists.classes), 'class', 'classes')} ({listed(lists.classes)}) by "
        f"column {column} of {lists.layout}, or {counted(len(folders.classes), 'class', 'classes')} "
        f"({listed(folders.classes)}) by the folders; choose the list by --label-column {column}, the folders by "
        "--classes top"
    )


def are_parts(folders: Sequence[str]) -> bool:
    """Tell whether folders are parts of no meaning: they differ in a number alone, or are called as any of images."""
    letters = {"".join(filter(str.isalpha, name.lower())) for name in folders}
    return (len(letters) == 1 and "" not in letters) or all(map(holds_images, folders))


LABELLED: Table[Listing] = (
    at_path("the folder of a VTAB-1k task", is_vtab, vtab),
    at_path("a folder of VPT's FGVC splits", is_fgvc, fgvc),
    with_choices("a folder of class folders", os.path.isdir, _labelled_folder, any_folder=True),
    with_choices("a manifest (.csv, .jsonl)", is_manifest, manifest),
    *(bundled_set(name, elpv.elpv) for name in elpv.CLASSES),
    *(bundled_set(name, image_folders.image_folders) for name in image_folders.SETS),
    *(bundled_set(name, digits.digits) for name in digits.SETS),
    bundled_set(climate.NAME, climate.climate),
    below_prefix("hfds", hub_datasets.read),
    below_prefix("torch", torchvision_datasets.read),
    below_prefix("wds", webdataset.read),
)
