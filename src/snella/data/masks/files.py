"""Mask files to class indices.

mask file -> values (grey levels, palette indices) or colours -> the class of each pixel, or IGNORE
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.tv_tensors import Mask

from snella.data.dataset import Example, ImageData
from snella.data.images import UnreadableImage, decoding, is_wide, open_image, upright, wide_values
from snella.errors import UserError, listed

IGNORE = -1  # in a mask as tensors hold it: not trained on, not evaluated
MAX_VALUE = 65_535
MAX_GREY = 0.25  # share of the middle greys in a mask of two levels
JPEG_TINT = 16  # channels of a grey JPEG differ by rounding, those of a coloured one by more

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class MaskCode:
    """How mask files say classes.

    Args:
        values: the value of class k in the files (0..65535); where they are colour-coded just 0..K-1.
        colors: where files are colour-coded, the colour of class k.
        ignore: values that stand for no class; in a colour-coded file N stands for the colour (N, N, N).
        binary: grey masks of two levels (JPEG noise and all): above half of the largest is class 1.
    """

    values: tuple[int, ...]
    colors: tuple[RGB, ...] | None = None
    ignore: tuple[int, ...] = ()
    binary: bool = False

    def to_dict(self) -> dict[str, object]:
        """Return the code as JSON holds it."""
        colors = None if self.colors is None else [list(color) for color in self.colors]
        return {**asdict(self), "values": list(self.values), "colors": colors, "ignore": list(self.ignore)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MaskCode:
        """Return the code that `to_dict` gave. Raises UserError on unknown or missing names."""
        names = [field.name for field in fields(cls)]
        if set(values) != set(names):
            raise UserError(f"mask code has {sorted(values)}; expected {sorted(names)}")
        colors = values["colors"]
        return cls(
            tuple(values["values"]),
            None if colors is None else tuple((r, g, b) for r, g, b in colors),
            tuple(values["ignore"]),
            values["binary"],
        )


def read_mask(path: str, code: MaskCode) -> Tensor:
    """Read a mask file as class indices of shape (h, w), int16, IGNORE where it stands for no class.

    Raises:
        UnreadableImage: a file that `open_image` would refuse too, or a value that the code does not know.
    """
    pixels, jpeg = mask_pixels(path)
    return to_classes(pixels, code, path, jpeg=jpeg)


def mask_pixels(path: str) -> tuple[np.ndarray, bool]:
    """Read the file's own values, (h, w) uint16, or colours, (h, w, 3) uint8; and whether it is a JPEG.

    Of a palette file the values are the indices; a 1-bit file has 0 and 255; three equal channels are one. Raises
    UnreadableImage.
    """
    with decoding(path, path) as image:
        jpeg = image.format in ("JPEG", "MPO")
        pixels = _values(upright(image, path), path, JPEG_TINT if jpeg else 0)
    if jpeg and pixels.ndim == 3:
        raise UnreadableImage(path, "a coloured JPEG, whose colours are not exact; save masks as PNG")
    return pixels, jpeg


def mask_palette(path: str) -> tuple[RGB, ...]:
    """Read the colours of a palette file's indices; none where it has no palette or cannot be read."""
    try:
        with decoding(path, path) as image:
            values = (image.getpalette("RGB") or []) if image.mode == "P" else []
    except Exception:  # the mask itself is read, and reported, elsewhere
        return ()
    return tuple(zip(values[::3], values[1::3], values[2::3], strict=False))


def to_classes(
    pixels: np.ndarray, code: MaskCode, path: str, *, jpeg: bool = False, counts: np.ndarray | None = None
) -> Tensor:
    """Map values (h, w) or colours (h, w, 3) to class indices, (h, w) int16.

    Args:
        path: what the error calls the mask.
        jpeg: values may be a little off.
        counts: how often each of the pixels occurs, (h, w); None for once.

    Raises:
        UnreadableImage: a value or colour that stands for no class.
    """
    if code.colors is not None:
        return torch.from_numpy(_by_color(pixels, code, path))
    if pixels.ndim == 3:
        raise UnreadableImage(path, "colours where grey levels stand for the classes")
    classes = _table(code)[pixels]
    if code.binary:
        _check_two_levels(pixels, classes != IGNORE, path, jpeg, counts)
    elif classes.size and classes.min() == _UNKNOWN:
        value = int(pixels[classes == _UNKNOWN][0])
        raise UnreadableImage(path, f"value {value} stands for no class ({format_values(code.values)})")
    return torch.from_numpy(classes)


def format_values(values: tuple[int, ...]) -> str:
    """Put values in words: "0 to 3" where they follow each other, else the first few.

    >>> format_values((0, 1, 2, 3)), format_values((0, 128, 255))
    ('0 to 3', '0, 128, 255')
    """
    ordered = sorted(values)
    if len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]} to {ordered[-1]}"
    return listed(list(map(str, ordered)), 12)


def mask_picture(mask: Tensor, code: MaskCode, palette: Sequence[RGB]) -> Image.Image:
    """Return class indices (h, w) as the image that `read_mask` reads back: palette, 16-bit grey or colours."""
    classes = mask.numpy()
    if code.colors is not None:
        return Image.fromarray(np.array(code.colors, dtype=np.uint8)[classes])
    if max(code.values) > 255:
        return Image.fromarray(np.array(code.values, dtype=np.uint16)[classes])
    picture = Image.fromarray(np.array(code.values, dtype=np.uint8)[classes])
    flat = [0] * 768
    for value, color in zip(code.values, palette, strict=True):
        flat[3 * value : 3 * value + 3] = color
    picture.putpalette(flat)
    return picture


@dataclass(frozen=True)
class MaskedImages:
    """The images of one split: `images[i]` is `{"image": 8-bit RGB PIL image, "mask": Mask (h, w) int16}`.

    Without masks (for prediction) the examples hold only the image. Where images are not files (a packaged data set),
    a path is just a name that `read` and `read_mask` know.

    >>> images = MaskedImages(("cat.jpg",), ("cat.png",), MaskCode((0, 1)))
    """

    paths: tuple[str, ...]
    masks: tuple[str, ...] = ()
    code: MaskCode = MaskCode(())
    read: Callable[[str], Image.Image] = open_image
    read_mask: Callable[[str, MaskCode], Tensor] = read_mask

    def __post_init__(self) -> None:
        if self.masks and len(self.masks) != len(self.paths):
            raise ValueError(f"{len(self.paths)} paths but {len(self.masks)} masks")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        """Read the example. Raises UnreadableImage, also where the mask's size is not the image's."""
        image = self.read(self.paths[index])
        if not self.masks:
            return {"image": image}
        mask = self.read_mask(self.masks[index], self.code)
        check_sizes(self.paths[index], image.size, (mask.shape[1], mask.shape[0]))
        return {"image": image, "mask": Mask(mask)}

    def drawn_from(self, index: int) -> str:
        """Return a digest of what a mask is drawn from; "" for one that is read."""
        digest = getattr(self.read_mask, "drawn_from", None)
        return digest(self.masks[index]) if digest else ""


def check_sizes(path: str, image: tuple[int, int], mask: tuple[int, int]) -> None:
    """Compare (width, height) of image and mask. Raises UnreadableImage where they differ."""
    if image != mask:
        raise UnreadableImage(path, f"mask is {mask[0]} x {mask[1]}, image {image[0]} x {image[1]}")


@dataclass(frozen=True, kw_only=True)
class MaskData(ImageData[MaskedImages]):
    """Images with masks as training uses them.

    Args:
        code: how the mask files say classes.
        palette: the colour of class k, RGB 0..255.
        pixels: split -> pixels of each class; ignored ones are not counted.
    """

    code: MaskCode
    palette: tuple[RGB, ...]
    pixels: dict[str, tuple[int, ...]]


_UNKNOWN = -2


@lru_cache(maxsize=8)
def _table(code: MaskCode) -> np.ndarray:
    """Return the class of every value, (65536,) int16."""
    table = np.full(MAX_VALUE + 1, _UNKNOWN, dtype=np.int16)
    if code.binary:
        high = int(np.argmax(code.values))  # the class of the upper level
        table[:] = np.where(np.arange(len(table)) > max(code.values) / 2, high, 1 - high)
    else:
        table[list(code.values)] = np.arange(len(code.values))
    table[list(code.ignore)] = IGNORE
    return table


def _check_two_levels(pixels: np.ndarray, used: np.ndarray, path: str, jpeg: bool, counts: np.ndarray | None) -> None:
    """Refuse what is not of two levels: many grey pixels, or 0 and 1. A few are noise or soft edges."""
    if not used.any():
        return
    values, weights = pixels[used], None if counts is None else counts[used]
    if values.max() == 1 and not jpeg:
        raise UnreadableImage(path, "value 1 stands for no class (0 or 255)")
    middle = (values >= 64) & (values < 192)
    share = np.average(middle, weights=weights)
    if share > MAX_GREY:
        value = int(values[middle][0])
        raise UnreadableImage(path, f"value {value} stands for no class (0 or 255; {share:.0%} of it is grey)")


def _by_color(pixels: np.ndarray, code: MaskCode, path: str) -> np.ndarray:
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    colors = [*(code.colors or ()), *((value, value, value) for value in code.ignore)]
    classes = np.array([*range(len(code.colors or ())), *(IGNORE for _ in code.ignore)], dtype=np.int16)
    keys = pack_colors(np.array(colors, dtype=np.int64))
    order = np.argsort(keys, kind="stable")
    found = pack_colors(pixels)
    at = order[np.searchsorted(keys[order], found).clip(max=len(keys) - 1)]
    wrong = keys[at] != found
    if wrong.any():
        color = tuple(map(int, pixels[wrong][0]))
        raise UnreadableImage(path, f"colour {color} stands for no class ({len(code.colors or ())} colours are known)")
    return classes[at]


def pack_colors(colors: np.ndarray) -> np.ndarray:
    """Return colours (..., 3) as one integer each, 0xRRGGBB."""
    wide = colors.astype(np.int64)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def _values(image: Image.Image, path: str, tint: int) -> np.ndarray:
    if image.mode == "1":
        return np.asarray(image).astype(np.uint16) * 255
    if is_wide(image):
        return wide_values(image, path)
    if image.mode in ("P", "L"):
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("LA", "PA"):
        return np.asarray(image)[..., 0].astype(np.uint16)
    if image.mode == "F":
        raise UnreadableImage(path, "floating-point values; save as 8 or 16 bits")
    colors = np.asarray(image.convert("RGB"))
    if np.ptp(colors, axis=2).max(initial=0) <= tint:
        return colors[..., 1].astype(np.uint16)  # green: nearest to the grey that a tinted JPEG means
    return colors
