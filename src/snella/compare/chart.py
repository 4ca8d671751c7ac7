"""The picture of a comparison: how well each entrant does, against its memory and its trainable parameters."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from snella.compare.plan import Entrant
from snella.compare.results import TaskResult, averages
from snella.compare.statistics import Spread
from snella.report.labels import label_points
from snella.report.style import BLUE, GREY, INK, PALE, heading, new_figure, save_figure, style_axes
from snella.report.tables import is_share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vPX"  # of backbones, in turn


def comparison_figure(result: TaskResult, path: str | os.PathLike[str]) -> Path:
    """Draw the test metric (mean, bars of one standard deviation) of each entrant that has finished runs.

    Args:
        result: at least one entrant with runs.
        path: file to write (its ending says the format); replaced if it is there.

    Returns:
        The path.
    """
    scores: dict[Entrant, Spread] = {}
    memory: dict[Entrant, float] = {}
    parameters: dict[Entrant, float] = {}
    for row in result.methods:
        score = result.spread(row, "test")
        if score is not None:
            scores[row.entrant] = score
            memory[row.entrant] = averages(row)["peak_memory_bytes"]
            parameters[row.entrant] = averages(row)["trainable_parameters"]
    width, height = 8.6, 4.1
    figure = new_figure(width, height)
    left, right = (figure.add_axes((x / width, 0.55 / height, 3.55 / width, 2.5 / height)) for x in (0.65, 4.85))
    _memory_axis(left, list(memory.values()))
    _parameter_axis(right, list(parameters.values()))
    for axes, x in ((left, memory), (right, parameters)):
        _points(axes, scores, x)
        _score_axis(axes, result)
        label_points(axes, [(found.method, (x[found], score.mean), _colour(found)) for found, score in scores.items()])
    seeds = max(score.count for score in scores.values())
    spread = f"mean of {seeds} seeds, ± 1 standard deviation" if seeds > 1 else "one seed"
    heading(
        figure,
        "Which method for this data" + (f": {result.name}" if result.name else ""),
        f"test {result.label} of the best epoch on val: {spread}",
        f"left and {'above' if result.higher_is_better else 'below'} is better",
    )
    _backbones(figure, scores)
    return save_figure(figure, path)


def _backbones(figure: Figure, entrants: Iterable[Entrant]) -> None:
    """Say in the upper right corner which backbone a marker stands for, where there are several."""
    from matplotlib.lines import Line2D

    markers = _markers(entrants)
    handles = [
        Line2D([], [], linestyle="", marker=marker, markersize=6, color=INK, label=backbone)
        for backbone, marker in markers.items()
        if backbone is not None
    ]
    if handles:
        figure.legend(handles=handles, loc="upper right", frameon=False, fontsize=8.5, labelcolor=INK)


def _markers(entrants: Iterable[Entrant]) -> dict[str | None, str]:
    """Return backbone -> the marker of its points."""
    backbones = dict.fromkeys(entrant.backbone for entrant in entrants)
    return dict(zip(backbones, cycle(MARKERS), strict=False))  # those beyond the markers share them


def _memory_axis(axes: Axes, values: list[float]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlabel("peak memory of a training step", fontsize=8.5, color=GREY)
    axes.set_xlim(_limits(values, log=False))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(_in_units(max(values))))


def _parameter_axis(axes: Axes, values: list[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xlabel("trainable parameters", fontsize=8.5, color=GREY)
    axes.set_xscale("log")
    axes.set_xlim(_limits(values, log=True))
    wide = max(values) > 1000 * min(values)
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1.0,) if wide else (1.0, 3.0), numticks=9))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _count(value)))


def _score_axis(axes: Axes, result: TaskResult) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(5))
    if is_share(result.metric):
        axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    axes.set_title(f"test {result.label}", loc="left", fontsize=9.5, weight="bold", color=INK)
    style_axes(axes)
    axes.grid(axis="y", color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines["bottom"].set(visible=True, color=PALE)


def _points(axes: Axes, scores: dict[Entrant, Spread], x: dict[Entrant, float]) -> None:
    markers = _markers(scores)
    for entrant, score in scores.items():
        axes.errorbar(
            x[entrant],
            score.mean,
            yerr=score.std or 0,
            fmt=markers[entrant.backbone],
            markersize=6,
            elinewidth=1.1,
            color=_colour(entrant),
            zorder=3 if entrant.method.startswith("snella") else 2,
        )
    low = min(score.mean - (score.std or 0) for score in scores.values())
    high = max(score.mean + (score.std or 0) for score in scores.values())
    room = 0.12 * (high - low) or 0.05 * abs(high) or 0.05
    axes.set_ylim(low - room, high + room)


def _limits(values: list[float], *, log: bool) -> tuple[float, float]:
    """Return the least and the greatest value, with room at both ends for the labels."""
    low, high = min(values), max(values)
    if log:
        room = max((high / low) ** 0.15, 1.5)
        return low / room, high * room
    room = 0.18 * (high - low) or 0.1 * high
    return low - room, high + room


def _percent(share: float, _: int) -> str:
    return f"{share * 100:g}%" if share <= 1 else ""


def _in_units(largest: float) -> Callable[[float, int], str]:
    """Return a tick formatter that writes bytes in the largest unit that fits the largest of them."""
    units = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))
    unit, size = next(unit for unit in units if largest >= unit[1] or unit[1] == 1)
    return lambda value, _: f"{value / size:g} {unit}"


def _count(value: float) -> str:
    """Write a count in short: 30000 -> 30 k."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _colour(entrant: Entrant) -> str:
    return BLUE if entrant.method.startswith("snella") else INK
