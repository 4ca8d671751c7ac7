"""What a generative model trains on: latents and text embeddings out of the cache, and images of a prior.

images ─┬─ cached? ─ VAE, text encoders ─ TensorCache ─ CachedImages ─┬─ examples
        └─ else ──── images and captions as they are ─────────────────┤
prior ────── made by the network before it is tuned ── WithPrior ─────┘
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from snella.console import working
from snella.data.cache import TensorCache, content_key, image_key
from snella.data.dataset import Transform
from snella.data.images import UnreadableImage, images_below
from snella.data.loading import Examples
from snella.data.readers.captioned import CaptionedImages
from snella.data.transforms.generation import generation_eval_transform
from snella.data.transforms.images import Preprocessing
from snella.diffusion.pipeline import Frozen
from snella.errors import UserError
from snella.models.backbone import fingerprint

FORMAT = "2"  # of what is cached
MOMENTS, MIRRORED = "moments", "moments_mirrored"  # of the latents of an image, and of the image turned left to right


@dataclass(frozen=True)
class CachedImages:
    """Examples of latents' moments, with text embeddings or labels, read from the cache; mirrored ones beside them."""

    images: CaptionedImages
    cache: TensorCache
    latents: tuple[dict[str, str], ...]  # for each image: MOMENTS, and MIRRORED where asked for -> key
    texts: Mapping[str, str]  # caption -> key
    sides: tuple[dict[str, Tensor], ...]  # original_size and crop_top_left of each image

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example: dict[str, Any] = {name: self._read(key)[MOMENTS] for name, key in self.latents[index].items()}
        example |= self.sides[index]
        if self.texts:
            example |= self._read(self.texts[self.images.captions[index]])
        if self.images.labels:
            example["label"] = self.images.labels[index]
        return example

    def _read(self, key: str) -> dict[str, Tensor]:
        tensors = self.cache.get(key)
        if tensors is None:
            raise UserError(f"the cache {self.cache.folder} lost a file while it was read; start again with --resume")
        return tensors


@dataclass(frozen=True)
class WithPrior:
    """Examples with one of the prior beside each, as "prior"; as many as the longer of the two has."""

    examples: Examples
    prior: Examples

    def __len__(self) -> int:
        return max(len(self.examples), len(self.prior))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.examples[index % len(self.examples)], "prior": self.prior[index % len(self.prior)]}


def drawn(transform: Transform) -> Transform:
    """Extend a transform for images to cached examples, plain or mirrored at random, and to a prior beside them."""
    return partial(_drawn, transform)


def _drawn(transform: Transform, example: dict[str, Any]) -> dict[str, Any]:
    example = dict(example)
    prior = example.pop("prior", None)
    if MOMENTS in example:
        mirrored = example.pop(MIRRORED, None)
        if mirrored is not None and torch.rand(()) < 0.5:
            example[MOMENTS] = mirrored
    else:
        example = transform(example)
    return example if prior is None else {**example, "prior": _drawn(transform, prior)}


def cache_examples(
    splits: Mapping[str, CaptionedImages],
    mirrored: Mapping[str, bool],
    frozen: Frozen,
    preprocessing: Preprocessing,
    cache: TensorCache,
    device: torch.device,
    console: Console,
) -> dict[str, CachedImages]:
    """Compute what is missing in the cache and return the examples that read it.

    Each of the frozen parts is on the device while it works, if it has to. Stopped in the middle, what is there stays.

    Raises:
        UserError: an image turns out to be unreadable, or the cache cannot be written.
    """
    transform = generation_eval_transform(preprocessing)
    vae_key = content_key("latents", FORMAT, fingerprint(frozen.vae), preprocessing.to_dict())
    latents: dict[str, list[dict[str, str]]] = {name: [] for name in splits}
    sides: dict[str, list[dict[str, Tensor]]] = {name: [] for name in splits}
    total = sum(map(len, splits.values()))
    with working(console, "encoding images") as progress:
        for name, images in splits.items():
            for index in range(len(images)):
                try:
                    example = images[index]
                except UnreadableImage as error:
                    raise UserError(f"an image cannot be read any more: {error}") from None
                picture: Any = example["image"]
                fitted = transform(example)
                keys = {MOMENTS: content_key(vae_key, image_key(picture))}
                if mirrored[name]:
                    keys[MIRRORED] = content_key(keys[MOMENTS], "mirrored")
                for kind, key in keys.items():
                    if key not in cache:
                        frozen.to(device, encoders=False)
                        pixels = fitted["image"].flip(-1) if kind == MIRRORED else fitted["image"]
                        cache.put(key, {MOMENTS: frozen.moments(pixels[None].to(device))[0]})
                latents[name].append(keys)
                sides[name].append({name: fitted[name] for name in ("original_size", "crop_top_left")})
                progress(sum(map(len, latents.values())), total)
    frozen.to("cpu")
    captions = [caption for images in splits.values() for caption in images.captions]
    texts = cache_texts(captions, frozen, cache, device, console) if frozen.family.encode is not None else {}
    return {
        name: CachedImages(images, cache, tuple(latents[name]), texts, tuple(sides[name]))
        for name, images in splits.items()
    }


def cache_texts(
    captions: list[str], frozen: Frozen, cache: TensorCache, device: torch.device, console: Console
) -> dict[str, str]:
    """Compute what is missing in the cache; return caption -> the key of its embeddings."""
    encoders = [fingerprint(part) for part in frozen.encoders]
    text_key = content_key("text", FORMAT, frozen.text_key, *encoders)
    keys = {caption: content_key(text_key, caption) for caption in captions}
    missing = [caption for caption, key in keys.items() if key not in cache]
    if missing:
        frozen.to(device, vae=False)
        with working(console, "encoding captions") as progress:
            for done, caption in enumerate(missing, 1):
                embeds = frozen.encode([caption], device)
                cache.put(keys[caption], {name: value[0] for name, value in embeds.items()})
                progress(done, len(missing))
        frozen.to("cpu", vae=False)
    return keys


def prior_files(folder: Path, most: int) -> tuple[str, ...]:
    """Return the first `most` images of a prior's folder, as many as there are."""
    names = images_below(str(folder)) if folder.is_dir() else []
    return tuple(os.path.join(folder, name) for name in names[:most])


def missing_numbers(folder: Path, most: int) -> list[int]:
    """Return the first `most` numbers for which a prior's folder has no image; they are the seeds too."""
    return list(islice((number for number in count() if not prior_file(folder, number).exists()), most))


def prior_file(folder: Path, number: int) -> Path:
    """Return the path of a prior's image with a seed."""
    return folder / f"prior-{number:04d}.png"
