"""Semantic segmentation: its data, its models, and what is kept of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import RenderableType
from torch import nn

from snella.config.schema import TrainConfig
from snella.data.dataset import Transform, inverse_frequency
from snella.data.images import Progress
from snella.data.masks.files import RGB, MaskCode, MaskData, MaskedImages
from snella.data.readers.masked import is_masked, read_masked_data, read_masked_test_data
from snella.data.readers.masked_report import describe_masked
from snella.data.transforms.images import Augmentation, Preprocessing
from snella.data.transforms.masked import masked_eval_transform, masked_train_transform
from snella.errors import UserError
from snella.models.backbone import HF, BackboneSpec
from snella.models.export import base_hint
from snella.segmenter.build import (
    Segmenter,
    SegmenterSpec,
    build_segmenter,
    check_segmenter,
    loading_hint_segmenter,
    preprocessing_of_segmenter,
    save_merged_segmenter,
)
from snella.segmenter.plain import PlainSegmentation
from snella.segmenter.transformers import SEGMENTER
from snella.tasks.interface import LoraPlace, Saved, Task, division_of
from snella.tasks.segmentation.learner import Segment, dice_loss, spread


class SegmentationTask(Task[SegmenterSpec, MaskData, MaskedImages]):
    """One class for each pixel."""

    about: ClassVar[Mapping[str, Any]] = {
        "decoder": str | None,
        "adapt_decoder": bool,
        "masks": MaskCode,
        "palette": list[RGB],
    }
    metrics: ClassVar[dict[str, str]] = {"miou": "mIoU", "mdice": "mDice", "pixel_accuracy": "pixel accuracy"}
    ensembles = True
    resize = "squash"
    pictures = ("mask", "overlay")
    exports_onnx = True

    def check(self, config: TrainConfig) -> None:
        """Refuse an unknown backbone, decoder or missing package. Raises UserError."""
        if "dice" in config.segment.loss:
            dice_loss()
        check_segmenter(self.make_spec(config, num_classes=2))

    def recognises(self, data: str) -> bool:
        return is_masked(data)

    def read(self, config: TrainConfig, progress: Progress | None) -> MaskData:
        data = config.data
        assert data.source is not None  # validated
        return read_masked_data(
            data.source,
            seed=config.seed,
            **data.fractions,
            ignore_index=config.segment.ignore_index,
            needs_test=config.test != "none",
            division=division_of(config),
            progress=progress,
        )

    def read_test(self, config: TrainConfig, saved: Saved, progress: Progress | None) -> MaskData:
        source = config.data.source
        assert source is not None
        code, palette = MaskCode.from_dict(saved["masks"]), [tuple(color) for color in saved["palette"]]
        return read_masked_test_data(
            source, classes=saved["classes"], code=code, palette=palette, seed=config.seed, progress=progress
        )

    def describe(self, data: MaskData) -> RenderableType:
        return describe_masked(data)

    def subset(self, images: MaskedImages, count: int) -> MaskedImages:
        """Return `count` images, spread evenly."""
        chosen = sorted(spread(len(images), count)) if len(images) > count else range(len(images))
        paths, masks = (tuple(values[i] for i in chosen) for values in (images.paths, images.masks))
        return replace(images, paths=paths, masks=masks)

    def make_spec(self, config: TrainConfig, num_classes: int) -> SegmenterSpec:
        backbone = BackboneSpec.of(config.model, config.seed, num_classes)
        return SegmenterSpec(backbone, config.segment.decoder, config.segment.adapt_decoder)

    def spec_from(self, saved: Saved) -> SegmenterSpec:
        return SegmenterSpec.from_dict({name: saved[name] for name in ("backbone", "decoder", "adapt_decoder")})

    def build(self, spec: SegmenterSpec) -> Segmenter:
        return build_segmenter(spec)

    def preprocessing(self, spec: SegmenterSpec, model: nn.Module) -> Preprocessing:
        assert isinstance(model, Segmenter)
        return preprocessing_of_segmenter(spec, model)

    def train_transform(self, preprocessing: Preprocessing, config: TrainConfig) -> Transform:
        augmentation = Augmentation(name=config.data.augment, color_jitter=config.data.color_jitter)
        return masked_train_transform(preprocessing, augmentation)

    def eval_transform(self, preprocessing: Preprocessing) -> Transform:
        return masked_eval_transform(preprocessing)

    def facts(self, config: TrainConfig, data: MaskData) -> dict[str, Any]:
        """Return how masks say the classes, and in which colours."""
        return {"masks": data.code.to_dict(), "palette": [list(color) for color in data.palette]}

    def learner(self, config: TrainConfig, data: MaskData, preprocessing: Preprocessing) -> Segment:
        weights = inverse_frequency(torch.tensor(data.pixels["train"])) if config.data.class_weights else None
        return Segment(
            data.classes,
            preprocessing=preprocessing,
            code=data.code,
            palette=data.palette,
            loss=config.segment.loss,
            class_weights=weights,
            label_smoothing=config.data.label_smoothing,
        )

    def learner_from(self, saved: Saved) -> Segment:
        return Segment(
            saved["classes"],
            preprocessing=Preprocessing.from_dict(saved["preprocessing"]),
            code=MaskCode.from_dict(saved["masks"]),
            palette=[tuple(color) for color in saved["palette"]],
        )

    def save_merged(self, model: nn.Module, folder: Path, saved: Saved) -> str:
        spec = self.spec_from(saved)
        save_merged_segmenter(
            model,
            folder,
            spec=spec,
            classes=saved["classes"],
            values=saved["masks"]["values"],
            palette=saved["palette"],
            preprocessing=Preprocessing.from_dict(saved["preprocessing"]),
        )
        return loading_hint_segmenter(spec, folder)

    def lora_place(self, saved: Saved, model: nn.Module) -> LoraPlace:
        backbone, net = self.spec_from(saved).backbone, model.net
        if isinstance(net, PlainSegmentation):
            raise UserError("--lora: only snella makes the decoder `plain`, so nothing could load it; leave --lora out")
        if backbone.name.startswith(HF):
            return LoraPlace(base_hint(backbone, SEGMENTER.auto), part="net")
        kind = f"segmentation_models_pytorch.{type(net).__name__}"
        return LoraPlace(f"the {kind} whose encoder is timm's {backbone.name}", part="net")


SEGMENTATION = SegmentationTask()
