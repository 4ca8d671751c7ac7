"""Image classification: its data, its models, and what is kept of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from rich.console import RenderableType
from torch import nn

from snella.config.schema import TrainConfig
from snella.data.dataset import ImageData, Images, Transform, class_weights
from snella.data.folders.choices import Choices
from snella.data.images import Progress
from snella.data.readers.labelled import read_data, read_test_data
from snella.data.readers.labelled_report import describe
from snella.data.transforms.images import Augmentation, Preprocessing, eval_transform, train_transform
from snella.errors import UserError
from snella.models.backbone import BackboneSpec, build_backbone, check_backbone_name, preprocessing_of
from snella.models.export import loading_hint, save_merged
from snella.tasks.classification.learner import Classify
from snella.tasks.interface import Saved, Task, division_of


@dataclass(frozen=True)
class ClassifierSpec:
    """How to build the classifier again: a backbone with a head."""

    backbone: BackboneSpec


class ClassificationTask(Task[ClassifierSpec, ImageData[Images], Images]):
    """One class for each image."""

    metrics: ClassVar[dict[str, str]] = {"top1": "top-1", "top5": "top-5", "balanced_accuracy": "balanced accuracy"}
    ensembles = True
    resize = "squash"
    exports_onnx = True

    def check(self, config: TrainConfig) -> None:
        """Refuse an unknown backbone or policy. Raises UserError."""
        _augmentation(config)
        if config.data.resize == "none":
            raise UserError("--resize none gives images of different sizes; use squash or crop to classify")
        check_backbone_name(self.make_spec(config, num_classes=2).backbone)

    def recognises(self, data: str) -> bool:
        """Return True: any data may be labelled images, so this task is the last one to ask."""
        return True

    def read(self, config: TrainConfig, progress: Progress | None) -> ImageData[Images]:
        data = config.data
        assert data.source is not None  # validated
        needs_test, choices = config.test != "none", _choices(config)
        return read_data(
            data.source,
            seed=config.seed,
            **data.fractions,
            needs_test=needs_test,
            choices=choices,
            division=division_of(config),
            progress=progress,
        )

    def read_test(self, config: TrainConfig, saved: Saved, progress: Progress | None) -> ImageData[Images]:
        source, classes = config.data.source, saved["classes"]
        assert source is not None
        return read_test_data(source, classes, seed=config.seed, choices=_choices(config), progress=progress)

    def describe(self, data: ImageData[Images]) -> RenderableType:
        return describe(data)

    def subset(self, images: Images, count: int) -> Images:
        """Return the first `count` images of each class."""
        seen: Counter[int] = Counter()
        chosen = []
        for index, label in enumerate(images.labels):
            seen[label] += 1
            if seen[label] <= count:
                chosen.append(index)
        paths, labels = (tuple(values[i] for i in chosen) for values in (images.paths, images.labels))
        return replace(images, paths=paths, labels=labels)

    def make_spec(self, config: TrainConfig, num_classes: int) -> ClassifierSpec:
        return ClassifierSpec(BackboneSpec.of(config.model, config.seed, num_classes))

    def spec_from(self, saved: Saved) -> ClassifierSpec:
        return ClassifierSpec(BackboneSpec(**saved["backbone"]))

    def build(self, spec: ClassifierSpec) -> nn.Module:
        return build_backbone(spec.backbone)

    def preprocessing(self, spec: ClassifierSpec, model: nn.Module) -> Preprocessing:
        return preprocessing_of(spec.backbone, model)

    def train_transform(self, preprocessing: Preprocessing, config: TrainConfig) -> Transform:
        return train_transform(preprocessing, _augmentation(config))

    def eval_transform(self, preprocessing: Preprocessing) -> Transform:
        return eval_transform(preprocessing)

    def learner(self, config: TrainConfig, data: ImageData[Images], preprocessing: Preprocessing) -> Classify:
        return Classify(
            data.classes,
            class_weights=class_weights(data.splits["train"], data.classes) if config.data.class_weights else None,
            label_smoothing=config.data.label_smoothing,
            mixup=config.classify.mixup,
            cutmix=config.classify.cutmix,
        )

    def learner_from(self, saved: Saved) -> Classify:
        return Classify(saved["classes"])

    def save_merged(self, model: nn.Module, folder: Path, saved: Saved) -> str:
        spec = self.spec_from(saved).backbone
        preprocessing = Preprocessing.from_dict(saved["preprocessing"])
        save_merged(model, folder, spec=spec, classes=saved["classes"], preprocessing=preprocessing)
        return loading_hint(spec, folder)


def _choices(config: TrainConfig) -> Choices:
    return Choices(config.data.classes, config.classify.label_column, config.classify.crops)


def _augmentation(config: TrainConfig) -> Augmentation:
    return Augmentation(
        name=config.data.augment,
        auto_augment=config.classify.auto_augment,
        color_jitter=config.data.color_jitter,
        random_erasing=config.classify.random_erasing,
    )


CLASSIFICATION = ClassificationTask()
