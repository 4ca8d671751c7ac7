"""Layouts of published benchmarks: VTAB-1k text files and the FGVC splits of Visual Prompt Tuning (VPT)."""

from __future__ import annotations

import os

from snella.data.listing import Entry, Listing, natural_order
from snella.data.paths import is_text, read_text
from snella.errors import UserError, short_reason
from snella.json_files import load_json

# class counts of the 19 VTAB-1k tasks, by the folder names they are distributed under
VTAB_CLASSES = {
    "caltech101": 102,
    "cifar": 100,
    "dtd": 47,
    "oxford_flowers102": 102,
    "oxford_iiit_pet": 37,
    "svhn": 10,
    "sun397": 397,
    "patch_camelyon": 2,
    "eurosat": 10,
    "resisc45": 45,
    "diabetic_retinopathy": 5,
    "clevr_count": 8,
    "clevr_dist": 6,
    "dmlab": 6,
    "kitti": 4,
    "dsprites_loc": 16,
    "dsprites_ori": 16,
    "smallnorb_azi": 18,
    "smallnorb_ele": 9,
}
FGVC_IMAGE_FOLDERS = ("images", "Images", "")  # cub and nabirds, dogs, cars and flowers


def is_vtab(root: str) -> bool:
    return any(os.path.isfile(os.path.join(root, name)) for name in ("train800.txt", "train800val200.txt"))


def vtab(root: str) -> Listing:
    """List a VTAB-1k task: a line is "relative/path label".

    Raises:
        UserError: no UTF-8 text, a malformed line, a label out of range.
    """
    files = {"train": "train800.txt", "val": "val200.txt", "test": "test.txt"}
    notes = ["published VTAB-1k runs train on train800val200.txt (train and val together) and report test"]
    if not os.path.isfile(os.path.join(root, "train800.txt")):
        files = {"train": "train800val200.txt", "test": "test.txt"}
        notes = ["train is train800val200.txt, as in published VTAB-1k runs, less the images taken for val"]
    known = VTAB_CLASSES.get(os.path.basename(os.path.abspath(root)))
    splits: dict[str, list[Entry]] = {}
    for split, file in files.items():
        path = os.path.join(root, file)
        if os.path.isfile(path):
            splits[split] = _vtab_lines(path, known)
        else:
            notes.append(f"{file} is missing")
    count = known or 1 + max((label for entries in splits.values() for _, label in entries), default=-1)
    classes = tuple(str(label) for label in range(count))
    return Listing("VTAB-1k", root, classes, splits, notes=tuple(notes), fixed_classes=True)


def _vtab_lines(path: str, classes: int | None) -> list[Entry]:
    entries: list[Entry] = []
    for line, text in enumerate(read_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        name, label = [*text.rsplit(None, 1), ""][:2]
        if not label.removeprefix("-").isdecimal():
            raise UserError(f"{path} line {line}: expected 'relative/path label', found {text.strip()!r}")
        if int(label) < 0 or (classes and int(label) >= classes):
            limit = f"0 to {classes - 1}" if classes else "0 or more"
            raise UserError(f"{path} line {line}: label {label} is out of range ({limit}); correct the file")
        entries.append((name.strip(), int(label)))
    return entries


def is_fgvc(root: str) -> bool:
    return os.path.isfile(os.path.join(root, "train.json"))


def fgvc(root: str) -> Listing:
    """List a data set with VPT's split files, {image: class}; classes are the ids found, in order.

    Raises:
        UserError: a file that is not such a table, images that are nowhere to be found.
    """
    tables: dict[str, dict[str, str]] = {}
    notes: list[str] = []
    for split in ("train", "val", "test"):
        path = os.path.join(root, f"{split}.json")
        if os.path.isfile(path):
            tables[split] = _fgvc_table(path)
        else:
            notes.append(f"{split}.json is missing")
    folder = _fgvc_image_folder(root, tables["train"])
    prefix = f"{folder}/" if folder else ""
    ids = {label for table in tables.values() for label in table.values()}
    classes = tuple(sorted(ids, key=natural_order))
    index = {name: label for label, name in enumerate(classes)}
    splits = {
        split: [(prefix + name, index[label]) for name, label in table.items()] for split, table in tables.items()
    }
    return Listing("FGVC", root, classes, splits, notes=tuple(notes))


def _fgvc_table(path: str) -> dict[str, str]:
    try:
        table = load_json(read_text(path))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({short_reason(error)}); expected {{image: class}}") from None
    if not isinstance(table, dict) or not table:
        raise UserError(f"{path} holds no {{image: class}} table; expected one object with an entry for each image")
    for name, label in table.items():
        if not is_text(name):
            raise UserError(f"{path}: the name {name!a} is not text; mend it")
        if not isinstance(label, (int, str)) or isinstance(label, bool) or not is_text(str(label)):
            raise UserError(f"{path}: the class of {name} is {label!r}; expected a whole number or a name")
        if isinstance(label, int) and label < 0:
            raise UserError(f"{path}: the class of {name} is {label}, out of range; expected 0 or more")
    return {name: str(label) for name, label in table.items()}


def _fgvc_image_folder(root: str, table: dict[str, str]) -> str:
    """Return the folder that the names are relative to: where the first of them that exists lies."""
    for name in table:
        for folder in FGVC_IMAGE_FOLDERS:
            if os.path.isfile(os.path.join(root, folder, name)):
                return folder
    first = next(iter(table))
    places = ", ".join(os.path.join(root, folder) for folder in FGVC_IMAGE_FOLDERS[:2])
    raise UserError(
        f"no image of {root}/train.json exists ({first}, ...): looked in {places} and {root}; put them there"
    )
