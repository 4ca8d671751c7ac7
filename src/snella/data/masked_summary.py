"""What `snella data PATH` prints of images with masks."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from snella.data.dataset import SPLITS
from snella.data.masks import MaskData
from snella.data.summary import sizes_of


def describe_masked(data: MaskData) -> RenderableType:
    """Layout, images of each split, share of the pixels by class and split, sizes, what was left out, notes."""
    parts: list[RenderableType] = [Text(f"{data.root}: {data.layout}, {len(data.classes)} classes"), _shares(data)]
    parts.append(Text(sizes_of(data)))
    if data.skipped:
        parts.append(Text(f"{len(data.skipped)} images left out, with an unreadable or mismatched file:"))
        parts += [Text(f"  {error}") for error in data.skipped]
    parts += [Text(note) for note in data.notes]
    return Group(*parts)


def _shares(data: MaskData) -> Table:
    splits = [split for split in SPLITS if split in data.splits]
    table = Table("class", "value", *splits, title="share of the pixels", title_justify="left", show_footer=True)
    table.columns[0].footer = "images"
    for column, split in zip(table.columns[2:], splits, strict=True):
        column.justify = "right"
        column.footer = f"{len(data.splits[split]):,}"
    for k, name in enumerate(data.classes):
        shares = (data.pixels[split][k] / max(sum(data.pixels[split]), 1) for split in splits)
        color = data.palette[k]
        said = "#{:02x}{:02x}{:02x}".format(*color) if data.code.colors else str(data.code.values[k])
        table.add_row(Text(name), said, *(f"{share:.2%}" for share in shares))
    return table
