"""`classes.json`: the names of a segmentation's classes, with the values or colours that masks say them by.

["sky", "road"]                                      a class's value is its position
{"0": "sky", "7": "road"}                            value -> name
[{"name": "sky", "color": [70, 130, 180]}, ...]      colour-coded masks
[{"name": "sky", "value": 0, "color": [...]}, ...]   values, and colours to show them in
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from snella.data.masks import RGB
from snella.errors import UserError

FILE = "classes.json"


@dataclass(frozen=True)
class ClassNames:
    """What a names file says."""

    path: str
    names: tuple[str, ...]
    values: tuple[int, ...] | None  # None: masks are colour-coded
    colors: tuple[RGB, ...] | None


def find_names(folders: Sequence[str]) -> ClassNames | None:
    """The names file in the first of the folders that has one, or None.

    Raises:
        UserError: names the file and the entry that is wrong.
    """
    path = next((p for p in (os.path.join(folder, FILE) for folder in folders) if os.path.isfile(p)), None)
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON ({error}); write a list of class names") from None
    entries = _entries(path, content)
    if not entries:
        raise UserError(f"{path} names no class; write a list of class names")
    names = tuple(_name(path, entry) for entry in entries)
    values = tuple(_value(path, entry) for entry in entries) if any("value" in entry for entry in entries) else None
    colors = tuple(_color(path, entry) for entry in entries) if any("color" in entry for entry in entries) else None
    for what, found in (("name", names), ("value", values), ("color", None if values else colors)):
        repeated = next((item for item in found or () if (found or ()).count(item) > 1), None)
        if repeated is not None:
            raise UserError(f"{path} has the {what} {repeated} twice; give each class its own")
    return ClassNames(path, names, values, colors)


def _entries(path: str, content: Any) -> list[dict[str, Any]]:
    if isinstance(content, dict):
        wrong = next((key for key in content if not key.isdecimal()), None)
        if wrong is not None:
            raise UserError(f'{path}: key {wrong!r} is not a value of the masks; write {{"0": "sky", ...}}')
        return [{"value": int(key), "name": name} for key, name in content.items()]
    if not isinstance(content, list):
        raise UserError(f"{path} is neither a list nor an object; write a list of class names")
    entries = [entry if isinstance(entry, dict) else {"name": entry} for entry in content]
    if not any("color" in entry or "value" in entry for entry in entries):
        return [{**entry, "value": value} for value, entry in enumerate(entries)]
    return entries


def _name(path: str, entry: dict[str, Any]) -> str:
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        raise UserError(f"{path}: {json.dumps(entry)} has no name; write a text")
    return name


def _value(path: str, entry: dict[str, Any]) -> int:
    value = entry.get("value")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 65535:
        raise UserError(f"{path}: {json.dumps(entry)} has no value from 0 to 65535; give every class one, or none")
    return value


def _color(path: str, entry: dict[str, Any]) -> RGB:
    color = entry.get("color")
    if isinstance(color, list) and len(color) == 3 and all(isinstance(p, int) and 0 <= p <= 255 for p in color):
        return (color[0], color[1], color[2])
    raise UserError(f"{path}: {json.dumps(entry)} has no color of three numbers from 0 to 255")
