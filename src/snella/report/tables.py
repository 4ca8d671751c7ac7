"""Tables for a terminal (rich). Names of classes and files are shown as they are, never read as markup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from snella.tasks.classification.task import ClassRow
    from snella.tasks.generation.denoising import LevelRow
    from snella.tasks.generation.fidelity import Fidelity
    from snella.tasks.segmentation.regions import RegionRow

NOTHING = "–"


def class_table(rows: Sequence[ClassRow]) -> Table:
    """How each class fared (`Evaluation.table`); – where there is nothing to divide by."""
    table = _table("by class", left=("class",), right=("images", "recall", "precision", "F1"))
    for row in rows:
        shares = (_percent(share) for share in (row.recall, row.precision, row.f1))
        table.add_row(Text(row.name), f"{row.count:,}", *shares)
    return table


def prediction_table(rows: Sequence[Mapping[str, Any]], *, runners_up: int = 2) -> Table:
    """The class of each image and the next likely ones.

    Args:
        rows: {"image": path, "class": name, "probability": of it, "probabilities": {class: probability}}.
        runners_up: how many other classes to show.
    """
    table = _table(None, left=("image", "class"), right=("probability",))
    table.add_column("next", overflow="fold")
    for row in rows:
        others = {name: share for name, share in row["probabilities"].items() if name != row["class"]}
        best = sorted(others, key=lambda name: -others[name])[:runners_up]
        following = ", ".join(f"{name} {_percent(others[name])}" for name in best)
        table.add_row(Text(row["image"]), Text(row["class"]), _percent(row["probability"]), Text(following))
    return table


def region_table(rows: Sequence[RegionRow]) -> Table:
    """How each class of a segmentation fared; – where there is nothing to divide by."""
    table = _table("by class", left=("class",), right=("pixels", "IoU", "Dice", "recall", "precision"))
    for row in rows:
        shares = (_percent(share) for share in (row.iou, row.dice, row.recall, row.precision))
        table.add_row(Text(row.name), f"{row.pixels:,}", *shares)
    return table


def area_table(rows: Sequence[Mapping[str, Any]], *, most: int = 4) -> Table:
    """The largest classes of each image.

    Args:
        rows: {"image": path, "areas": {class: {"pixels", "share" of the image}}, and files that were written}.
        most: how many classes to show.
    """
    table = _table(None, left=("image", "areas", "mask"), right=())
    for row in rows:
        areas = sorted(row["areas"].items(), key=lambda item: -item[1]["pixels"])
        found = [f"{name} {_percent(area['share'])}" for name, area in areas if area["pixels"]]
        more = f", {len(found) - most} more" if len(found) > most else ""
        table.add_row(Text(row["image"]), Text(", ".join(found[:most]) + more), Text(str(row.get("mask", NOTHING))))
    return table


def noise_level_table(rows: Sequence[LevelRow]) -> Table:
    """The denoising loss of held-out images, by part of the noise range."""
    parts = len(rows[0].losses)
    shares = [f"{100 * i // parts}–{100 * (i + 1) // parts} %" for i in range(parts)]
    table = _table("denoising loss by noise", left=("images",), right=("count", *shares, "all"))
    for row in rows:
        losses = (*row.losses, sum(row.losses) / parts)
        table.add_row(Text(row.name), f"{row.images:,}", *(f"{loss:.4f}" for loss in losses))
    return table


def fidelity_line(found: Fidelity) -> str:
    """How near generated images come to real ones."""
    fid = f"FID {found.fid:.2f}" if found.fid is not None else "no FID (fewer images than features)"
    return (
        f"{found.generated} generated against {found.references} real images, features of {found.features}: "
        f"KID {found.kid:.4f} ± {found.kid_std:.4f}, {fid}, similarity {found.similarity:.3f}, to the nearest "
        f"{found.nearest:.3f}"
    )


def is_share(metric: str) -> bool:
    """Whether a metric is shown in %: all but losses."""
    return not metric.endswith("loss")


def shown(metric: str, value: float) -> str:
    """A metric as people read it: a loss as it is, all others in %."""
    return f"{value:.1%}" if is_share(metric) else f"{value:.4f}"


def summary_table(summary: Mapping[str, Any], metrics: Mapping[str, str], *, title: str) -> Table:
    """The end of a training, in a few lines.

    Args:
        summary: what summary.json holds.
        metrics: those to show, of the test split, or of val where nothing was tested -> what to call them.
        title: what was trained on what.
    """
    table = Table(title=Text(title), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    split = "test" if "test" in summary else "val"
    for metric, name in metrics.items():
        table.add_row(f"{split} {name}", shown(metric, summary[split][metric]))
    table.add_row("trainable parameters", f"{summary['trainable_parameters']:,}")
    table.add_row("adapter size", decimal_bytes(summary["adapter_bytes"]))
    table.add_row("peak memory", decimal_bytes(summary["peak_memory_bytes"]))
    table.add_row("time", duration(summary["seconds"]))
    return table


def _table(title: str | None, *, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right")
    return table


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"{share:.1%}"


def decimal_bytes(count: int) -> str:
    """1234567 -> 1.2 MB."""
    for size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def duration(seconds: float) -> str:
    """75 -> 1 min 15 s."""
    total = round(seconds)
    hours, minutes = total // 3600, total // 60 % 60
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {total % 60:02} s" if minutes else f"{total} s"
