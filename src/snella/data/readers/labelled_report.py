"""The report that `snella data PATH` prints."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table

from snella.console import shown
from snella.data.dataset import SPLITS, ImageData, Images, Pictures, counted_labels
from snella.data.images import ImageFiles, UnreadableImage, image_size
from snella.data.readers.captioned import CaptionedImages

SIZES_OF = 5_000  # images whose sizes are read


def describe(data: ImageData[Images]) -> RenderableType:
    """Show layout, counts per class and split, image sizes, unreadable images by name, notes."""
    parts: list[RenderableType] = [
        shown(f"{data.root}: {data.layout}, {len(data.classes)} classes"),
        class_counts(data),
    ]
    return Group(*parts, *describe_rest(data))


def describe_rest(data: ImageData[Images]) -> list[RenderableType]:
    """Return what is shown of images of any kind: sizes, unreadable images by name, notes."""
    parts: list[RenderableType] = [shown(describe_sizes(data))]
    if data.skipped:
        parts.append(shown(f"{len(data.skipped)} unreadable images left out:"))
        parts += [shown(f"  {error}") for error in data.skipped]
    return [*parts, *(shown(note) for note in (*data.notes, data.caveat) if note)]


def class_counts(data: ImageData[Images] | ImageData[CaptionedImages]) -> Table:
    """Count images by class and split."""
    splits = [split for split in SPLITS if split in data.splits]
    known = {split: getattr(data.splits[split], "targets", ()) or data.splits[split].labels for split in splits}
    counts = {split: counted_labels(known[split]) for split in splits}
    table = Table("class", *splits, "all", show_footer=True)
    for column, split in zip(table.columns[1:], [*splits, None], strict=True):
        column.justify = "right"
        column.footer = str(sum(len(data.splits[name]) for name in splits if split in (name, None)))
    table.columns[0].footer = "all"
    for label, name in enumerate(data.classes):
        row = [counts[split][label] for split in splits]
        table.add_row(shown(name), *map(str, row), str(sum(row)))
    return table


def describe_sizes(data: ImageData[Pictures]) -> str:
    """Return the smallest, median and largest image by area, of evenly chosen images, as a line."""
    found, whole = measure_images(data)
    if not found:
        return "sizes: unknown"
    by_area = sorted((size for _, size in found), key=lambda size: (size[0] * size[1], size))
    smallest, median, largest = (f"{w} x {h}" for w, h in (by_area[0], by_area[len(found) // 2], by_area[-1]))
    if smallest == largest:
        text = f"sizes: all {smallest} pixels"
    else:
        text = f"sizes: {smallest} to {largest} pixels, median {median}"
    return text if whole else f"{text} (of {len(found)} images looked at)"


def measure_images(data: ImageData[Pictures]) -> tuple[list[tuple[str, tuple[int, int]]], bool]:
    """Return paths with width and height of evenly chosen images, at most 5,000; whether they are all."""
    images = [(part, i) for part in data.splits.values() for i in range(len(part))]
    chosen = images[:: -(-len(images) // SIZES_OF)]
    found = []
    for part, i in chosen:
        path = part.paths[i]
        try:
            found.append((path, image_size(path) if isinstance(part.read, ImageFiles) else part.read(path).size))
        except UnreadableImage:  # found only where headers alone were checked
            continue
    return found, len(chosen) == len(images)
