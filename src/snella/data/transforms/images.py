"""Image to tensor: the pre-trained model's preprocessing, and augmentation.

A transform takes and gives an example, a dict. torchvision's v2 transforms handle every image and mask in it together
and pass the rest (label, text) through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from PIL import Image
from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform
from timm.data.transforms import str_to_interp_mode, str_to_pil_interp
from torch import Tensor
from torchvision.transforms import v2
from torchvision.tv_tensors import Image as Image_

from snella.data.dataset import Example, Transform
from snella.errors import UserError

RESIZES = ("squash", "crop", "none")
AUGMENTATIONS = ("none", "flip", "crop")
MIN_CROP_AREA = 0.08  # of an image, of random crops without masks
MIN_CROP_RATIO = 3 / 4  # of a random crop's sides: torchvision's


@dataclass(frozen=True)
class Preprocessing:
    """The way from an image to the model's input of shape (3, image_size, image_size); saved with the adapter.

    Args:
        image_size: side of the input, pixels.
        mean, std: normalisation of RGB values in 0..1.
        interpolation: bicubic, bilinear, nearest, ...
        resize: "squash" to the square whatever the sides (VTAB), or "crop": the short side to image_size * 256 / 224,
            then the centre; "none" (with masks only: `masked_transforms`) leaves the pixels as they are.
        bgr: the channels of the input are blue, green, red, once they are normalised.

    >>> eval_transform(Preprocessing(224))({"image": Image.new("RGB", (640, 480))})["image"].shape
    torch.Size([3, 224, 224])

    Raises:
        UserError: a value that makes no preprocessing.
    """

    image_size: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # ImageNet's
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    resize: str = "crop"
    bgr: bool = False

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise UserError(f"image_size is {self.image_size}; use 1 pixel or more")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UserError(f"mean {self.mean} and std {self.std} must have three values, std above 0")
        if self.resize not in RESIZES:
            raise UserError(f"resize is {self.resize!r}; use {', '.join(RESIZES[:-1])} or {RESIZES[-1]}")
        try:
            str_to_interp_mode(self.interpolation)
        except KeyError:
            raise UserError(f"interpolation is {self.interpolation!r}; use bicubic, bilinear or nearest") from None

    def to_dict(self) -> dict[str, object]:
        """Return the values as JSON holds them; without `bgr` where it is off, as before there was one."""
        values = {**asdict(self), "mean": list(self.mean), "std": list(self.std)}
        return {name: value for name, value in values.items() if name != "bgr" or value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Return the preprocessing that `to_dict` gave. Raises UserError on unknown or missing names."""
        names = [field.name for field in fields(cls)]
        if {"bgr", *values} != set(names):
            raise UserError(f"preprocessing has {sorted(values)}; expected {sorted(names)}")
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


@dataclass(frozen=True)
class Augmentation:
    """The changes that training makes to images on top of the preprocessing.

    Args:
        name: "none" (as in evaluation), "flip" (left-right, half of the time) or "crop" (random-resized crop and flip).
        vertical_flip: upside-down flip, probability; for images without an up.
        min_crop_area: smallest share of the image that a random crop takes; None for 0.08, with masks 0.25.
        auto_augment: timm policy, such as "rand-m9-mstd0.5-inc1", "augmix-m3-w3" or "original"; None for none.
        color_jitter: strength of brightness, contrast and saturation changes; 0 for none.
        random_erasing: probability that a rectangle is blanked.

    Raises:
        UserError: an unknown name or policy, a value out of range.
    """

    name: str = "crop"
    vertical_flip: float = 0.0
    min_crop_area: float | None = None
    auto_augment: str | None = None
    color_jitter: float = 0.0
    random_erasing: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in AUGMENTATIONS:
            raise UserError(f"augmentation is {self.name!r}; use {', '.join(AUGMENTATIONS)}")
        for name in ("vertical_flip", "random_erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; use a probability from 0 to 1")
        if self.min_crop_area is not None and not 0 < self.min_crop_area <= 1:
            raise UserError(f"min_crop_area is {self.min_crop_area}; use a share above 0, at most 1")
        if self.color_jitter < 0:
            raise UserError(f"color_jitter is {self.color_jitter}; use 0 or more")
        if self.auto_augment:
            _policy(self.auto_augment, Preprocessing(224))

    def enough(self, size: int) -> int:
        """Return a shorter side of an image, in pixels, that gives a model's input of `size` all that it can show."""
        smallest = math.sqrt((self.min_crop_area or MIN_CROP_AREA) * MIN_CROP_RATIO) if self.name == "crop" else 1
        return math.ceil(size * max(2, 1 / smallest))


def eval_transform(preprocessing: Preprocessing) -> Transform:
    """Make the transform `{"image": PIL}` -> `{"image": float32 (3, s, s)}`; other keys stay as they are.

    Raises:
        UserError: resize is "none".
    """
    check_square(preprocessing)
    return v2.Compose([*_geometry(preprocessing), *to_tensor(preprocessing)])


def train_transform(preprocessing: Preprocessing, augmentation: Augmentation) -> Transform:
    """Make the transform as `eval_transform`, with augmentation.

    It draws from the global generators of Python, numpy and torch.

    Raises:
        UserError: resize is "none".
    """
    p, a = preprocessing, augmentation
    check_square(p)
    if a.name == "crop":
        steps: list[Transform] = [
            v2.RandomResizedCrop(
                p.image_size,
                scale=(a.min_crop_area or MIN_CROP_AREA, 1.0),
                interpolation=str_to_interp_mode(p.interpolation),
            )
        ]
    else:
        steps = _geometry(p)
    if a.name != "none":
        steps.append(v2.RandomHorizontalFlip())
    if a.vertical_flip:
        steps.append(v2.RandomVerticalFlip(a.vertical_flip))
    if a.auto_augment:
        steps.append(_OnImage(_policy(a.auto_augment, p)))
    if a.color_jitter:
        strength = a.color_jitter
        steps.append(v2.ColorJitter(strength, strength, strength))
    steps += to_tensor(p)
    if a.random_erasing:
        steps.append(v2.RandomErasing(a.random_erasing))  # after normalisation: 0 is the mean colour
    return v2.Compose(steps)


class _OnImage:
    """A timm transform, applied to the example's image only."""

    def __init__(self, transform: Callable[[Image.Image], Image.Image]) -> None:
        self.transform = transform

    def __call__(self, example: Example) -> Example:
        return {**example, "image": self.transform(example["image"])}


def check_square(p: Preprocessing) -> None:
    if p.resize == "none":
        raise UserError("resize is 'none': images of different sizes make no batch; use squash or crop")


def _geometry(p: Preprocessing) -> list[Transform]:
    mode = str_to_interp_mode(p.interpolation)
    if p.resize == "squash":
        return [v2.Resize((p.image_size, p.image_size), interpolation=mode)]
    return [v2.Resize(p.image_size * 256 // 224, interpolation=mode), v2.CenterCrop(p.image_size)]


def to_tensor(p: Preprocessing) -> list[Transform]:
    """Return the last steps: PIL image to normalised float32 tensor."""
    return [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(mean=list(p.mean), std=list(p.std)),
        *([v2.Lambda(_reversed_channels, Image_)] if p.bgr else []),
        v2.ToPureTensor(),
    ]


def _reversed_channels(image: Tensor) -> Tensor:
    """Return an image (3, h, w) with its channels in the other order."""
    return Image_(image.flip(-3))


def _policy(name: str, p: Preprocessing) -> Callable[[Image.Image], Image.Image]:
    """Make timm's automatic augmentation by its policy string, with the parameters that timm's own factory gives."""
    params: dict[str, object] = {
        "translate_const": int(p.image_size * 0.45),
        "img_mean": tuple(min(255, round(255 * value)) for value in p.mean),
        "interpolation": str_to_pil_interp(p.interpolation),
    }
    try:
        if name.startswith("rand"):
            return rand_augment_transform(name, params)
        if name.startswith("augmix"):
            return augment_and_mix_transform(name, {**params, "translate_pct": 0.3})
        return auto_augment_transform(name, params)
    except (AssertionError, ValueError, KeyError, IndexError):
        raise UserError(
            f"auto_augment is {name!r}, not a policy of timm; use, say, rand-m9-mstd0.5-inc1, augmix-m3-w3 or original"
        ) from None
