"""Names, values and colours of a segmentation's classes: the names file, ADE20K's table, Pascal VOC's list."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from snella.data.masks.files import MAX_VALUE, RGB
from snella.data.paths import read_text
from snella.errors import UserError

NAMES_FILE = "classes.json"
ADE_FILE = "objectInfo150.txt"

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

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
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; it must hold a JSON list of class names") from None
    return _names(path, content)


def ade_names(path: str) -> ClassNames:
    """ADE20K's objectInfo150.txt (tab-separated, Idx first and Name last): values 1 to 150, 0 is no class.

    Of a name's synonyms the first is taken, of a first that occurs twice all.

    Raises:
        UserError: no UTF-8 text, or a line without a number and a name.
    """
    lines = [line.split("\t") for line in read_text(path).split("\n") if line.strip()]
    rows = []
    for number, cells in enumerate(lines[1:], start=2):
        if len(cells) < 2 or not cells[0].strip().isdecimal() or not 0 < int(cells[0]) <= MAX_VALUE:
            raise UserError(f"{path}, line {number}: {' '.join(cells)!r} is no class; expected Idx, ..., Name")
        rows.append((int(cells[0]), cells[-1].strip()))
    if len({value for value, _ in rows}) < max(2, len(rows)):
        raise UserError(f"{path} has no two classes, or one number twice; take the file of the data set")
    first = [re.split("[,;]", name)[0].strip() for _, name in rows]
    names = tuple(short if first.count(short) == 1 else name for short, (_, name) in zip(first, rows, strict=True))
    return ClassNames(path, names, tuple(value for value, _ in rows), ignore=(0,))


def voc_names() -> ClassNames:
    """Pascal VOC's 21 classes with its colours; 255, the seam around objects, is no class."""
    colors = tuple(_voc_color(value) for value in range(len(VOC_CLASSES)))
    return ClassNames("Pascal VOC", VOC_CLASSES, tuple(range(len(VOC_CLASSES))), colors, ignore=(255,))


def qualitative(names: Sequence[str]) -> tuple[RGB, ...]:
    """A fixed colour for each class, told apart easily; "background" and an unnamed class 0 ("0") are black."""
    colors = iter(_colors(len(names)))
    return tuple(
        (0, 0, 0) if name.lower() == "background" or (k == 0 and name == "0") else next(colors)
        for k, name in enumerate(names)
    )


def _colors(count: int) -> list[RGB]:
    """Kelly's colours, after them VOC's that are none of these."""
    colors: list[RGB] = [(c[0], c[1], c[2]) for c in map(bytes.fromhex, _KELLY.split())]
    value = 1
    while len(colors) < count:
        color = _voc_color(value)
        value += 1
        if color not in colors:
            colors.append(color)
    return colors[:count]


def _voc_color(value: int) -> RGB:
    """VOC's colour map: the value's bits, three by three, are the channels' bits from the highest down."""
    channels = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            channels[channel] |= (value >> (3 * place + channel) & 1) << (7 - place)
    return channels[0], channels[1], channels[2]


def _names(path: str, content: Any) -> ClassNames:
    if isinstance(content, dict):
        entries = [(f"{key!r}", {"name": name, "value": _number(key)}) for key, name in content.items()]
    elif isinstance(content, list):
        plain = all(isinstance(entry, str) for entry in content)
        entries = [(f"entry {i}", {"name": entry, "value": i} if plain else entry) for i, entry in enumerate(content)]
    else:
        raise UserError(f"{path} holds no list and no object; it must hold a JSON list of class names")
    for where, entry in entries:
        _check_entry(path, where, entry)
    if len(entries) < 2:
        raise UserError(f"{path} names {len(entries)} classes; segmentation needs two or more")
    rows = [entry for _, entry in entries]
    for key in ("value", "color"):
        lacking = next((where for where, entry in entries if key not in entry), None)
        if lacking and any(key in row for row in rows):
            raise UserError(f"{path}, {lacking} has no {key}, others have; give each one")
    values = [row["value"] for row in rows] if "value" in rows[0] else list(range(len(rows)))
    colors = [(c[0], c[1], c[2]) for c in (row["color"] for row in rows)] if "color" in rows[0] else None
    for key, found in (("name", [row["name"] for row in rows]), ("value", values), ("color", colors or [])):
        twice = next((i for i, item in enumerate(found) if item in found[:i]), None)
        if twice is not None:
            raise UserError(f"{path}, {entries[twice][0]}: {key} {found[twice]!r} occurs twice; keep one")
    order = sorted(range(len(rows)), key=lambda i: values[i])
    return ClassNames(
        path,
        tuple(rows[i]["name"].strip() for i in order),
        tuple(values[i] for i in order),
        None if colors is None else tuple(colors[i] for i in order),
    )


def _number(key: str) -> Any:
    return int(key) if key.isascii() and key.isdecimal() else key


def _check_entry(path: str, where: str, entry: Any) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"{path}, {where}: {entry!r} is no object with name and color or value; give each one so")
    name = entry.get("name")
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{path}, {where}: name {name!r} is no text; name the class")
    unknown = sorted(set(entry) - {"name", "value", "color"})
    if unknown:
        raise UserError(f"{path}, {where} has {unknown[0]!r}; use name with color or value")
    if "value" not in entry and "color" not in entry:
        raise UserError(f"{path}, {where} ({name}) has no color and no value; give one")
    value, color = entry.get("value", 0), entry.get("color", [0, 0, 0])
    if not _whole(value, MAX_VALUE):
        raise UserError(f"{path}, {where} ({name}): value {value!r} is none; use a whole number from 0 to {MAX_VALUE}")
    if not isinstance(color, list) or len(color) != 3 or not all(_whole(part, 255) for part in color):
        raise UserError(f"{path}, {where} ({name}): color {color!r} is none; use [r, g, b], each 0 to 255")


def _whole(value: object, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= largest
