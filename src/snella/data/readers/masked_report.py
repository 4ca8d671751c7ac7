"""The report that `snella data PATH` prints of images with masks."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from snella.console import shown
from snella.data.dataset import SPLITS
from snella.data.masks.files import MaskData, format_values
from snella.data.readers.labelled_report import describe_sizes
from snella.errors import printable


def describe_masked(data: MaskData) -> RenderableType:
    """Show layout, share of the pixels of each class and split, images, sizes, unusable pairs by name, notes."""
    parts: list[RenderableType] = [shown(f"{data.root}: {data.layout}, {len(data.classes)} classes"), _shares(data)]
    parts.append(shown(describe_sizes(data)))
    if data.code.ignore:
        parts.append(shown(f"ignored in the masks: {format_values(data.code.ignore)}; shares are of the other pixels"))
    if data.skipped:
        parts.append(shown(f"{len(data.skipped)} pairs left out, unreadable or of two sizes:"))
        parts += [shown(f"  {error}") for error in data.skipped]
    parts += [shown(note) for note in (*data.notes, data.caveat) if note]
    return Group(*parts)


def _shares(data: MaskData) -> Table:
    splits = [split for split in SPLITS if split in data.splits]
    table = Table("class", *splits, show_footer=True, caption="share of the pixels", caption_justify="left")
    table.columns[0].footer = "images"
    for column, split in zip(table.columns[1:], splits, strict=True):
        column.justify = "right"
        column.footer = str(len(data.splits[split]))
    for label, name in enumerate(data.classes):
        r, g, b = data.palette[label]
        shares = (data.pixels[split][label] / max(1, sum(data.pixels[split])) for split in splits)
        table.add_row(
            Text.assemble(("■ ", f"rgb({r},{g},{b})"), printable(name)), *(f"{100 * share:.2f} %" for share in shares)
        )
    return table
