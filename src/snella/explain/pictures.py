"""A heat map over its image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import nn

from snella.data.dataset import Transform
from snella.data.transforms.images import Preprocessing
from snella.explain.maps import check_captum, find_layer, heat_maps

LONGEST = 1024  # pixels of the longer side of an overlay: a map has some hundred places
SMALLEST = 192  # pixels below which an image is enlarged by a whole factor
OPACITY = 0.75  # of the hottest place
COLOURS = np.array([(80, 0, 140), (215, 40, 60), (255, 140, 0), (255, 215, 0)])  # from cold to hot, all of them strong

Explain = Callable[
    [Image.Image, int], Image.Image
]  # an image and a class -> the image with the class's heat map over it


def explainer(
    model: nn.Module, preprocessing: Preprocessing, transform: Transform, *, mirrored: bool = False
) -> Explain:
    """Return what paints over an 8-bit RGB image how much its places speak for a class.

    Args:
        model: images (b, 3, s, s) to logits (b, K).
        preprocessing: of `transform`, which turns {"image": image} into what the model takes.
        mirrored: as in `heat_maps`.

    Raises:
        UserError: the package is missing that makes heat maps, or the model has no layer to make them at.
    """
    check_captum()
    layer = find_layer(model, preprocessing.image_size)
    device = next(model.parameters()).device

    def explain(picture: Image.Image, target: int) -> Image.Image:
        images = transform({"image": picture})["image"][None].to(device)
        (heat,) = heat_maps(model, layer, images, torch.tensor([target]), mirrored=mirrored)
        return overlaid(picture, heat.cpu().numpy(), preprocessing)

    return explain


def overlaid(picture: Image.Image, heat: np.ndarray, preprocessing: Preprocessing) -> Image.Image:
    """Return an 8-bit RGB image with a heat map (n, n), from 0 to 1, over what the model sees of it.

    It has the image's proportions: large ones are made smaller, tiny ones larger.
    """
    shown = _sized(picture)
    left, top, right, bottom = seen_box(shown.size, preprocessing)
    cover = np.zeros((shown.height, shown.width), np.float32)
    smooth = Image.fromarray(heat.astype(np.float32)).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    cover[top:bottom, left:right] = np.asarray(smooth).clip(0, 1)
    steps = np.linspace(0, 1, len(COLOURS))
    colours = np.stack([np.interp(cover, steps, channel) for channel in COLOURS.T], axis=-1)
    opacity = OPACITY * cover[..., None]
    pixels = np.asarray(shown, np.float32) * (1 - opacity) + colours * opacity
    return Image.fromarray(pixels.round().astype(np.uint8))


def seen_box(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom, in pixels, of what the model sees of an image of a width and a height."""
    width, height = size
    if preprocessing.resize != "crop":
        return 0, 0, width, height
    side = round(min(size) * preprocessing.image_size / (preprocessing.image_size * 256 // 224))
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _sized(picture: Image.Image) -> Image.Image:
    longest = max(picture.size)
    if longest < SMALLEST:
        factor = -(-SMALLEST // longest)
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    shown = picture.copy()
    shown.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return shown
