"""Logits of images of any size, from a model that sees squares: windows that overlap, averaged.

image (3, h, w) ─ pad to the square at least ─ squares, a third of a side shared ─ model ─ mean ─ (K, h, w)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snella.models.backbone import logits_of


def windowed_logits(model: nn.Module, images: Sequence[Tensor], size: int, *, batch_size: int) -> Iterator[Tensor]:
    """Yield logits (K, h, w) in fp32 for each image (3, h, w) in turn, from windows of `size` x `size`.

    An image that fits into one window is padded below and to the right with 0, the mean colour, and gives what the
    model gives. Otherwise neighbours share at least a third of their side, and a pixel has the mean of the logits of
    all windows that it is in.

    Args:
        batch_size: windows per forward pass; they may be of several images.
    """
    padded = [_padded(image, size) for image in images]
    places = [
        (i, top, left)
        for i, image in enumerate(padded)
        for top in starts(image.shape[-2], size)
        for left in starts(image.shape[-1], size)
    ]
    sums: dict[int, tuple[Tensor, Tensor]] = {}  # image -> sum of logits, windows at each pixel
    for first in range(0, len(places), batch_size):
        group = places[first : first + batch_size]
        squares = torch.stack([padded[i][:, top : top + size, left : left + size] for i, top, left in group])
        for (i, top, left), logits in zip(group, logits_of(model(squares)).float(), strict=True):
            area = padded[i].shape[-2:]
            if i not in sums:
                yield from _finished(sums, images)  # windows come in the order of the images
                sums[i] = logits.new_zeros(len(logits), *area), logits.new_zeros(area)
            total, count = sums[i]
            total[:, top : top + size, left : left + size] += logits
            count[top : top + size, left : left + size] += 1
    yield from _finished(sums, images)


def _finished(sums: dict[int, tuple[Tensor, Tensor]], images: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield the mean logits of the image that has had all its windows, without its padding."""
    for i in list(sums):
        total, count = sums.pop(i)
        h, w = images[i].shape[-2:]
        yield (total / count)[:, :h, :w]


def _padded(image: Tensor, size: int) -> Tensor:
    h, w = image.shape[-2:]
    return F.pad(image, (0, max(size - w, 0), 0, max(size - h, 0)))


def starts(length: int, size: int) -> list[int]:
    """Return where windows begin on a side of `length` >= `size`: evenly, sharing at least a third of `size`."""
    steps = math.ceil((length - size) / max(size * 2 // 3, 1))
    return [round(i * (length - size) / steps) for i in range(steps + 1)] if steps else [0]
