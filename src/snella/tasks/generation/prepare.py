"""From data to what a generative model trains on: checks, the prior's images, the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from snella.config.fields import flag
from snella.config.schema import TrainConfig
from snella.console import print_line, working
from snella.data.cache import TensorCache, content_key
from snella.data.dataset import ImageData
from snella.data.loading import Examples
from snella.data.readers.captioned import CaptionedImages
from snella.data.transforms.images import Preprocessing
from snella.diffusion.pipeline import Frozen, condition_of, has_safety_checker
from snella.diffusion.sampling import SampleSettings, sample
from snella.errors import UserError
from snella.files import cache_folder, save_picture
from snella.models.backbone import fingerprint
from snella.tasks.generation.examples import (
    WithPrior,
    cache_examples,
    cache_texts,
    missing_numbers,
    prior_file,
    prior_files,
)

PRIOR = "prior"  # beside the names of splits


@dataclass(frozen=True)
class PreparedData:
    """Examples of each split, and the embeddings of the empty caption where captions are dropped."""

    splits: Mapping[str, Examples]
    empty: dict[str, Tensor] | None


def prepare(
    frozen: Frozen,
    sampling: SampleSettings,
    network: nn.Module,
    data: ImageData,
    preprocessing: Preprocessing,
    config: TrainConfig,
    device: torch.device,
    console: Console,
) -> PreparedData:
    """Check that data and network fit, make the prior's images, fill the cache. The network is not tuned yet.

    Raises:
        UserError: captions for a model that knows classes, or none for one that needs them; an unreadable image.
    """
    _check(network, data, config, console)
    images: dict[str, CaptionedImages] = dict(data.splits)
    empty = None
    if config.generate.prior_prompt is not None:
        if config.estimate:  # any images take the same memory
            images[PRIOR] = replace(images["train"], captions=(config.generate.prior_prompt,) * len(images["train"]))
        else:
            images[PRIOR] = _prior(frozen, sampling, network, config, device, console)
    if frozen.family.encode is not None:
        _report_truncated(frozen, images, console)
    splits: dict[str, Examples] = dict(images)
    still = config.data.augment != "crop" and not config.data.color_jitter  # the pixels are the same at each epoch
    if config.generate.cache and frozen.vae is not None and still:
        cache = TensorCache(cache_folder())
        mirrored = {name: name in ("train", PRIOR) and config.data.augment != "none" for name in images}
        splits = dict(cache_examples(images, mirrored, frozen, preprocessing, cache, device, console))
        if config.generate.caption_dropout and frozen.family.encode is not None:
            (key,) = cache_texts([""], frozen, cache, device, console).values()
            empty = {name: value[None] for name, value in (cache.get(key) or {}).items()}
    if prior := splits.pop(PRIOR, None):
        splits["train"] = WithPrior(splits["train"], prior)
    return PreparedData(splits, empty)


def _check(network: nn.Module, data: ImageData, config: TrainConfig, console: Console) -> None:
    asked, name = condition_of(network), config.model.backbone
    train: CaptionedImages = data.splits["train"]
    check_asked(asked, train, data.root, name)
    if asked == "none" and config.generate.sample_prompts:
        raise UserError(f"--sample-prompts: {name} is unconditional; leave it out")
    if asked == "none" and (train.captions or train.labels):
        print_line(console, f"  {name} is unconditional: captions and classes are not used")
    if asked != "text":
        for field in ("caption_dropout", "prior_prompt"):
            if config.value(field):
                raise UserError(f"{flag(field)} needs a text-to-image pipeline, and {name} is not one; leave it out")
    if has_safety_checker(name):
        print_line(console, f"  the safety checker of {name} is not loaded: generated images are not checked")


def check_asked(condition: str, images: CaptionedImages, data: str, model: str) -> None:
    """Raise UserError for images without the captions or classes that a model is asked for."""
    if condition == "text" and not images.captions:
        raise UserError(f"{data} has no captions, which {model} needs; add captions, or train with --prompt")
    if condition == "class" and not images.labels:
        raise UserError(f"{data} has no class folders, and {model} needs classes; sort its images into some")


def _report_truncated(frozen: Frozen, splits: Mapping[str, CaptionedImages], console: Console) -> None:
    """Say which captions are longer than the text encoders read."""
    captions = dict.fromkeys(caption for images in splits.values() for caption in images.captions)
    unread = {caption: text for caption in captions if (text := frozen.unread_text(caption))}
    if unread:
        caption, text = next(iter(unread.items()))
        count = f"{len(unread)} captions are" if len(unread) > 1 else "1 caption is"
        print_line(console, f"  {count} too long: of {caption[:40]!r}... the text encoder does not read {text!r}")


def _prior(
    frozen: Frozen,
    sampling: SampleSettings,
    network: nn.Module,
    config: TrainConfig,
    device: torch.device,
    console: Console,
) -> CaptionedImages:
    """Return the prior's images; the network as it is makes those that lack. Stopped, what is made stays."""
    prompt, count = str(config.generate.prior_prompt), config.generate.prior_images
    if config.generate.prior_data is not None:
        folder = Path(config.generate.prior_data).expanduser()
    else:
        folder = cache_folder() / PRIOR / _prior_key(frozen, sampling, network, prompt)
    there = len(prior_files(folder, count))
    if there < count:
        print_line(console, f"  generating {count - there} images of {prompt!r} into {folder}")
        seeds = missing_numbers(folder, count - there)
        with working(console, "generating images") as progress:
            pictures = sample(frozen, network.to(device), [prompt] * len(seeds), seeds, sampling)
            for done, (seed, picture) in enumerate(zip(seeds, pictures, strict=True), 1):
                save_picture(picture, prior_file(folder, seed), shared=True)
                progress(done, len(seeds))
    files = prior_files(folder, count)
    return CaptionedImages(files, (prompt,) * len(files))


def _prior_key(frozen: Frozen, sampling: SampleSettings, network: nn.Module, prompt: str) -> str:
    """Return a key of all that decides the prior's images."""
    parts = [network, *frozen.encoders, *(() if frozen.vae is None else (frozen.vae,))]
    scheduler = {name: str(value) for name, value in frozen.pipe.scheduler.config.items()}
    settings = {name: value for name, value in asdict(sampling).items() if name != "batch_size"}
    return content_key(*map(fingerprint, parts), frozen.text_key, scheduler, settings, prompt)[:16]
