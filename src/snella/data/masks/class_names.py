"""Names, values and colours of a segmentation's classes: the names file, the tables of ADE20K, VOC and CamVid."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from snella.data.masks.files import MAX_VALUE, RGB
from snella.data.paths import composed, is_text, read_text
from snella.errors import UserError, short_reason
from snella.json_files import load_json

Item = TypeVar("Item")

NAMES_FILE = "classes.json"
ADE_FILE = "objectInfo150.txt"

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

CAMVID_CLASSES = {
    "sky": "808080",
    "building": "800000",
    "pole": "c0c080",
    "road": "804080",
    "pavement": "3c28de",
    "tree": "808000",
    "sign": "c08080",
    "fence": "404080",
    "car": "400080",
    "pedestrian": "404000",
    "bicyclist": "0080c0",
}

# of Cityscapes: the 19 classes that are evaluated, each at its trainId, with its id in labelIds and its colour; all
# other ids, and 255 (-1 in 8 bits), are void: github.com/mcordts/cityscapesScripts, helpers/labels.py
CITYSCAPES_CLASSES = {
    "road": (7, "804080"),
    "sidewalk": (8, "f423e8"),
    "building": (11, "464646"),
    "wall": (12, "66669c"),
    "fence": (13, "be9999"),
    "pole": (17, "999999"),
    "traffic light": (19, "faaa1e"),
    "traffic sign": (20, "dcdc00"),
    "vegetation": (21, "6b8e23"),
    "terrain": (22, "98fb98"),
    "sky": (23, "4682b4"),
    "person": (24, "dc143c"),
    "rider": (25, "ff0000"),
    "car": (26, "00008e"),
    "truck": (27, "000046"),
    "bus": (28, "003c64"),
    "train": (31, "005064"),
    "motorcycle": (32, "0000e6"),
    "bicycle": (33, "770b20"),
}
CITYSCAPES_IDS = 34

# K. Kelly, "Twenty-two colors of maximum contrast" (1965), without black, white and grey; each far from those before
_KELLY = (
    "f3c300 875692 a1caf1 be0032 008856 e68fac 654522 e25822 c2b280 8db600 0067a5 b3446c f99379 882d17 "
    "2b3d26 f38400 604e97 dcd300 f6a600"
)


@dataclass(frozen=True)
class ClassNames:
    """What is known of the classes before a mask is read.

    Args:
        source: the file's path, or the data set's name.
        values: the value of class k in the mask files.
        colors: the colour of class k, if they are given.
        ignore: values that stand for no class.
    """

    source: str
    names: tuple[str, ...]
    values: tuple[int, ...]
    colors: tuple[RGB, ...] | None = None
    ignore: tuple[int, ...] = ()


def names_file(folders: Sequence[str]) -> ClassNames | None:
    """Read `classes.json` of the first folder that has one.

    It holds a list of names (the value is the position), an object of values and names ({"0": "sky"}), or a list of
    objects {"name", "color": [r, g, b]} or {"name", "value"}.

    Raises:
        UserError: no JSON, or an entry that names no class.
    """
    path = next((p for p in (os.path.join(folder, NAMES_FILE) for folder in folders) if os.path.isfile(p)), None)
    if path is None:
        return None
    try:
        content = load_json(read_text(path))
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {short_reason(error)}; it must hold a JSON list of class names"
        ) from None
    return _names(path, content)


def ade_names(path: str) -> ClassNames:
    """Read ADE20K's objectInfo150.txt (tab-separated, Idx first and Name last): values 1 to 150; 0 stands for no class.

    Of a name's synonyms the first is taken, of a first that occurs twice all.

    Raises:
        UserError: no UTF-8 text, or a line without a number and a name.
    """
    lines = [line.split("\t") for line in read_text(path).split("\n") if line.strip()]
    rows = []
    for number, cells in enumerate(lines[1:], start=2):
        if len(cells) < 2 or not isinstance(_number(cells[0].strip()), int) or not 0 < int(cells[0]) <= MAX_VALUE:
            raise UserError(f"{path}, line {number}: {' '.join(cells)!r} is not a class; expected Idx, ..., Name")
        rows.append((int(cells[0]), cells[-1].strip()))
    if len({value for value, _ in rows}) < max(2, len(rows)):
        raise UserError(f"{path} has no two classes, or one number twice; take the file of the data set")
    first = [re.split("[,;]", name)[0].strip() for _, name in rows]
    names = tuple(short if first.count(short) == 1 else name for short, (_, name) in zip(first, rows, strict=True))
    return ClassNames(path, names, tuple(value for value, _ in rows), ignore=(0,))


def voc_names() -> ClassNames:
    """Return Pascal VOC's 21 classes with its colours; 255, the seam around objects, stands for no class."""
    colors = tuple(_voc_color(value) for value in range(len(VOC_CLASSES)))
    return ClassNames("Pascal VOC", VOC_CLASSES, tuple(range(len(VOC_CLASSES))), colors, ignore=(255,))


def camvid_names() -> ClassNames:
    """Return CamVid's 11 classes as SegNet's authors number and colour them; 11, unlabelled, stands for no class."""
    colors = tuple((color[0], color[1], color[2]) for color in map(bytes.fromhex, CAMVID_CLASSES.values()))
    return ClassNames("CamVid", tuple(CAMVID_CLASSES), tuple(range(len(CAMVID_CLASSES))), colors, ignore=(11,))


def cityscapes_names(train_ids: bool) -> ClassNames:
    """Return Cityscapes' 19 classes by their trainIds, or by the ids of labelIds; all that is void is no class."""
    ids = tuple(value for value, _ in CITYSCAPES_CLASSES.values())
    values = tuple(range(len(ids))) if train_ids else ids
    void = () if train_ids else tuple(value for value in range(CITYSCAPES_IDS) if value not in ids)
    colors = tuple((c[0], c[1], c[2]) for c in (bytes.fromhex(color) for _, color in CITYSCAPES_CLASSES.values()))
    return ClassNames("Cityscapes", tuple(CITYSCAPES_CLASSES), values, colors, ignore=(*void, 255))


def distinct_colors(names: Sequence[str]) -> tuple[RGB, ...]:
    """Return a fixed colour for each class, far apart; "background" and an unnamed class 0 ("0") are black."""
    colors = iter(_colors(len(names)))
    return tuple(
        (0, 0, 0) if name.lower() == "background" or (k == 0 and name == "0") else next(colors)
        for k, name in enumerate(names)
    )


def _colors(count: int) -> list[RGB]:
    """Return Kelly's colours, after them those of VOC that are not among them."""
    colors: list[RGB] = [(c[0], c[1], c[2]) for c in map(bytes.fromhex, _KELLY.split())]
    value = 1
    while len(colors) < count:
        color = _voc_color(value)
        value += 1
        if color not in colors:
            colors.append(color)
    return colors[:count]


def _voc_color(value: int) -> RGB:
    """Return VOC's colour of a value, whose bits, three by three, are the channels' bits from the highest down."""
    channels = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            channels[channel] |= (value >> (3 * place + channel) & 1) << (7 - place)
    return channels[0], channels[1], channels[2]


class _Entry(NamedTuple):
    """One class of a names file, and where the file has it."""

    where: str
    name: str
    value: int | None
    color: RGB | None


def _names(path: str, content: object) -> ClassNames:
    entries = [_entry(path, where, entry) for where, entry in _listed_entries(path, content)]
    if len(entries) < 2:
        raise UserError(f"{path} names {len(entries)} classes; segmentation needs two or more")
    values = _given_for_all(path, "value", entries, [entry.value for entry in entries])
    colors = _given_for_all(path, "color", entries, [entry.color for entry in entries])
    if values is None:
        values = list(range(len(entries)))
    _check_once(path, "name", entries, [composed(entry.name.strip()) for entry in entries])
    _check_once(path, "value", entries, values)
    _check_once(path, "color", entries, colors or [])
    order = sorted(range(len(entries)), key=values.__getitem__)
    return ClassNames(
        path,
        tuple(composed(entries[i].name.strip()) for i in order),
        tuple(values[i] for i in order),
        None if colors is None else tuple(colors[i] for i in order),
    )


def _listed_entries(path: str, content: object) -> list[tuple[str, object]]:
    """Return the entries of either form as objects, each with what refusals call it."""
    if isinstance(content, dict):
        return [(f"{key!r}", {"name": name, "value": _number(key)}) for key, name in content.items()]
    if isinstance(content, list):
        bare = all(isinstance(entry, str) for entry in content)
        return [(f"entry {i}", {"name": entry, "value": i} if bare else entry) for i, entry in enumerate(content)]
    raise UserError(f"{path} holds no list and no object; it must hold a JSON list of class names")


def _number(key: str) -> int | str:
    return int(key) if key.isascii() and key.isdecimal() and len(key) < 10 else key


def _entry(path: str, where: str, entry: object) -> _Entry:
    if not isinstance(entry, dict):
        raise UserError(f"{path}, {where}: {entry!r} is not an object with name and color or value; give each one so")
    name = entry.get("name")
    if not isinstance(name, str) or not name.strip() or not is_text(name):
        raise UserError(f"{path}, {where}: name {name!r} is not text; name the class")
    unknown = sorted(set(entry) - {"name", "value", "color"})
    if unknown:
        raise UserError(f"{path}, {where} has {unknown[0]!r}; use name with color or value")
    if "value" not in entry and "color" not in entry:
        raise UserError(f"{path}, {where} ({name}) has no color and no value; give one")
    value, color = entry.get("value"), entry.get("color")
    if "value" in entry and not _whole(value, MAX_VALUE):
        raise UserError(
            f"{path}, {where} ({name}): value {value!r} is out of range; use a whole number from 0 to {MAX_VALUE}"
        )
    if "color" in entry and not _is_color(color):
        raise UserError(f"{path}, {where} ({name}): color {color!r} is not a colour; use [r, g, b], each 0 to 255")
    return _Entry(where, name, value, None if color is None else (color[0], color[1], color[2]))


def _given_for_all(path: str, key: str, entries: Sequence[_Entry], items: Sequence[Item | None]) -> list[Item] | None:
    """Return the items, or None where no entry gives one. Raises UserError where some do."""
    given = [item for item in items if item is not None]
    if given and len(given) < len(items):
        where = entries[items.index(None)].where
        raise UserError(f"{path}, {where} has no {key}, others have; give each one")
    return given or None


def _check_once(path: str, key: str, entries: Sequence[_Entry], items: Sequence[object]) -> None:
    twice = next((i for i, item in enumerate(items) if item in items[:i]), None)
    if twice is not None:
        raise UserError(f"{path}, {entries[twice].where}: {key} {items[twice]!r} occurs twice; keep one")


def _is_color(color: object) -> bool:
    return isinstance(color, list) and len(color) == 3 and all(_whole(part, 255) for part in color)


def _whole(value: object, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= largest
