"""Names beside the points of a chart, none over another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

# where a label may stand, in points from its marker: x, y, and which of its sides is there
PLACES = tuple(
    (x * reach, y * reach, {1: "left", -1: "right", 0: "center"}[x], {1: "bottom", -1: "top", 0: "center"}[y])
    for reach in (7, 14, 22)
    for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
)


def label_points(axes: Axes, points: Sequence[tuple[str, tuple[float, float], str]]) -> None:
    """Write names beside their points, where they cover no other name and no point.

    Args:
        points: (name, place in data coordinates, colour) of each.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    renderer = FigureCanvasAgg(figure).get_renderer()
    radius = 4.5 * figure.dpi / 72
    taken = [
        Bbox.from_bounds(x - radius, y - radius, 2 * radius, 2 * radius)
        for x, y in axes.transData.transform([point for _, point, _ in points])
    ]
    frame = axes.get_window_extent(renderer)
    for name, point, colour in points:
        options: list[tuple[float, Annotation, Bbox]] = []
        for dx, dy, ha, va in PLACES:
            text = axes.annotate(
                name, point, (dx, dy), textcoords="offset points", ha=ha, va=va, fontsize=8.5, color=colour,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )  # fmt: skip
            box = text.get_window_extent(renderer)
            options.append((_covered(box, taken, frame), text, box))
        _, chosen, box = min(options, key=lambda option: option[0])  # of equals the first
        for _, text, _ in options:
            if text is not chosen:
                text.remove()
        taken.append(box)


def _covered(box: Bbox, taken: Sequence[Bbox], frame: Bbox) -> float:
    """Return the area that a label would cover of others, plus its own that would lie outside the frame."""
    from matplotlib.transforms import Bbox

    overlaps = [Bbox.intersection(box, other) for other in taken]
    inside = Bbox.intersection(box, frame)
    outside = box.width * box.height - (inside.width * inside.height if inside is not None else 0)
    return outside + sum(overlap.width * overlap.height for overlap in overlaps if overlap is not None)
