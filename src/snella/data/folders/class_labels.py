"""What the class of an image is, by its name below the root or split: its folder, several of them, or its own name."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from snella.data.folders.choices import Choices
from snella.data.folders.names import holds_images
from snella.data.listing import natural_order
from snella.errors import UserError, counted, listed

# beginnings of names that cameras and programs give
_CAMERA = frozenset(
    ("img", "image", "images", "dsc", "dscn", "dscf", "pict", "pic", "picture", "photo", "frame", "screenshot", "scan")
)
LabelOf = Callable[[str], str]  # an image's name below its split -> its class


def labelling(root: str, folder: str, names: Sequence[str], choices: Choices) -> tuple[LabelOf, list[str]]:
    """Return what the class of an image is, and notes.

    Args:
        root: what refusals call the data.
        folder: the path that the names are relative to, of data without splits; "" with splits.
        names: all images, without the folders of their splits.

    Raises:
        UserError: two readings and none is chosen; a name without a class, where names are chosen.
    """
    if choices.classes == "names" or all("/" not in name for name in names):
        odd = next((name for name in names if not beginning(name)), None)
        if odd:
            raise UserError(f"{root}: the name of {odd} has no beginning before a number, for a class; rename it")
        return beginning, ["the class of an image is the beginning of its file's name"]
    if choices.classes:
        ways: dict[str, LabelOf] = {"top": _top, "leaf": _leaf, "path": os.path.dirname}
        return ways[choices.classes], _merged(names) if choices.classes == "leaf" else []
    parts = [name.split("/")[:-1] for name in names]
    while all(len(part) > 1 for part in parts) and len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    parts = [part[:1] if all(holds_images(below) for below in part[1:]) else part for part in parts]
    deeper = sorted({"/".join(part) for part in parts if len(part) > 1})
    if not deeper:
        inner = sorted({below for name in names for below in name.split("/")[1:-1]})
        return _top, [f"folders below the class folders that are no classes: {listed(inner)}"] if inner else []
    if {part[0] for part in parts if len(part) == 1} == {part[0] for part in parts}:
        note = f"folders below class folders belong to their class: {listed(deeper)}"
        return _top, [f"{note}; --classes leaf makes them classes"]
    raise UserError(f"{root}: {_readings(folder, names, parts)}")


def _readings(folder: str, names: Sequence[str], parts: Sequence[Sequence[str]]) -> str:
    """Name the readings of nested folders, and how to choose."""
    direct = {part[0] for part in parts if len(part) == 1}
    deep = {part[0] for part in parts if len(part) > 1}
    tops = _ordered(direct | deep)
    if folder and len(deep) == 1 and direct:
        inside = _ordered({part[1] for part in parts if len(part) > 1})
        outer = next(iter(deep))
        return (
            f"two readings: {counted(len(inside), 'class', 'classes')} in {outer} ({listed(inside)}), or {len(tops)} "
            f"classes ({listed(tops)}); for the first give {os.path.join(folder, outer)}, for the second add "
            "--classes top"
        )
    ways = {"top": tops, "leaf": _ordered(map(_leaf, names)), "path": _ordered(map(os.path.dirname, names))}
    texts = [
        f"--classes {way} ({counted(len(found), 'class', 'classes')}: {listed(found, 2)})"
        for way, found in ways.items()
    ]
    return f"class folders hold folders, so there are several readings; choose with {', '.join(texts)}"


def has_class_in_name(name: str, choices: Choices) -> bool:
    """Tell whether a file's name holds a class: for sure as WORD.NUMBER, where chosen anything before a number."""
    if choices.classes == "names":
        return bool(beginning(name))
    found = re.fullmatch(r"([A-Za-z][A-Za-z _-]*)\.\d+", os.path.splitext(os.path.basename(name))[0])
    return choices.classes is None and found is not None and found[1].lower() not in _CAMERA


def beginning(name: str) -> str:
    """Return what stands before the number at the end of a file's name, or "".

    >>> beginning("train/cat.12.jpg"), beginning("great_pyrenees_7.jpg"), beginning("12.jpg")
    ('cat', 'great_pyrenees', '')
    """
    stem = os.path.splitext(os.path.basename(name))[0]
    found = re.match(r"(.*?[^\W\d_].*?)[ _.\-]*\(?\d+\)?$", stem)
    return found[1] if found else ""


def offer_names(names: Sequence[str]) -> str:
    """Return how to take classes from the files' names, where these look as if they held some."""
    counts = Counter(map(beginning, names))
    words = [word for word in counts if word and word.lower() not in _CAMERA]
    if len(words) < 2 or 2 * len(words) > len(names) or sum(counts[word] for word in words) < len(names):
        return ""
    return f"; if the beginnings of the names ({listed(sorted(words))}) are the classes, add --classes names"


def _merged(names: Sequence[str]) -> list[str]:
    places = {os.path.dirname(name) for name in names}
    twice = sorted(leaf for leaf, count in Counter(map(os.path.basename, places)).items() if count > 1)
    return [f"folders of one name in several places are one class: {listed(twice)}"] if twice else []


def _ordered(names: Iterable[str]) -> list[str]:
    return sorted(set(names), key=natural_order)


def _top(name: str) -> str:
    return name.split("/")[0]


def _leaf(name: str) -> str:
    return name.split("/")[-2]
