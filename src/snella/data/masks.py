"""Masks: files that say the class of each pixel, as values, palette indices or colours.

file ─ values (h, w), or colours (h, w, 3) ─ code ─ class indices (h, w), IGNORE where none counts
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from snella.data.dataset import ImageData
from snella.data.images import UnreadableImage, open_image, open_raw

IGNORE = -1  # in a mask as tensors hold it: not trained on, not evaluated
RGB = tuple[int, int, int]

# well told apart, also without colour vision; after them come hues at even steps
_QUALITATIVE: tuple[RGB, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
    (0, 114, 178), (213, 94, 0), (204, 121, 167), (120, 94, 240),
)  # fmt: skip


@dataclass(frozen=True)
class MaskCode:
    """How mask files say classes.

    Args:
        values: the value of class k in the files, 0 to 65535.
        colors: where files are colour-coded: the colour of class k.
        ignore: values that stand for no class.
        binary: grey masks of two levels, whatever noise JPEG adds: above half is class 1.
    """

    values: tuple[int, ...]
    colors: tuple[RGB, ...] | None = None
    ignore: tuple[int, ...] = ()
    binary: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MaskCode:
        """The inverse of `to_dict`, lists for tuples."""
        colors = values["colors"]
        return cls(
            tuple(values["values"]),
            None if colors is None else tuple(_rgb(color) for color in colors),
            tuple(values["ignore"]),
            values["binary"],
        )


def mask_values(path: str) -> np.ndarray:
    """A mask file's values, (h, w): greys or palette indices; colours as (h, w, 3) where the channels differ.

    Raises:
        UnreadableImage: as `open_image`; values that are no whole numbers of up to 16 bits.
    """
    image = open_raw(path)
    lossy = path.lower().endswith((".jpg", ".jpeg"))  # no colour survives it, so none can say a class
    if lossy or image.mode in ("RGBA", "LA", "PA", "CMYK", "YCbCr"):
        image = image.convert("L" if lossy or image.mode == "LA" else "RGB")
    values = np.asarray(image)
    if values.dtype == bool:
        return values.astype(np.int32)
    if values.dtype.kind not in "ui" or values.min() < 0 or values.max() > 65535:
        raise UnreadableImage(path, "a mask has whole numbers of up to 16 bits; save it as a grey PNG")
    if values.ndim == 3 and (values == values[..., :1]).all():
        values = values[..., 0]
    return values.astype(np.int32)


def file_palette(path: str) -> tuple[RGB, ...] | None:
    """The palette of a palette image, a colour for each index; None for other images."""
    image = open_raw(path)
    if image.mode != "P":
        return None
    flat = image.getpalette("RGB") or []
    return tuple(_rgb(flat[i : i + 3]) for i in range(0, len(flat) - 2, 3))


def read_mask(path: str, code: MaskCode) -> Tensor:
    """A mask file as class indices, (h, w) int16, IGNORE where the code ignores the value.

    Raises:
        UnreadableImage: names the file and the value or colour that stands for no class.
    """
    return encoded(mask_values(path), code, path)


def encoded(values: np.ndarray, code: MaskCode, name: str) -> Tensor:
    """Values (h, w), or colours (h, w, 3), as class indices (h, w) int16; `name` is what errors call them."""
    if code.colors is not None:
        return _from_colors(values, code.colors, name)
    if values.ndim == 3:
        raise UnreadableImage(name, "coloured, where the other masks are grey; save all in one way")
    table = np.full(max(*code.values, *code.ignore, int(values.max()), 255) + 1, IGNORE - 1, dtype=np.int16)
    if code.binary:
        table[:128], table[128:] = 0, 1
    table[list(code.ignore)] = IGNORE
    if not code.binary:
        table[list(code.values)] = np.arange(len(code.values))
    classes = table[values]
    if (classes < IGNORE).any():
        unknown = int(values[classes < IGNORE][0])
        raise UnreadableImage(name, f"value {unknown} stands for no class ({_listed(code.values)})")
    return torch.from_numpy(classes)


def mask_picture(mask: Tensor, code: MaskCode, palette: Sequence[RGB]) -> Image.Image:
    """Class indices (h, w) as an image that `read_mask` reads back: a palette PNG, 16-bit grey, or colours."""
    classes = mask.numpy()
    if code.colors is not None:
        return Image.fromarray(np.array(code.colors, dtype=np.uint8)[classes])
    values = np.array((0, 255) if code.binary else code.values)[classes]
    if values.max(initial=0) > 255:
        return Image.fromarray(values.astype(np.uint16))
    picture = Image.fromarray(values.astype(np.uint8))
    picture.putpalette(_full_palette((0, 255) if code.binary else code.values, palette))
    return picture


def default_palette(count: int, *, background: bool) -> tuple[RGB, ...]:
    """Colours of `count` classes; the first is black where it is the background."""
    if background:
        return ((0, 0, 0), *default_palette(count - 1, background=False))
    extra = max(count - len(_QUALITATIVE), 0)
    hues = [colorsys.hsv_to_rgb(i / max(extra, 1), 0.55 + 0.3 * (i % 2), 0.95 - 0.2 * (i % 3)) for i in range(extra)]
    return (*_QUALITATIVE[:count], *(_rgb([round(255 * part) for part in hue]) for hue in hues))


@dataclass(frozen=True)
class MaskedImages:
    """The images of one split: `images[i]` is `{"image": 8-bit RGB PIL image, "mask": Mask (h, w) int16}`.

    Without masks (for prediction) the examples hold only the image. Where images and masks are no files, paths are
    names that `read` and `read_mask` know.
    """

    paths: tuple[str, ...]
    masks: tuple[str, ...] = ()
    code: MaskCode = MaskCode(())
    read: Callable[[str], Image.Image] = open_image
    read_mask: Callable[[str, MaskCode], Tensor] = read_mask

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, object]:
        """Raises UnreadableImage, also where image and mask differ in size."""
        image = self.read(self.paths[index])
        if not self.masks:
            return {"image": image}
        mask = self.read_mask(self.masks[index], self.code)
        if tuple(mask.shape) != (image.height, image.width):
            raise UnreadableImage(self.masks[index], size_difference(mask.shape, image.size))
        return {"image": image, "mask": tv_tensors.Mask(mask)}


def size_difference(mask: Sequence[int], image: Sequence[int]) -> str:
    """What is wrong with a mask (h, w) of an image (w, h) of another size."""
    return f"the mask is {mask[1]} x {mask[0]} pixels, its image {image[0]} x {image[1]}"


@dataclass(frozen=True)
class MaskData(ImageData):
    """A data set of images with masks, as training uses it; its splits hold `MaskedImages`."""

    code: MaskCode = MaskCode(())
    palette: tuple[RGB, ...] = ()  # the colour of class k
    pixels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # split -> pixels of each class


def _from_colors(values: np.ndarray, colors: Sequence[RGB], name: str) -> Tensor:
    if values.ndim == 2:
        values = np.repeat(values[..., None], 3, axis=2)
    numbers = values[..., 0] << 16 | values[..., 1] << 8 | values[..., 2]  # (h, w)
    known = np.array([r << 16 | g << 8 | b for r, g, b in colors])
    order = np.argsort(known)
    place = np.searchsorted(known[order], numbers).clip(max=len(known) - 1)
    classes = order[place]
    wrong = known[classes] != numbers
    if wrong.any():
        color = tuple(int(part) for part in values[wrong][0])
        raise UnreadableImage(name, f"colour {color} stands for no class; add it to the names file")
    return torch.from_numpy(classes.astype(np.int16))


def _full_palette(values: Sequence[int], palette: Sequence[RGB]) -> list[int]:
    flat = [0] * 768
    for value, color in zip(values, palette, strict=True):
        flat[3 * value : 3 * value + 3] = color
    return flat


def _listed(values: Sequence[int]) -> str:
    if list(values) == list(range(values[0], values[0] + len(values))):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")


def _rgb(color: Sequence[int]) -> RGB:
    r, g, b = color
    return (int(r), int(g), int(b))
