"""Folders of images to learn to generate: which image has which caption or class, and in which split.

root/metadata.jsonl (or .csv): file_name, text     root/{train,val,test}/metadata.jsonl
root/NAME.png, root/NAME.txt                       root/{train,val,test}/NAME.png, NAME.txt
root/CLASS/NAME.png                                root/{train,val,test}/CLASS/NAME.png
root/NAME.png                                      root/{train,val,test}/NAME.png
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from snella.data.folders.choices import NO_CHOICE, Choices
from snella.data.folders.detections import is_yolo_text
from snella.data.folders.names import SPLIT_NAMES, holds_images
from snella.data.folders.rows import column_names, read_table
from snella.data.folders.tree import tree
from snella.data.images import SUFFIXES, is_hidden, is_image
from snella.data.layouts.class_folders import image_folder
from snella.data.layouts.manifests import find_column, split_column, split_value, text_value
from snella.data.layouts.masked_folders import is_masked_folder
from snella.data.layouts.masks_beside import without_masks
from snella.data.layouts.voc_ade import is_ade, is_voc
from snella.data.listing import Listing
from snella.data.paths import read_text
from snella.errors import UserError

METADATA = ("metadata.jsonl", "metadata.csv")
FILE_COLUMNS = ("file_name",)
CAPTION_SUFFIXES = (".txt", ".caption")
TEXT_COLUMNS = ("text", "caption", "prompt")
BOXES_IN = 5  # text files that are looked at for boxes

Captions = dict[str, str]  # by the image's name in the listing


def is_captioned(data: str) -> bool:
    """Tell whether a path is a folder of images with captions, in it or in its split folders. No image is opened."""
    root = os.path.expanduser(data)
    try:
        folders = [root, *(os.path.join(root, name) for name in _split_folders(root))]
        return any(_has_metadata(folder) or _has_texts(folder) for folder in folders)
    except OSError:
        return False


def caption_folder(root: str, choices: Choices = NO_CHOICE) -> tuple[Listing, Captions]:
    """List a folder of images. Without captions of their own the second is empty; without classes all labels are 0.

    Raises:
        UserError: no image, some images without a caption, captions without their image, two captions for one image.
    """
    found = without_masks(tree(root))
    images = list(found.images)
    tables = [
        f"{folder}{name}"
        for folder in ("", *(f"{name}/" for name in _split_folders(root)))
        for name in METADATA
        if os.path.isfile(os.path.join(root, folder, name))
    ]
    if tables:
        captions, splits = _from_tables(root, tables, set(images))
        layout, notes = f"captions in {os.path.basename(tables[0])}", found.notes
    else:
        captions, notes = _from_texts(root, images)
        notes = (*found.notes, *notes)
        splits = dict.fromkeys(images)
        layout = "captions in text files" if captions else "images"
    if not images and not captions:
        raise UserError(f"{root} holds no image ({', '.join(SUFFIXES)}); add images")
    if captions:
        _check_all_captioned(root, images, captions)
    elif not all(_has_no_class_folder(name) for name in images):
        return _class_folders(root, images, choices), {}
    return _by_split(layout, root, splits, notes), captions


def _has_no_class_folder(name: str) -> bool:
    """Tell whether a name is IMAGE, train/IMAGE or images/IMAGE."""
    folder = os.path.dirname(name)
    return not folder or folder.lower() in SPLIT_NAMES or holds_images(folder)


def _class_folders(root: str, images: list[str], choices: Choices) -> Listing:
    if is_voc(root) or is_ade(root) or is_masked_folder(root):
        raise UserError(f"{root} holds images with masks; give its folder of images")
    direct = [name for name in images if "/" not in name]
    if direct:
        other = next(name for name in images if "/" in name)
        raise UserError(
            f"{root} holds both images ({direct[0]}{_more(len(direct) - 1)}) and folders of images ({other}); "
            "move the images to class folders, or the folders away"
        )
    return image_folder(root, choices)


def _from_tables(root: str, tables: list[str], images: set[str]) -> tuple[Captions, dict[str, str | None]]:
    """Return captions, and the splits that a column `split` names."""
    captions: Captions = {}
    splits: dict[str, str | None] = {}
    place_of: dict[str, str] = {}
    missing: list[tuple[str, str]] = []
    for table in tables:
        path = os.path.join(root, table)
        rows = read_table(path)
        columns = column_names(rows)
        file_column = find_column(FILE_COLUMNS, columns, path, "image paths")
        column = split_column(rows)
        text_column = find_column(TEXT_COLUMNS, columns, path, "captions")
        for line, row in rows:
            place = f"{path} line {line}"
            name = _below(root, os.path.dirname(table), text_value(row, file_column, path, line), place)
            if name in place_of:
                raise UserError(f"{place}: {name} is already in {place_of[name]}; remove one of the two")
            caption = one_line(text_value(row, text_column, path, line))
            if not caption:
                raise UserError(f"{place}: {text_column} is blank; write a caption or remove image and row")
            place_of[name], captions[name] = place, caption
            splits[name] = split_value(row, path, line, column) if column else None
            if name not in images and not os.path.isfile(os.path.join(root, name)):
                missing.append((place, name))
    if missing:
        place, name = missing[0]
        raise UserError(
            f"{place}: image {name} does not exist{_more(len(missing) - 1)}; mend file_name, relative to the file's "
            "folder, or remove the row"
        )
    return captions, splits


def _below(root: str, folder: str, name: str, place: str) -> str:
    """Return `name`, which is relative to `folder` of `root`, relative to `root`."""
    normal = os.path.normpath(os.path.join(folder, name)).replace(os.sep, "/")
    if os.path.isabs(name) or normal.split("/")[0] == "..":
        raise UserError(f"{place}: {name} is not below {root}; write paths relative to the file's folder")
    return normal


def _from_texts(root: str, images: list[str]) -> tuple[Captions, tuple[str, ...]]:
    texts = dict(_texts_beside(root, images))
    paths = [os.path.join(root, text) for text in texts.values()]
    if _are_boxes(paths):
        raise UserError(
            f"{paths[0]} and the other text files hold boxes of objects (YOLO), not captions; move them away to "
            "train on the images alone, or write captions"
        )
    captions = {image: _read_caption(os.path.join(root, text)) for image, text in texts.items()}
    if not captions:
        return {}, ()
    used = set(texts.values())
    folders = sorted({os.path.dirname(name) for name in images})
    lone = [name for folder in folders for name in _names(root, folder) if _is_text(name) and name not in used]
    if not lone:
        return captions, ()
    return captions, (f"text files that are not an image's caption, left out: {lone[0]}{_more(len(lone) - 1)}",)


def _texts_beside(root: str, images: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield images that have a text file of their name beside them, and that file. Raises UserError for two."""
    files: dict[str, dict[str, list[str]]] = {}  # folder -> stem -> text files
    for image in images:
        folder = os.path.dirname(image)
        if folder not in files:
            files[folder] = {}
            for name in filter(_is_text, _names(root, folder)):
                files[folder].setdefault(os.path.splitext(name)[0], []).append(name)
        texts = files[folder].get(os.path.splitext(image)[0], [])
        if len(texts) > 1:
            raise UserError(f"{root}: {image} has two captions, {texts[0]} and {texts[1]}; keep one")
        if texts:
            yield image, texts[0]


def _is_text(name: str) -> bool:
    return name.lower().endswith(CAPTION_SUFFIXES)


def _read_caption(path: str) -> str:
    caption = one_line(read_text(path))
    if not caption:
        raise UserError(f"{path} is empty; write a caption, or move it and its image away")
    return caption


def one_line(text: str) -> str:
    """Join the lines, stripped, by a space."""
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _check_all_captioned(root: str, images: list[str], captions: Captions) -> None:
    without = [name for name in images if name not in captions]
    if without:
        raise UserError(
            f"{root}: {without[0]} has no caption{_more(len(without) - 1)}, but {len(captions)} images have one; "
            "write the missing ones, or move those images away"
        )


def _by_split(layout: str, root: str, splits: Mapping[str, str | None], notes: tuple[str, ...]) -> Listing:
    """Return the listing, split as `splits` (by image) and otherwise the folders say."""
    folders: dict[str, str] = {}
    found: dict[str, list[tuple[str, int]]] = {}
    for name, split in splits.items():
        folder, slash, _ = name.partition("/")
        if split is None and slash and folder.lower() in SPLIT_NAMES:
            split = SPLIT_NAMES[folder.lower()]
            other = folders.setdefault(split, folder)
            if other != folder:
                raise UserError(f"{root} has two {split} folders, {other} and {folder}; keep one")
        found.setdefault(split or "all", []).append((name, 0))
    outside = found.pop("all") if len(found) > 1 and "all" in found else []
    if outside:
        notes = (*notes, f"{len(outside)} images outside the splits left out, the first: {outside[0][0]}")
    return Listing(layout if "all" in found else f"{layout}, with splits", root, (), found, notes=notes)


def _has_metadata(folder: str) -> bool:
    for name in METADATA:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            try:
                columns = column_names(read_table(path, first=True))
            except UserError:
                continue
            if set(FILE_COLUMNS) & set(columns) and set(TEXT_COLUMNS) & set(columns):
                return True
    return False


def _has_texts(folder: str) -> bool:
    images = (name for name in _names(folder, "") if is_image(name))
    texts = [os.path.join(folder, text) for _, text in islice(_texts_beside(folder, images), BOXES_IN)]
    return bool(texts) and not _are_boxes(texts)


def _are_boxes(texts: Iterable[str]) -> bool:
    """Tell whether the first text files that hold anything are YOLO's boxes."""
    try:
        full = [text for text in map(read_text, islice(texts, BOXES_IN)) if text.strip()]
    except UserError:
        return False
    return bool(full) and all(map(is_yolo_text, full))


def _split_folders(root: str) -> list[str]:
    names = sorted(os.listdir(root))
    return [name for name in names if name.lower() in SPLIT_NAMES and os.path.isdir(os.path.join(root, name))]


def _names(root: str, folder: str) -> list[str]:
    """Return the visible entries of a folder, relative to the root."""
    prefix = f"{folder}/" if folder else ""
    return [f"{prefix}{name}" for name in sorted(os.listdir(os.path.join(root, folder))) if not is_hidden(name)]


def _more(count: int) -> str:
    return f" (and {count} more)" if count else ""
