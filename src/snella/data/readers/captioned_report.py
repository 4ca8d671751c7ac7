"""The report that `snella data PATH --task generate` prints."""

from __future__ import annotations

import os
import textwrap

from rich.console import Group, RenderableType

from snella.console import shown
from snella.data.dataset import ImageData
from snella.data.readers.captioned import CaptionedImages
from snella.data.readers.labelled_report import class_counts, describe_sizes, measure_images

EXAMPLES = 3
EXAMPLE_WIDTH = 200  # characters


def describe_captioned(data: ImageData[CaptionedImages]) -> RenderableType:
    """Show layout, counts, captions, sizes, what either way of resizing costs, unreadable images by name, notes."""
    lines = [*_captions(data), describe_sizes(data), *_shapes(data)]
    if data.skipped:
        lines += [f"{len(data.skipped)} unreadable images left out:", *(f"  {error}" for error in data.skipped)]
    lines += [note for note in (*data.notes, data.caveat) if note]
    counts = class_counts(data) if data.classes else shown(_counts(data))
    classes = f", {_number(len(data.classes), 'class', 'classes')}" if data.classes else ""
    return Group(shown(f"{data.root}: {data.layout}{classes}"), counts, *map(shown, lines))


def _counts(data: ImageData[CaptionedImages]) -> str:
    return "images: " + ", ".join(f"{split} {len(images)}" for split, images in data.splits.items())


def _captions(data: ImageData[CaptionedImages]) -> list[str]:
    different = list(dict.fromkeys(caption for images in data.splits.values() for caption in images.captions))
    if not different:
        return ["captions: none"]
    words = [len(caption.split()) for caption in different]
    length = str(words[0]) if min(words) == max(words) else f"{min(words)} to {max(words)}"
    examples = [textwrap.shorten(caption, EXAMPLE_WIDTH, placeholder=" ...") for caption in different[:EXAMPLES]]
    of = f"captions: {len(different)} different, {length} word{'' if length == '1' else 's'} long"
    return [of, *(f"  {example}" for example in examples), *(["  ..."] if len(different) > EXAMPLES else [])]


def _shapes(data: ImageData[CaptionedImages]) -> list[str]:
    """Describe aspect ratios, what --resize makes of them, and the size above which images are enlarged."""
    found = dict(measure_images(data)[0])  # one picture may stand in two splits
    if not found:
        return []
    wide = sum(width > height for width, height in found.values())
    high = sum(width < height for width, height in found.values())
    ratios = {path: max(size) / min(size) for path, size in found.items()}
    cuts = [100 * (1 - 1 / ratio) for ratio in ratios.values()]
    longest = max(ratios, key=lambda path: ratios[path])
    smallest, size = min(found.items(), key=lambda item: min(item[1]))
    lines = [f"shapes: {wide} landscape, {len(found) - wide - high} square, {high} portrait"]
    if wide or high:
        lines += [
            f"  --resize crop cuts off {sum(cuts) / len(cuts):.1f} % of an image on average, at most {max(cuts):.1f} % "
            f"({os.path.basename(longest)})",
            f"  --resize squash stretches by up to {ratios[longest]:.2f} ({os.path.basename(longest)})",
        ]
    return [
        *lines,
        f"shortest side: {min(size)} pixels ({os.path.basename(smallest)}); "
        f"up to --image-size {min(size)} no image is enlarged",
    ]


def _number(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
