"""Generation: the functions of a task's module (`tasks.interface`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from rich.console import Console, RenderableType
from torch import nn

from snella.config import DEFAULTS, TrainConfig
from snella.console import plain, working
from snella.data import Augmentation, CaptionedImages, ImageData, Preprocessing, Transform
from snella.data.cache import TensorCache, cache_folder, content_key
from snella.data.caption_summary import describe_captioned
from snella.data.captions import is_captioned, read_captioned_data, read_captioned_test_data
from snella.data.generation_transforms import generation_eval_transform, generation_train_transform
from snella.data.images import Progress
from snella.errors import UserError
from snella.report.samples import before_after_figure, grid
from snella.runfolder import writing
from snella.tasks.backbone import BackboneSpec, fingerprint
from snella.tasks.denoising import Generate
from snella.tasks.diffusion import (
    Frozen,
    build_network,
    check_diffusers,
    check_pipeline_name,
    condition_of,
    frozen_parts,
    has_safety_checker,
    image_unit,
    named_condition,
)
from snella.tasks.generation_examples import WithPrior, add_prior_images, cached, drawn, free_numbers, prior_files
from snella.tasks.merged_pipeline import save_merged_pipeline
from snella.tasks.sampling import SampleSettings, sample

METRICS = {"denoising_loss": "denoising loss"}
RESIZE: str = "crop"
PICTURES: tuple[str, ...] = ("image",)
ONNX: bool = False
FLUX_LATENTS = 128  # side that its pipeline takes where nobody says; its config does not
MOST_PROMPTS = 8  # of a sample grid
GRIDS = 5  # sample grids of a run, where their number is not given
BEFORE, AFTER = "before", "after"  # stages of the sample grids


@dataclass(frozen=True)
class GeneratorSpec:
    """What is needed to build the same network again."""

    backbone: BackboneSpec
    adapt_convs: bool = False
    gradient_checkpointing: bool = False


def check(config: TrainConfig) -> None:
    """Refuse a backbone, a package or flags that do not go together, before anything is read or built.

    Raises:
        UserError: one line.
    """
    check_diffusers()
    if config.backbone == DEFAULTS.backbone:
        raise UserError(
            "to generate, --backbone names a diffusers pipeline (OWNER/NAME or a folder), or small_unet; give it"
        )
    if config.checkpoint is not None:
        raise UserError("--checkpoint does not go with --task generate; give the folder of a pipeline as --backbone")
    if config.resize == "none":
        raise UserError("--resize none gives images of different sizes; use crop or squash to generate")
    if config.prior_data is not None and config.prior_prompt is None:
        raise UserError("--prior-data needs --prior-prompt: what its images show")
    if config.prior_data is not None and Path(config.prior_data).expanduser().is_file():
        raise UserError(f"--prior-data {config.prior_data} is a file; give a folder, which may be a new one")
    check_pipeline_name(config.backbone)
    generation_train_transform(Preprocessing(64, resize=RESIZE), _augmentation(config))


recognised = is_captioned


def read(config: TrainConfig, progress: Progress | None) -> ImageData:
    assert config.data is not None  # validated
    fractions = {"val_fraction": config.val_fraction, "test_fraction": config.test_fraction}
    return read_captioned_data(config.data, seed=config.seed, prompt=config.prompt, progress=progress, **fractions)


def read_test(data: str, about: Mapping[str, Any], *, seed: int, progress: Progress | None) -> ImageData:
    """Raises UserError where the data does not say what the model is asked for."""
    found = read_captioned_test_data(
        data, classes=about["classes"], prompt=about["prompt"], seed=seed, progress=progress
    )
    _check_asked(about["condition"], found.splits["test"], data, "the run")
    return found


def describe(data: str, *, seed: int, progress: Progress | None) -> RenderableType:
    return describe_captioned(read_captioned_data(data, seed=seed, progress=progress))


def few(images: CaptionedImages, count: int) -> CaptionedImages:
    """`count` images, spread evenly."""
    chosen = sorted({i * len(images) // count for i in range(count)}) if len(images) > count else range(len(images))
    return replace(
        images,
        paths=tuple(images.paths[i] for i in chosen),
        captions=tuple(images.captions[i] for i in chosen) if images.captions else (),
        labels=tuple(images.labels[i] for i in chosen) if images.labels else (),
    )


def make_spec(config: TrainConfig, num_classes: int) -> GeneratorSpec:
    return GeneratorSpec(BackboneSpec.of(config, num_classes), config.adapt_convs, config.gradient_checkpointing)


def spec_from(about: Mapping[str, Any]) -> GeneratorSpec:
    return GeneratorSpec(BackboneSpec(**about["backbone"]), about["adapt_convs"])


def build(spec: GeneratorSpec) -> nn.Module:
    network: Any = build_network(spec.backbone)
    if spec.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    return network


def preprocessing(spec: GeneratorSpec, model: Any) -> Preprocessing:
    """Pixels in [-1, 1] at the size asked for, or at the network's own. Raises UserError where it cannot make that."""
    factor, unit = image_unit(spec.backbone.name, model)
    own = model.config.get("sample_size", FLUX_LATENTS)
    size = spec.backbone.image_size or (own if isinstance(own, int) else own[0]) * factor
    if size % unit:
        below = max(unit, size // unit * unit)
        raise UserError(f"--image-size {size} is no multiple of {unit}, as {spec.backbone.name} needs it; use {below}")
    return Preprocessing(size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic", resize=RESIZE)


def train_transform(preprocessing: Preprocessing, config: TrainConfig) -> Transform:
    return drawn(generation_train_transform(preprocessing, _augmentation(config)))


def eval_transform(preprocessing: Preprocessing) -> Transform:
    transform = generation_eval_transform(preprocessing)
    return lambda example: example if "moments" in example else transform(example)


def about(config: TrainConfig, data: ImageData) -> dict[str, Any]:
    """The prompt, and what samples are made of."""
    return {
        "condition": named_condition(config.backbone),
        "prompt": config.prompt,
        "prompts": list(_prompts(config, data)),
        "sampling": {"steps": config.sample_steps, "guidance": config.guidance},
    }


def make_task(config: TrainConfig, data: ImageData, preprocessing: Preprocessing) -> Generate:
    return Generate(
        frozen_parts(config.backbone),
        data.classes,
        sampling=SampleSettings(preprocessing.image_size, config.sample_steps, config.guidance),
        prompts=_prompts(config, data),
        samples=config.samples,
        snr_gamma=config.snr_gamma,
        noise_offset=config.noise_offset,
        caption_dropout=config.caption_dropout,
        prior_weight=config.prior_weight,
    )


def task_from(about: Mapping[str, Any]) -> Generate:
    return Generate(
        frozen_parts(about["backbone"]["name"]),
        about["classes"],
        sampling=SampleSettings(about["preprocessing"]["image_size"], **about["sampling"]),
        prompts=about["prompts"],
    )


def examples(
    task: Generate,
    model: nn.Module,
    data: ImageData,
    preprocessing: Preprocessing,
    config: TrainConfig,
    device: torch.device,
    console: Console,
) -> dict[str, Any]:
    """What the batches of each split are made of; `model` is not tuned yet.

    Raises:
        UserError: captions for a model that knows classes, or none for one that needs them; an unreadable image.
    """
    asked = condition_of(model)
    train: CaptionedImages = data.splits["train"]
    _check_asked(asked, train, data.root, config.backbone)
    unknown = [name for name in task.prompts if asked == "class" and name not in data.classes]
    if unknown:
        raise UserError(f"--sample-prompts {unknown[0]} is none of the classes: {', '.join(data.classes)}")
    if asked == "none" and config.sample_prompts:
        raise UserError(f"--sample-prompts: {config.backbone} is unconditional; leave it out")
    if asked == "none" and (train.captions or train.labels):
        plain(console, f"  {config.backbone} is unconditional: captions and classes are not looked at")
    if has_safety_checker(config.backbone):
        plain(console, f"  the safety checker of {config.backbone} is not loaded: generated images are not checked")
    if asked == "text":
        _tell_cuts(task.frozen, data, console)
    splits: dict[str, Any] = dict(data.splits)
    if config.prior_prompt is not None:
        prior = _prior(task, model, config, device, console)
    else:
        prior = None
    if config.cache and task.frozen.vae is not None and config.augment != "crop":
        cache = TensorCache(cache_folder())
        options = {"frozen": task.frozen, "preprocessing": preprocessing, "cache": cache, "device": device}
        with working(console, "encoding images") as progress:
            for name, images in splits.items():
                mirrored = name == "train" and config.augment != "none"
                splits[name] = cached(images, **options, mirrored=mirrored, progress=progress)
            if prior is not None:
                prior = cached(prior, **options, mirrored=config.augment != "none", progress=progress)
    if prior is not None:
        splits["train"] = WithPrior(splits["train"], prior)
    return splits


def show(task: Generate, model: nn.Module, data: ImageData, folder: Path, stage: str) -> None:
    """Write RUN/samples/STAGE.png, a row for each prompt, and at the end before-after.png.

    Seeds and prompts are the same at all stages.
    """
    prompts: list[str | None] = list(task.prompts) or [None]
    asked = [prompt for prompt in prompts for _ in range(task.samples)]
    pictures = task.generate(model, asked, list(range(task.samples)) * len(prompts))
    samples = folder / "samples"
    with writing(samples / f"{stage}.png") as partial_file:
        grid(pictures, task.samples).save(partial_file, "PNG")
    single = samples / stage
    if stage in (BEFORE, AFTER):
        for i, picture in enumerate(pictures):
            with writing(single / f"{i:02d}.png") as partial_file:
                picture.save(partial_file, "PNG")
    if stage == AFTER and (samples / BEFORE).is_dir():
        before = [Image.open(samples / BEFORE / f"{i:02d}.png").convert("RGB") for i in range(len(pictures))]
        titles = [prompt or "" for prompt in prompts]
        real = _references(data, prompts, task.samples, task.sampling.size)
        before_after_figure(before, pictures, real, folder / "before-after.png", titles=titles)


def shows_after(config: TrainConfig, epoch: int) -> bool:
    """Whether a sample grid is due at the end of an epoch."""
    every = -(-config.epochs // GRIDS) if config.sample_every is None else config.sample_every
    return bool(every) and epoch % every == 0


def save_merged(model: nn.Module, folder: Path, about: Mapping[str, Any]) -> str:
    return save_merged_pipeline(model, folder, name=about["backbone"]["name"], classes=about["classes"])


def _references(data: ImageData, prompts: Sequence[str | None], count: int, size: int) -> list[Image.Image]:
    """`count` real images for each prompt, of its class or with its caption where there are such, as squares."""
    images: CaptionedImages = data.splits["test"]
    found = []
    for prompt in prompts:
        chosen = [
            i
            for i in range(len(images))
            if (images.labels and data.classes[images.labels[i]] == prompt)
            or (images.captions and images.captions[i] == prompt)
        ] or list(range(len(images)))
        for k in range(count):
            picture: Any = images[chosen[k * len(chosen) // count % len(chosen)]]["image"]
            found.append(ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC))
    return found


def _prompts(config: TrainConfig, data: ImageData) -> tuple[str, ...]:
    """Of the sample grids."""
    if config.sample_prompts is not None:
        return config.sample_prompts
    condition = named_condition(config.backbone)
    if condition != "text":
        return data.classes[:MOST_PROMPTS] if condition == "class" else ()
    captions = [caption for split in ("val", "train") for caption in data.splits[split].captions]
    return tuple(dict.fromkeys(captions))[: MOST_PROMPTS // 2]


def _check_asked(condition: str, images: CaptionedImages, data: str, model: str) -> None:
    """Refuse images without the captions or classes that a model is asked for."""
    if condition == "text" and not images.captions:
        raise UserError(f"{data} has no captions, which {model} needs; add captions, or train with --prompt")
    if condition == "class" and not images.labels:
        raise UserError(f"{data} has no class folders, and {model} needs classes; sort its images into some")


def _tell_cuts(frozen: Frozen, data: ImageData, console: Console) -> None:
    """Say which captions are longer than the text encoders read."""
    captions = dict.fromkeys(caption for images in data.splits.values() for caption in images.captions)
    cuts = {caption: cut for caption in captions if (cut := frozen.cut(caption))}
    if cuts:
        caption, cut = next(iter(cuts.items()))
        count = f"{len(cuts)} captions are" if len(cuts) > 1 else "1 caption is"
        plain(console, f"  {count} too long: of {caption[:40]!r}... the text encoder does not read {cut!r}")


def _prior(
    task: Generate, model: nn.Module, config: TrainConfig, device: torch.device, console: Console
) -> CaptionedImages:
    """Images of the prior, made by the network as it is where there are too few."""
    assert config.prior_prompt is not None
    if task.frozen.family.encode is None:
        raise UserError(f"--prior-prompt needs a text-to-image pipeline, and {config.backbone} is none; leave it out")
    if config.prior_data is not None:
        folder = Path(config.prior_data).expanduser()
    else:
        sampling = asdict(task.sampling)
        folder = cache_folder() / "prior" / content_key(fingerprint(model), config.prior_prompt, sampling)[:16]
    there = prior_files(folder, config.prior_images)
    missing = config.prior_images - len(there)
    if missing:
        plain(console, f"  generating {missing} images of {config.prior_prompt!r} into {folder}")
        model.to(device)
        step = task.sampling.batch_size
        with working(console, "generating images") as progress:
            numbers = free_numbers(folder, missing)
            for start in range(0, missing, step):
                seeds = numbers[start : start + step]
                pictures = sample(
                    task.frozen, model, [config.prior_prompt] * len(seeds), seeds, task.sampling, keep_encoders=True
                )
                add_prior_images(folder, dict(zip(seeds, pictures, strict=True)))
                progress(start + len(seeds), missing)
        task.frozen.to("cpu")
        there = prior_files(folder, config.prior_images)
    return CaptionedImages(there, (config.prior_prompt,) * len(there))


def _augmentation(config: TrainConfig) -> Augmentation:
    return Augmentation(name=config.augment, color_jitter=config.color_jitter)
