"""Generation: the functions of a task's module (`tasks.interface`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from torch import nn

from snella.config.schema import DEFAULTS, TrainConfig, flag
from snella.data.dataset import ImageData
from snella.data.images import Progress
from snella.data.readers.captioned import CaptionedImages, is_captioned, read_captioned_data, read_captioned_test_data
from snella.data.summaries.captioned import describe_captioned
from snella.data.transforms.generation import generation_eval_transform, generation_train_transform
from snella.data.transforms.images import Augmentation, Preprocessing, Transform
from snella.diffusion.merged import save_merged_pipeline
from snella.diffusion.pipeline import (
    build_network,
    check_diffusers,
    check_pipeline_name,
    frozen_parts,
    image_unit,
    named_condition,
)
from snella.diffusion.sampling import SampleSettings
from snella.errors import UserError
from snella.models.backbone import BackboneSpec
from snella.tasks.generation.denoising import Generate
from snella.tasks.generation.examples import drawn
from snella.tasks.generation.prepare import check_asked

METRICS = {"denoising_loss": "denoising loss"}
RESIZE: str = "crop"
PICTURES: tuple[str, ...] = ("image",)
ONNX: bool = False
FLUX_LATENTS = 128  # side that its pipeline takes where nobody says; its config does not
MOST_PROMPTS = 8  # of a sample grid


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
    for name in ("prior_data", "prior_images", "prior_weight") if config.prior_prompt is None else ():
        if getattr(config, name) != getattr(DEFAULTS, name):
            raise UserError(f"{flag(name)} is read with --prior-prompt only: what the prior's images show")
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
    classes = about["classes"] if about["condition"] == "class" else ()
    found = read_captioned_test_data(data, classes=classes, prompt=about["prompt"], seed=seed, progress=progress)
    check_asked(about["condition"], found.splits["test"], data, "the run")
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
    size = spec.backbone.image_size or (own[0] if isinstance(own, (list, tuple)) else own or 0) * factor
    if not size:
        raise UserError(f"{spec.backbone.name} does not say at what size it makes images; give --image-size")
    if size % unit:
        below = max(unit, size // unit * unit)
        raise UserError(f"--image-size {size} is no multiple of {unit}, as {spec.backbone.name} needs it; use {below}")
    return Preprocessing(size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic", resize=RESIZE)


def train_transform(preprocessing: Preprocessing, config: TrainConfig) -> Transform:
    return drawn(generation_train_transform(preprocessing, _augmentation(config)))


def eval_transform(preprocessing: Preprocessing) -> Transform:
    return drawn(generation_eval_transform(preprocessing))


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
        squash=preprocessing.resize == "squash",
    )


def task_from(about: Mapping[str, Any]) -> Generate:
    return Generate(
        frozen_parts(about["backbone"]["name"]),
        about["classes"],
        sampling=SampleSettings(about["preprocessing"]["image_size"], **about["sampling"]),
        prompts=about["prompts"],
        squash=about["preprocessing"]["resize"] == "squash",
    )


def save_merged(model: nn.Module, folder: Path, about: Mapping[str, Any]) -> str:
    return save_merged_pipeline(model, folder, name=about["backbone"]["name"], classes=about["classes"])


def _prompts(config: TrainConfig, data: ImageData) -> tuple[str, ...]:
    """Of the sample grids."""
    condition = named_condition(config.backbone)
    if condition == "none":
        return ()
    if config.sample_prompts is not None:
        return config.sample_prompts
    if condition == "class":
        return data.classes[:MOST_PROMPTS]
    captions = [caption for split in ("val", "train") for caption in data.splits[split].captions]
    return tuple(dict.fromkeys(captions))[: MOST_PROMPTS // 2]


def _augmentation(config: TrainConfig) -> Augmentation:
    return Augmentation(name=config.augment, color_jitter=config.color_jitter)
