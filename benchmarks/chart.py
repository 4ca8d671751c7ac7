"""A chart of a comparison: time against memory, a point for each method, both relative to LoRA."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import machine_line, ratio
from snella.errors import UserError
from snella.report.labels import label_points
from snella.report.style import BLUE, GREY, INK, ORANGE, PALE, heading, new_figure, save_figure, style_axes

TICKS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 15, 20)


def points(result: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Return time of a step and memory of each method at the first batch size, as multiples of LoRA's.

    Memory is the peak of CUDA's allocator where it was measured, else the computed total.

    Raises:
        UserError: LoRA was not measured.
    """
    rows = result["results"][0]["methods"]
    if "lora" not in rows:
        raise UserError("the chart is relative to LoRA: add lora to --methods")
    lora = rows["lora"]
    memory = "total_bytes" if lora["peak_bytes"] is None else "peak_bytes"
    return {name: (ratio(row, lora, "step") or 0.0, ratio(row, lora, memory) or 0.0) for name, row in rows.items()}


def draw_chart(results: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """Write the chart in the format of the path's ending and return the path.

    Args:
        results: of one model, batch and machine; of several, the first that has a method says where it is.

    Raises:
        UserError: as `points` does, or the results are not comparable.
    """
    from matplotlib.ticker import NullLocator

    result = results[0]
    for other in results[1:]:
        for key in ("model", "batches", "r", "device", "precision"):
            if other["settings"].get(key) != result["settings"].get(key):
                raise UserError(f"the results differ in {key}: they do not belong in one chart")
    places = {name: place for other in reversed(results) for name, place in points(other).items()}
    width, height = 7.2, 4.7
    figure = new_figure(width, height)
    axes = figure.add_axes((0.65 / width, 0.55 / height, 1 - 0.9 / width, 1 - 1.65 / height))
    axes.axvline(1, color=PALE, linewidth=0.9, zorder=0)
    axes.axhline(1, color=PALE, linewidth=0.9, zorder=0)
    for name, (time, memory) in places.items():
        axes.plot(time, memory, "o", markersize=6.5, color=_colour(name))
    axes.set(xscale="log", yscale="log")
    axes.set_xlim(_limits([time for time, _ in places.values()], room=0.12))
    axes.set_ylim(_limits([memory for _, memory in places.values()], room=0.08))
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        axis.set_ticks([tick for tick in TICKS if low < tick < high])
        axis.set_major_formatter("{x:g} ×")
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel("time of a training step (LoRA = 1)", fontsize=8.5, color=GREY)
    axes.set_ylabel("memory of a training step (LoRA = 1)", fontsize=8.5, color=GREY)
    style_axes(axes)
    axes.spines[["left", "bottom"]].set(visible=True, color=PALE)
    label_points(axes, [(name, place, _colour(name)) for name, place in places.items()])
    settings, batch = result["settings"], result["results"][0]["batch"]
    peak = "peak of CUDA's allocator" if result["results"][0]["methods"]["lora"]["peak_bytes"] else (
        "kept for the backward pass, weights, gradients and AdamW's moments"
    )  # fmt: skip
    heading(
        figure,
        "Time and memory of fine-tuning",
        f"{settings['model']}, batch {batch}, rank {settings['r']}, the same layers for every method but full",
        f"memory: {peak}; left and below is better",
        machine_line(result),
    )
    return save_figure(figure, path)


def _colour(name: str) -> str:
    return BLUE if name.startswith("snella") else ORANGE if name.startswith("published") else INK


def _limits(values: Sequence[float], *, room: float) -> tuple[float, float]:
    """Return the ends of an axis: the values and LoRA's 1 lie between them, with a share of room for the labels."""
    low, high = min(*values, 0.9), max(*values, 1.1)
    margin = (high / low) ** room
    return low / margin, high * margin
