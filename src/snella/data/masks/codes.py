"""Which classes the masks hold: from the names file, or from the values found in the training masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from snella.data.masks.class_names import NAMES_FILE, ClassNames, distinct_colors
from snella.data.masks.files import MAX_VALUE, RGB, MaskCode, format_values, mask_palette
from snella.data.masks.scan import MaskFacts
from snella.errors import UserError, listed

BINARY = ("background", "foreground")
BINARY_NOTE = "masks of two levels: grey above half is {}"
SOFT_NOTE = "masks of two levels with soft edges: grey above half is {}"
NUMBER_NOTE = "classes are called by their values, {}; if one of them stands for no class (void), set --ignore-index"
SOFT_LEVELS = 64  # more values than this between black and white, and three times as many white pixels: soft edges
MAX_UNNAMED = 250  # more classes than this are believed only where they are named
PALETTES_TRIED = 20  # masks looked at for a palette


def find_code(
    data: str, facts: Sequence[MaskFacts], names: ClassNames | None, ignore_index: int | None
) -> tuple[tuple[str, ...], MaskCode, tuple[RGB, ...], tuple[str, ...]]:
    """Find class names, code, palette and notes from the training masks.

    Args:
        data: what errors call the data set.
        ignore_index: a value that stands for no class, beside those that the data set has by itself.

    Raises:
        UserError: masks from which the classes cannot be known.
    """
    if ignore_index is not None and not 0 <= ignore_index <= MAX_VALUE:
        raise UserError(f"ignore_index is {ignore_index}; use a value of the masks, 0 to {MAX_VALUE}")
    ignored = (*(names.ignore if names else ()), *(() if ignore_index is None else (ignore_index,)))
    ignore = tuple(dict.fromkeys(ignored))
    colored = next((mask for mask in facts if mask.colored), None)
    if colored:
        names, code = _by_color(data, colored, names, ignore)
    else:
        names, code = _by_value(data, facts, names, ignore)
    notes = _notes(facts, names, code)
    colors = names.colors or _file_palette(facts, code) or distinct_colors(names.names)
    return names.names, code, colors, notes


def code_by_name(names: ClassNames, classes: Sequence[str], code: MaskCode) -> tuple[MaskCode, tuple[str, ...]]:
    """Return the code of the masks of other data in the order of a model's classes, and notes.

    Args:
        names: of the other data.
        classes, code: the model's. Classes that no file named keep the model's code.

    Raises:
        UserError: a class that the model does not have.
    """
    kept = [k for k, value in enumerate(names.values) if value not in code.ignore]
    at = {names.names[k]: k for k in kept}
    unknown = [name for name in at if name not in classes]
    if unknown and _is_unnamed(classes, code):
        return code, (f"{names.source} names classes, the model's have no names: masks are read by the model's values",)
    if unknown:
        raise UserError(
            f"{names.source}: class {unknown[0]!r} is not among the model's {len(classes)} classes "
            f"({listed(classes, 5)}); rename it, or remove it and set its pixels to a value that is ignored"
        )
    spare = (value for value in range(MAX_VALUE, -1, -1) if value not in {*names.values, *code.ignore})
    values = tuple(names.values[at[name]] if name in at else next(spare) for name in classes)
    if names.colors is not None and code.colors is not None:
        if len(at) < len(classes):
            raise UserError(
                f"{names.source} has no colour for {len(classes) - len(at)} of the model's classes; add them"
            )
        return replace(code, colors=tuple(names.colors[at[name]] for name in classes)), ()
    if code.binary and len(at) == 2:
        return replace(code, values=tuple(255 if value == max(values) else 0 for value in values)), ()
    return MaskCode(values, None, tuple(dict.fromkeys((*code.ignore, *names.ignore)))), ()


def _is_unnamed(classes: Sequence[str], code: MaskCode) -> bool:
    """Tell whether the classes are called by their values, or as two levels are."""
    return tuple(classes) in (tuple(map(str, code.values)), BINARY)


def _by_color(
    data: str, mask: MaskFacts, names: ClassNames | None, ignore: tuple[int, ...]
) -> tuple[ClassNames, MaskCode]:
    if names is None or names.colors is None:
        where = names.source if names else f"a {NAMES_FILE} in {data}"
        raise UserError(f"{mask.path} is colour-coded; give the name and color of each class in {where}")
    colors = names.colors
    greys = {(value, value, value) for value in ignore}
    names = _without_ignored(data, names, [k for k, color in enumerate(colors) if color not in greys])
    return names, MaskCode(tuple(range(len(names.names))), names.colors, ignore)


def _by_value(
    data: str, facts: Sequence[MaskFacts], names: ClassNames | None, ignore: tuple[int, ...]
) -> tuple[ClassNames, MaskCode]:
    if names:
        names = _without_ignored(data, names, [k for k, value in enumerate(names.values) if value not in ignore])
    exact = _values([mask for mask in facts if not mask.jpeg]) - set(ignore)
    jpeg = next((mask for mask in facts if mask.jpeg), None)
    two_levels = exact <= {0, 255} and (jpeg is not None or 255 in exact) and 255 not in ignore
    two_levels = two_levels or (jpeg is None and 255 not in ignore and _has_soft_edges(facts))
    if two_levels and (names is None or len(names.names) == 2):
        names = names or ClassNames(data, BINARY, (0, 255))
        return names, MaskCode((0, 255), None, ignore, binary=True)
    if jpeg:
        raise UserError(f"{jpeg.path} is a JPEG, whose values are not exact, and not of two levels; save masks as PNG")
    if names is None:
        names = _named_by_value(data, exact, ignore)
    return names, MaskCode(names.values, None, ignore)


def _has_soft_edges(facts: Sequence[MaskFacts]) -> bool:
    """Tell whether grey masks are black and white but for edges that a program has smoothed."""
    counts = np.zeros(MAX_VALUE + 1, dtype=np.int64)
    for mask in facts:
        np.add.at(counts, mask.values[0], mask.counts[0])
    between = counts[1:255]
    levels = np.count_nonzero(between)
    return bool(levels > SOFT_LEVELS and not counts[256:].any() and 3 * between.sum() <= min(counts[0], counts[255]))


def _notes(facts: Sequence[MaskFacts], names: ClassNames, code: MaskCode) -> tuple[str, ...]:
    if code.binary:
        soft = all(not mask.jpeg for mask in facts) and _has_soft_edges(facts)
        return ((SOFT_NOTE if soft else BINARY_NOTE).format(names.names[1]),)
    by_value = len(code.values) > 2 and names.names == tuple(map(str, code.values))
    return (NUMBER_NOTE.format(format_values(code.values)),) if by_value and not code.ignore else ()


def _without_ignored(data: str, names: ClassNames, kept: list[int]) -> ClassNames:
    """Keep the classes that are not ignored."""
    if len(kept) < 2:
        raise UserError(f"{data} has fewer than two classes beside those ignored; segmentation needs two or more")
    return replace(
        names,
        names=tuple(names.names[k] for k in kept),
        values=tuple(names.values[k] for k in kept),
        colors=None if names.colors is None else tuple(names.colors[k] for k in kept),
    )


def _named_by_value(data: str, found: set[int], ignore: tuple[int, ...]) -> ClassNames:
    """Name the classes 0..K-1 by their values, where there is no names file."""
    values = tuple(sorted(found))
    if len(values) < 2:
        beside = f" beside {format_values(ignore)}, ignored," if ignore else ""
        only = f"only the value {values[0]}" if values else "no value"
        raise UserError(
            f"{data}: the training masks hold {only}{beside} so there is one class at most; check the masks"
        )
    if len(values) > MAX_UNNAMED:
        raise UserError(
            f"{data}: the masks hold {len(values)} values, as photographs do; check them, or name the classes in a "
            f"{NAMES_FILE}"
        )
    if values != tuple(range(len(values))):
        near = f" or, where {values[-1]} stands for no class, set --ignore-index {values[-1]}"
        raise UserError(
            f"{data}: the masks hold the values {format_values(values)}, not 0 to K-1; name them in a {NAMES_FILE} "
            f'({{"{values[0]}": "NAME", ...}}){near}'
        )
    return ClassNames(data, tuple(map(str, values)), values)


def _values(facts: Sequence[MaskFacts]) -> set[int]:
    return set(np.unique(np.concatenate([mask.values[0] for mask in facts])).tolist()) if facts else set()


def _file_palette(facts: Sequence[MaskFacts], code: MaskCode) -> tuple[RGB, ...] | None:
    """Return the classes' colours in the first palette of the training masks, if they differ enough to be seen."""
    if code.binary:
        return None
    palette = next((p for p in (mask_palette(mask.path) for mask in facts[:PALETTES_TRIED]) if p), ())
    if max(code.values) >= len(palette):
        return None
    colors = tuple(palette[value] for value in code.values)
    coarse = {tuple(part >> 3 for part in color) for color in colors}
    return colors if len(coarse) == len(colors) else None
