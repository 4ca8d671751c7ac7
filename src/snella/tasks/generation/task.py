"""Generation: its data, its models, and what is kept of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from rich.console import RenderableType
from torch import nn

from snella.config.fields import flag
from snella.config.schema import DEFAULTS, TrainConfig
from snella.data.dataset import ImageData, Transform
from snella.data.folders.choices import Choices
from snella.data.images import Progress
from snella.data.readers.captioned import CaptionedImages, is_captioned, read_captioned_data, read_captioned_test_data
from snella.data.readers.captioned_report import describe_captioned
from snella.data.transforms.generation import generation_eval_transform, generation_train_transform
from snella.data.transforms.images import Augmentation, Preprocessing
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
from snella.json_files import From, Record
from snella.models.backbone import BackboneSpec
from snella.tasks.generation.examples import drawn
from snella.tasks.generation.fidelity import check_features
from snella.tasks.generation.learner import Generate
from snella.tasks.generation.prepare import check_asked
from snella.tasks.interface import LoraPlace, Saved, Task, division_of

FLUX_LATENTS = 128  # side that its pipeline takes where nobody says; its config does not
MOST_PROMPTS = 8  # of a sample grid

CaptionedData = ImageData[CaptionedImages]


@dataclass(frozen=True)
class GeneratorSpec:
    """What is needed to build the same network again."""

    backbone: BackboneSpec
    adapt_convs: bool = False


class GenerationTask(Task[GeneratorSpec, CaptionedData, CaptionedImages]):
    """Images made from noise."""

    about: ClassVar[Mapping[str, Any]] = {
        "adapt_convs": bool,
        "condition": Literal["text", "class", "none"],
        "prompt": str | None,
        "prompts": list[str],
        "sampling": Record({"steps": Annotated[int, From(1)], "guidance": float | None}, others=None),
    }
    metrics: ClassVar[dict[str, str]] = {"denoising_loss": "denoising loss"}
    resize = "crop"
    pictures = ("image",)
    generates = True

    def check(self, config: TrainConfig) -> None:
        """Refuse a backbone, a package or flags that do not go together. Raises UserError."""
        model, own = config.model, config.generate
        check_diffusers()
        if model.backbone == DEFAULTS.model.backbone:
            raise UserError(
                "to generate, --backbone names a diffusers pipeline (OWNER/NAME or a folder), or small_unet; give it"
            )
        if model.checkpoint is not None:
            raise UserError(
                "--checkpoint does not go with --task generate; give the folder of a pipeline as --backbone"
            )
        if config.data.resize == "none":
            raise UserError("--resize none gives images of different sizes; use crop or squash to generate")
        for name in ("prior_data", "prior_images", "prior_weight") if own.prior_prompt is None else ():
            if config.value(name) != DEFAULTS.value(name):
                raise UserError(f"{flag(name)} is read with --prior-prompt only: what the prior's images show")
        if own.prior_data is not None and Path(own.prior_data).expanduser().is_file():
            raise UserError(f"--prior-data {own.prior_data} is a file; give a folder, which may be a new one")
        check_pipeline_name(model.backbone)
        generation_train_transform(Preprocessing(64, resize=self.resize), _augmentation(config))

    def check_features(self, name: str) -> None:
        check_features(name)

    def recognises(self, data: str) -> bool:
        return is_captioned(data)

    def read(self, config: TrainConfig, progress: Progress | None) -> CaptionedData:
        data = config.data
        assert data.source is not None  # validated
        return read_captioned_data(
            data.source,
            seed=config.seed,
            prompt=config.generate.prompt,
            choices=Choices(data.classes),
            division=division_of(config),
            val_fraction=data.val_fraction,
            test_fraction=data.test_fraction,
            progress=progress,
        )

    def read_test(self, config: TrainConfig, saved: Saved, progress: Progress | None) -> CaptionedData:
        """Read the test split. Raises UserError where the data does not say what the model is asked for."""
        source = config.data.source
        assert source is not None
        found = read_captioned_test_data(
            source,
            classes=saved["classes"] if saved["condition"] == "class" else (),
            prompt=saved["prompt"],
            seed=config.seed,
            choices=Choices(config.data.classes),
            progress=progress,
        )
        check_asked(saved["condition"], found.splits["test"], source, "the run")
        return found

    def describe(self, data: CaptionedData) -> RenderableType:
        return describe_captioned(data)

    def subset(self, images: CaptionedImages, count: int) -> CaptionedImages:
        """Return `count` images, spread evenly."""
        chosen = sorted({i * len(images) // count for i in range(count)}) if len(images) > count else range(len(images))
        return replace(
            images,
            paths=tuple(images.paths[i] for i in chosen),
            captions=tuple(images.captions[i] for i in chosen) if images.captions else (),
            labels=tuple(images.labels[i] for i in chosen) if images.labels else (),
        )

    def make_spec(self, config: TrainConfig, num_classes: int) -> GeneratorSpec:
        backbone, own = BackboneSpec.of(config.model, config.seed, num_classes), config.generate
        return GeneratorSpec(backbone, own.adapt_convs)

    def spec_from(self, saved: Saved) -> GeneratorSpec:
        return GeneratorSpec(BackboneSpec(**saved["backbone"]), saved["adapt_convs"])

    def build(self, spec: GeneratorSpec) -> nn.Module:
        return build_network(spec.backbone)

    def preprocessing(self, spec: GeneratorSpec, model: nn.Module) -> Preprocessing:
        """Return pixels in [-1, 1] at the size asked for, or at the network's own.

        Raises:
            UserError: the network cannot make images of that size.
        """
        network: Any = model
        factor, unit = image_unit(spec.backbone.name, network)
        own = network.config.get("sample_size", FLUX_LATENTS)
        size = spec.backbone.image_size or (own[0] if isinstance(own, (list, tuple)) else own or 0) * factor
        if not size:
            raise UserError(f"{spec.backbone.name} does not say at what size it makes images; give --image-size")
        if size % unit:
            below = max(unit, size // unit * unit)
            raise UserError(
                f"--image-size {size} is not a multiple of {unit}, as {spec.backbone.name} needs it; use {below}"
            )
        return Preprocessing(
            size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic", resize=self.resize
        )

    def train_transform(self, preprocessing: Preprocessing, config: TrainConfig) -> Transform:
        return drawn(generation_train_transform(preprocessing, _augmentation(config)))

    def eval_transform(self, preprocessing: Preprocessing) -> Transform:
        return drawn(generation_eval_transform(preprocessing))

    def facts(self, config: TrainConfig, data: CaptionedData) -> dict[str, Any]:
        """Return the prompt, and what samples are made of."""
        own = config.generate
        return {
            "condition": named_condition(config.model.backbone),
            "prompt": own.prompt,
            "prompts": list(_prompts(config, data)),
            "sampling": {"steps": own.sample_steps, "guidance": own.guidance},
        }

    def learner(self, config: TrainConfig, data: CaptionedData, preprocessing: Preprocessing) -> Generate:
        own = config.generate
        return Generate(
            frozen_parts(config.model.backbone),
            data.classes,
            sampling=SampleSettings(preprocessing.image_size, own.sample_steps, own.guidance),
            prompts=_prompts(config, data),
            samples=own.samples,
            snr_gamma=own.snr_gamma,
            noise_offset=own.noise_offset,
            caption_dropout=own.caption_dropout,
            prior_weight=own.prior_weight,
            squash=preprocessing.resize == "squash",
        )

    def learner_from(self, saved: Saved) -> Generate:
        return Generate(
            frozen_parts(saved["backbone"]["name"]),
            saved["classes"],
            sampling=SampleSettings(saved["preprocessing"]["image_size"], **saved["sampling"]),
            prompts=saved["prompts"],
            squash=saved["preprocessing"]["resize"] == "squash",
        )

    def save_merged(self, model: nn.Module, folder: Path, saved: Saved) -> str:
        return save_merged_pipeline(model, folder, name=saved["backbone"]["name"], classes=saved["classes"])

    def lora_place(self, saved: Saved, model: nn.Module) -> LoraPlace:
        name = saved["backbone"]["name"]
        frozen = frozen_parts(name)
        pipe, part = frozen.pipe, frozen.family.network
        loads = hasattr(pipe, "load_lora_weights")
        return LoraPlace(f'diffusers.{type(pipe).__name__}.from_pretrained("{name}").{part}', "", part if loads else "")


def _prompts(config: TrainConfig, data: CaptionedData) -> tuple[str, ...]:
    """Return the prompts of the sample grids."""
    condition = named_condition(config.model.backbone)
    if condition == "none":
        return ()
    if config.generate.sample_prompts is not None:
        return config.generate.sample_prompts
    if condition == "class":
        return data.classes[:MOST_PROMPTS]
    captions = [caption for split in ("val", "train") for caption in data.splits[split].captions]
    return tuple(dict.fromkeys(captions))[: MOST_PROMPTS // 2]


def _augmentation(config: TrainConfig) -> Augmentation:
    return Augmentation(name=config.data.augment, color_jitter=config.data.color_jitter)


GENERATION = GenerationTask()
