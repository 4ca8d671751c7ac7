"""Objects in images as annotations have them: their classes, boxes and outlines, whatever the format."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from snella.errors import counted

FARTHEST = 1e6  # pixels

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Shape:
    """One object: its class, box and outlines (x, y by turns), or the run lengths of its pixels as COCO has them."""

    label: str
    box: Box
    outlines: tuple[tuple[float, ...], ...] = ()
    runs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError where it is not one."""
        if not self.label:
            raise ValueError("an object has no name")
        if not all(abs(value) <= FARTHEST for part in (self.box, *self.outlines) for value in part):
            raise ValueError("a coordinate is not a number of pixels")
        if any(len(outline) % 2 for outline in self.outlines):
            raise ValueError("an outline has an odd number of coordinates")


@dataclass
class Detections:
    """All objects by image; coordinates in pixels, or as shares of the sides (`relative`).

    Args:
        sizes: width and height that the annotations say the image has.
        splits: the split of images, where the data has splits.
    """

    kind: str
    relative: bool = False
    shapes: dict[str, list[Shape]] = field(default_factory=lambda: defaultdict(list))
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)

    def in_words(self) -> str:
        counts = Counter(shape.label for shapes in self.shapes.values() for shape in shapes)
        objects = ", ".join(f"{label} {count}" for label, count in counts.most_common(3))
        more = ", ..." if len(counts) > 3 else ""
        of = f"{counted(len(self.shapes), 'image')} with {sum(counts.values()):,} objects"
        return f"{self.kind}, {of} ({objects}{more})"
