"""Image to tensor for generation: the pixels that a model shall learn to make, and where they lie in the image.

Models that know of sizes and crops (SDXL) take `original_size` and `crop_top_left` as conditions.
"""

from __future__ import annotations

import torch
from PIL import Image
from timm.data.transforms import str_to_interp_mode
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from snella.data.dataset import Example, Transform
from snella.data.transforms.images import Augmentation, Preprocessing, check_square, to_tensor
from snella.errors import UserError


def generation_eval_transform(p: Preprocessing) -> Transform:
    """Make the transform to the resized image's centre square.

    `{"image": PIL}` -> `{"image": float32 (3, s, s), "original_size": int64 (2,), "crop_top_left": int64 (2,)}`,
    other keys as they are. original_size: height and width of the image as it came; crop_top_left: in pixels of the
    resized image. "squash" resizes both sides to s and cuts nothing; "crop" the short side to s.

    Raises:
        UserError: resize is "none".
    """
    return generation_train_transform(p, Augmentation("none"))


def generation_train_transform(p: Preprocessing, augmentation: Augmentation) -> Transform:
    """Make the transform as `generation_eval_transform`, with augmentation. It draws from torch's global generator.

    "flip" and "crop" turn half of the images left to right, before they are cropped, so that crop_top_left fits what
    is seen; "crop" takes a random square of the resized image in place of the centre, at the same scale.

    Raises:
        UserError: resize is "none"; an augmentation that a model would learn to draw.
    """
    check_square(p)
    for name in ("auto_augment", "random_erasing"):
        if getattr(augmentation, name):
            raise UserError(f"{name} changes images into what no model shall generate; leave it out for generation")
    if augmentation.min_crop_area is not None:
        raise UserError("min_crop_area changes the scale, which crops for generation keep; leave it out")
    return _Square(p, augmentation)


class _Square:
    def __init__(self, p: Preprocessing, a: Augmentation) -> None:
        self.size = p.image_size
        size = p.image_size if p.resize == "crop" else (p.image_size, p.image_size)
        self.resize = v2.Resize(size, interpolation=str_to_interp_mode(p.interpolation))
        self.flips: list[v2.Transform] = [v2.RandomHorizontalFlip()] if a.name != "none" else []
        if a.vertical_flip:
            self.flips.append(v2.RandomVerticalFlip(a.vertical_flip))
        self.random_crop = a.name == "crop"
        strength = a.color_jitter
        jitter = [v2.ColorJitter(strength, strength, strength)] if strength else []
        self.finish = v2.Compose([*jitter, *to_tensor(p)])

    def __call__(self, example: Example) -> Example:
        width, height = example["image"].size
        image = self.resize(example["image"])
        for flip in self.flips:
            image = flip(image)
        top, left = self._corner(image)
        return {
            **example,
            "image": self.finish(functional.crop(image, top, left, self.size, self.size)),
            "original_size": torch.tensor([height, width]),
            "crop_top_left": torch.tensor([top, left]),
        }

    def _corner(self, image: Image.Image) -> tuple[int, int]:
        spare = image.height - self.size, image.width - self.size
        if self.random_crop:
            return int(torch.randint(spare[0] + 1, ())), int(torch.randint(spare[1] + 1, ()))
        return round(spare[0] / 2), round(spare[1] / 2)  # as torchvision's CenterCrop
