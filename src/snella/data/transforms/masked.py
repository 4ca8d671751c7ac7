"""Image and mask to tensors: one geometry for both, colours for the image alone.

Masks are sampled at the pixel centres, where the image's own interpolation looks; torchvision's mask resize (torch's
"nearest") looks at the corners, up to half a source pixel aside.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import Mask

from snella.data.dataset import Example, Transform
from snella.data.masks.files import IGNORE
from snella.data.transforms.images import Augmentation, Preprocessing, to_tensor
from snella.errors import UserError

MIN_CROP_AREA = 0.25  # of a smaller piece hardly a class is whole


def masked_eval_transform(preprocessing: Preprocessing) -> Transform:
    """Make the transform `{"image": PIL, "mask": Mask (H, W)}` -> `{"image": float32 (3, h, w), "mask": int64 (H, W)}`.

    The mask stays as the file has it, whatever becomes of the image, and may be absent. h, w: s, s for "squash", the
    short one s for "crop" (nothing is cut off), as they are for "none".
    """
    p = preprocessing
    steps = [] if p.resize == "none" else [_Resize(p, mask=False)]
    return v2.Compose([*steps, *to_tensor(p), _to_index])


def masked_train_transform(preprocessing: Preprocessing, augmentation: Augmentation) -> Transform:
    """Make the transform `{"image": PIL, "mask": Mask (H, W)}` -> `{"image": float32 (3, s, s), "mask": int64 (s, s)}`.

    "squash" resizes both sides to s; "crop" the short side, then takes a random square; "none" takes a random square
    of the pixels as they are, smaller images padded right and below with the mean colour and IGNORE. The augmentation
    "crop" takes a random piece of 0.25 (or `min_crop_area`) to 1 of the area instead, resized to the square.
    Draws from torch's global generator.

    Raises:
        UserError: an augmentation that would move or blank the image and not the mask.
    """
    p, a = preprocessing, augmentation
    for name in ("auto_augment", "random_erasing"):
        if getattr(a, name):
            raise UserError(f"{name} changes images without their masks; leave it out for segmentation")
    if a.name == "crop":
        steps: list[Transform] = [_RandomResizedCrop(p, a.min_crop_area or MIN_CROP_AREA)]
    elif p.resize == "none":
        steps = [_RandomCrop(p.image_size)]
    else:
        steps = [_Resize(p, mask=True), _RandomCrop(p.image_size)]
    if a.name != "none":
        steps.append(v2.RandomHorizontalFlip())
    if a.vertical_flip:
        steps.append(v2.RandomVerticalFlip(a.vertical_flip))
    if a.color_jitter:
        strength = a.color_jitter
        steps.append(v2.ColorJitter(strength, strength, strength))
    return v2.Compose([*steps, *to_tensor(p), _PadTo(p.image_size), _to_index])


class _Resize:
    """A resize to the square for "squash", else the short side to s."""

    def __init__(self, p: Preprocessing, *, mask: bool) -> None:
        self.preprocessing, self.mask = p, mask

    def __call__(self, example: Example) -> Example:
        p = self.preprocessing
        width, height = example["image"].size
        size = [p.image_size, p.image_size]  # height, width
        if p.resize == "crop":
            short = min(width, height)
            size = [max(1, round(side * p.image_size / short)) for side in (height, width)]
        return _resized(example, size, p, mask=self.mask)


class _RandomResizedCrop:
    """torchvision's piece of the image (an area share, a ratio from 3/4 to 4/3), resized to the square."""

    def __init__(self, p: Preprocessing, min_area: float) -> None:
        self.preprocessing, self.min_area = p, min_area

    def __call__(self, example: Example) -> Example:
        p = self.preprocessing
        top, left, height, width = RandomResizedCrop.get_params(example["image"], [self.min_area, 1.0], [3 / 4, 4 / 3])
        piece = _cropped(example, top=top, left=left, height=height, width=width)
        return _resized(piece, [p.image_size, p.image_size], p, mask=True)


class _RandomCrop:
    """A random piece of s x s; of a side shorter than s all of it."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, example: Example) -> Example:
        width, height = example["image"].size
        box = {"height": min(height, self.size), "width": min(width, self.size)}
        top = int(torch.randint(height - box["height"] + 1, ()))
        left = int(torch.randint(width - box["width"] + 1, ()))
        return _cropped(example, top=top, left=left, **box)


class _PadTo:
    """Padding right and below to s x s: the normalised image with 0, the mean colour, the mask with IGNORE."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, example: Example) -> Example:
        height, width = example["image"].shape[-2:]
        padding = [0, 0, self.size - width, self.size - height]  # left, top, right, bottom
        if not any(padding):
            return example
        return {
            **example,
            "image": functional.pad(example["image"], padding, fill=0),
            "mask": functional.pad(example["mask"][None], padding, fill=IGNORE)[0],
        }


def _cropped(example: Example, *, top: int, left: int, height: int, width: int) -> Example:
    return {
        **example,
        "image": functional.crop(example["image"], top, left, height, width),
        "mask": Mask(example["mask"][top : top + height, left : left + width]),
    }


def _resized(example: Example, size: list[int], p: Preprocessing, *, mask: bool) -> Example:
    image = functional.resize(example["image"], size, interpolation=str_to_interp_mode(p.interpolation))
    if not mask:
        return {**example, "image": image}
    return {**example, "image": image, "mask": Mask(resize_mask(example["mask"], size))}


def resize_mask(mask: Tensor, size: list[int]) -> Tensor:
    """Resize class indices (h, w) by nearest neighbour to `size` (height, width); no new value appears."""
    image = Image.fromarray(mask.numpy().astype(np.int32))
    resized = image.resize((size[1], size[0]), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(resized)).to(mask.dtype)


def _to_index(example: Example) -> Example:
    if "mask" not in example:
        return example
    return {**example, "mask": example["mask"].long()}
