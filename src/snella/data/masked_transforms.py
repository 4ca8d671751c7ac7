"""Image and mask to tensors, together: what moves one moves the other.

An example is {"image": PIL, "mask": Mask (h, w)}. torchvision's v2 transforms know which is which: images are
interpolated, masks take the nearest pixel's class, and what changes colours leaves masks alone.

    resize    trained on                                     evaluated and predicted on
    squash    the whole image, both sides to s               the same
    crop      a random s x s part, the short side being s    the whole image, the short side being s
    none      a random s x s part                            the whole image
"""

from __future__ import annotations

from typing import Any

import torch
from timm.data.transforms import str_to_interp_mode
from torchvision import tv_tensors
from torchvision.transforms import v2

from snella.data.masks import IGNORE
from snella.data.transforms import Augmentation, Preprocessing, Transform
from snella.errors import UserError

MIN_CROP_AREA = 0.25  # of the image, for augmentation by crops: a smaller part hardly shows what it is of


def masked_train_transform(preprocessing: Preprocessing, augmentation: Augmentation) -> Transform:
    """`{"image", "mask"}` -> `{"image": float32 (3, s, s), "mask": int64 (s, s)}`.

    Augmentation "crop" takes a part of a quarter of the image or more and stretches it. Where the image is smaller than
    a crop the rest is 0, the mean colour, and does not count. Draws from torch's global generator.

    Raises:
        UserError: an automatic policy or random erasing, which would change the image and not the mask.
    """
    a = augmentation
    if a.auto_augment or a.random_erasing:
        raise UserError("auto_augment and random_erasing change images without their masks; leave them out")
    p = preprocessing
    size, mode = p.image_size, str_to_interp_mode(p.interpolation)
    steps: list[Any] = []
    if a.name == "crop":
        steps.append(v2.RandomResizedCrop(size, scale=(MIN_CROP_AREA, 1.0), interpolation=mode))
    elif p.resize == "squash":
        steps.append(v2.Resize((size, size), interpolation=mode))
    elif p.resize == "crop":
        steps.append(v2.Resize(size, interpolation=mode))
    if a.name != "none":
        steps.append(v2.RandomHorizontalFlip())
    if a.vertical_flip:
        steps.append(v2.RandomVerticalFlip(a.vertical_flip))
    if a.color_jitter:
        steps.append(v2.ColorJitter(a.color_jitter, a.color_jitter, a.color_jitter))
    steps += _to_tensor(p)
    if a.name != "crop" and p.resize != "squash":  # after normalisation, where 0 is the mean colour
        fill: Any = {tv_tensors.Image: 0, tv_tensors.Mask: IGNORE}
        steps.append(v2.RandomCrop(size, pad_if_needed=True, fill=fill))
    return v2.Compose([*steps, v2.ToDtype({tv_tensors.Mask: torch.int64, "others": None}), v2.ToPureTensor()])


def masked_eval_transform(preprocessing: Preprocessing) -> Transform:
    """`{"image", "mask"}` -> `{"image": float32 (3, h, w), "mask": int64 (H, W)}`: the mask as its file has it.

    The mask may be absent.
    """
    p = preprocessing
    mode = str_to_interp_mode(p.interpolation)
    geometry = {
        "squash": [v2.Resize((p.image_size, p.image_size), interpolation=mode)],
        "crop": [v2.Resize(p.image_size, interpolation=mode)],
        "none": [],
    }[p.resize]
    on_image = v2.Compose([*geometry, *_to_tensor(p), v2.ToPureTensor()])

    def transform(example: dict[str, Any]) -> dict[str, Any]:
        masks = {"mask": example["mask"].as_subclass(torch.Tensor).long()} if "mask" in example else {}
        return {**on_image({"image": example["image"]}), **masks}

    return transform


def _to_tensor(p: Preprocessing) -> list[Any]:
    return [
        v2.ToImage(),
        v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
        v2.Normalize(mean=list(p.mean), std=list(p.std)),
    ]
