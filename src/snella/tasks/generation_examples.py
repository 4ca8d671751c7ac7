"""What a generative model trains on: latents and text embeddings out of the cache, and images of a prior.

images ─┬─ cached? ─ VAE, text encoders ─ TensorCache ─ CachedImages ─┬─ examples
        └─ else ──── images and captions as they are ─────────────────┤
prior ────── made by the network before it is tuned ── WithPrior ─────┘
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from snella.data import CaptionedImages, Preprocessing, Transform
from snella.data.cache import TensorCache, content_key, image_key
from snella.data.generation_transforms import generation_eval_transform
from snella.data.images import UnreadableImage, image_files
from snella.errors import UserError
from snella.runfolder import writing
from snella.tasks.backbone import fingerprint
from snella.tasks.diffusion import Frozen

FORMAT = "1"  # of what is cached
FLIPPED = "_flipped"  # behind the names of what belongs to the mirrored image


@dataclass(frozen=True)
class CachedImages:
    """Examples of latents' moments, with text embeddings or labels, read from the cache; mirrored ones beside them."""

    images: CaptionedImages
    cache: TensorCache
    keys: tuple[tuple[str, ...], ...]  # for each image: plain, and mirrored
    texts: dict[str, str]  # caption -> key
    sides: tuple[dict[str, Tensor], ...]  # original_size and crop_top_left of each image

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example: dict[str, Any] = {}
        for key, suffix in zip(self.keys[index], ("", FLIPPED), strict=False):
            example |= {name + suffix: value for name, value in self._read(key).items()}
        example |= self.sides[index]
        if self.texts:
            example |= self._read(self.texts[self.images.captions[index]])
        if self.images.labels:
            example["label"] = self.images.labels[index]
        return example

    def _read(self, key: str) -> dict[str, Tensor]:
        found = self.cache.get(key)
        if found is None:
            raise UserError(f"the cache {self.cache.folder} lost a file while it was read; start again with --resume")
        return found


@dataclass(frozen=True)
class WithPrior:
    """Examples with one of the prior beside each, as "prior"; as many as the longer of the two has."""

    examples: Any
    prior: Any

    def __len__(self) -> int:
        return max(len(self.examples), len(self.prior))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            **self.examples[index % len(self.examples)],
            "prior": self.prior[index % len(self.prior)],
        }


def drawn(transform: Transform) -> Transform:
    """The transform for images, and for cached examples a choice of plain or mirrored; for a prior beside them too."""

    def choose(example: dict[str, Any]) -> dict[str, Any]:
        prior = example.pop("prior", None) if "prior" in example else None
        if "moments" in example:
            mirrored = bool(torch.rand(()) < 0.5)
            other = {name: example.pop(name + FLIPPED) for name in ("moments",) if name + FLIPPED in example}
            chosen = {**example, **(other if mirrored else {})}
        else:
            chosen = transform(example)
        return chosen if prior is None else {**chosen, "prior": choose(dict(prior))}

    return lambda example: choose(dict(example))


def cached(
    images: CaptionedImages,
    frozen: Frozen,
    preprocessing: Preprocessing,
    cache: TensorCache,
    *,
    mirrored: bool,
    device: torch.device,
    progress: Any,
) -> CachedImages:
    """Compute what is missing in the cache; the frozen parts are on the device while that lasts.

    Raises:
        UserError: an image turns out to be unreadable, or the cache cannot be written.
    """
    transform = generation_eval_transform(preprocessing)
    of_vae = content_key("latents", FORMAT, fingerprint(frozen.vae), preprocessing.to_dict())
    frozen.to(device)
    keys, sides = [], []
    for index in range(len(images)):
        try:
            example = images[index]
        except UnreadableImage as error:
            raise UserError(f"an image cannot be read any more: {error}") from None
        picture: Any = example["image"]
        fitted = transform(example)
        own = content_key(of_vae, image_key(picture))
        names = (own, content_key(own, "mirrored")) if mirrored else (own,)
        for name, pixels in zip(names, (fitted["image"], fitted["image"].flip(-1)), strict=False):
            if name not in cache:
                cache.put(name, {"moments": frozen.moments(pixels[None].to(device))[0]})
        keys.append(names)
        sides.append({name: fitted[name] for name in ("original_size", "crop_top_left")})
        progress(index + 1, len(images))
    texts: dict[str, str] = {}
    if frozen.family.encode is not None:
        encoders = [fingerprint(part) for part in frozen.encoders]
        for caption in dict.fromkeys(images.captions):
            texts[caption] = content_key("text", FORMAT, type(frozen.pipe).__name__, *encoders, caption)
            if texts[caption] not in cache:
                embeds = frozen.encode([caption], device)
                cache.put(texts[caption], {name: value[0] for name, value in embeds.items()})
    frozen.to("cpu")
    return CachedImages(images, cache, tuple(keys), texts, tuple(sides))


def prior_files(folder: Path, most: int) -> tuple[str, ...]:
    """The first `most` images of a prior's folder, as many as there are."""
    if not folder.is_dir() or not any(os.scandir(folder)):
        return ()
    return image_files([folder])[:most]


def free_numbers(folder: Path, most: int) -> list[int]:
    """The first `most` numbers for which a prior's folder has no image, which are their seeds too."""
    return list(islice((number for number in count() if not _prior_file(folder, number).exists()), most))


def add_prior_images(folder: Path, pictures: Mapping[int, Image.Image]) -> None:
    """Write pictures by their numbers: prior-0000.png."""
    for number, picture in pictures.items():
        with writing(_prior_file(folder, number)) as partial:
            picture.save(partial, "PNG")


def _prior_file(folder: Path, number: int) -> Path:
    return folder / f"prior-{number:04d}.png"
