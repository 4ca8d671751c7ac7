"""What tasks share that say something of an image as a whole: a backbone with a head, its preprocessing, its export."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console
from torch import Tensor, nn

from snella.config.schema import TrainConfig
from snella.config.tasks import Tta
from snella.console import print_line, working
from snella.data.dataset import ImageData, Images, Transform
from snella.data.folders.choices import Choices
from snella.data.images import ImageFiles, Progress, UnreadableImage
from snella.data.loading import Examples, transformed
from snella.data.readers.labelled import Lister, labelled, read_data, read_test_data
from snella.data.transforms.images import Augmentation, Preprocessing, eval_transform, train_transform
from snella.distributed.evaluation import all_parts
from snella.errors import UserError
from snella.models.backbone import BackboneSpec, build_backbone, check_backbone_name, logits_of, preprocessing_of
from snella.models.export import loading_hint, save_merged
from snella.tasks.head import fit_head
from snella.tasks.interface import EvaluationT, Prediction, Saved, Task, TaskLearner, check_finite, division_of
from snella.training.interfaces import DeviceBatch, DeviceBatches


@dataclass(frozen=True)
class HeadSpec:
    """How to build the model again: a backbone with a head."""

    backbone: BackboneSpec


class WholeImageTask(Task[HeadSpec, ImageData[Images], Images]):
    """A task whose model is a backbone with a head of an output for each class or quantity."""

    resize: ClassVar[str] = "squash"
    exports_onnx: ClassVar[bool] = True
    about_since: ClassVar[Mapping[str, Any]] = {"tta": Tta}

    def check(self, config: TrainConfig) -> None:
        """Refuse an unknown backbone or policy. Raises UserError."""
        augmentation(config)
        if config.data.resize == "none":
            raise UserError(f"--resize none gives images of different sizes; use squash or crop to {config.task}")
        check_backbone_name(self.make_spec(config, num_classes=2).backbone)

    def lister(self, config: TrainConfig, saved: Saved | None) -> Lister:
        """Return what lists the data of a run, or of what is `saved` of one: images of one class each."""
        return labelled

    def read(self, config: TrainConfig, progress: Progress | None) -> ImageData[Images]:
        assert config.data.source is not None  # validated
        return read_data(
            config.data.source,
            seed=config.seed,
            **config.data.fractions,
            needs_test=config.test != "none",
            choices=choices(config),
            lister=self.lister(config, None),
            division=division_of(config),
            progress=progress,
        )

    def read_test(self, config: TrainConfig, saved: Saved, progress: Progress | None) -> ImageData[Images]:
        source, lister = config.data.source, self.lister(config, saved)
        assert source is not None
        return read_test_data(
            source, saved["classes"], seed=config.seed, choices=choices(config), lister=lister, progress=progress
        )

    def make_spec(self, config: TrainConfig, num_classes: int) -> HeadSpec:
        return HeadSpec(BackboneSpec.of(config.model, config.seed, num_classes))

    def spec_from(self, saved: Saved) -> HeadSpec:
        return HeadSpec(BackboneSpec(**saved["backbone"]))

    @abstractmethod
    def new_learner(self, config: TrainConfig, data: ImageData[Images]) -> WholeImageLearner[Any]:
        """Return the learner of a run, but for how it looks at an image."""

    @abstractmethod
    def saved_learner(self, saved: Saved) -> WholeImageLearner[Any]:
        """Return the learner of a finished run, but for how it looks at an image."""

    def learner(
        self, config: TrainConfig, data: ImageData[Images], preprocessing: Preprocessing
    ) -> WholeImageLearner[Any]:
        found = self.new_learner(config, data)
        found.tta = config.classify.tta
        return found

    def learner_from(self, saved: Saved) -> WholeImageLearner[Any]:
        found = self.saved_learner(saved)
        found.tta = saved.get("tta", "none")
        return found

    def facts(self, config: TrainConfig, data: ImageData[Images]) -> dict[str, Any]:
        """Return how an image is looked at."""
        return {"tta": config.classify.tta}

    def build(self, spec: HeadSpec) -> nn.Module:
        return build_backbone(spec.backbone)

    def preprocessing(self, spec: HeadSpec, model: nn.Module) -> Preprocessing:
        return preprocessing_of(spec.backbone, model)

    def train_transform(self, preprocessing: Preprocessing, config: TrainConfig) -> Transform:
        return train_transform(preprocessing, augmentation(config))

    def eval_transform(self, preprocessing: Preprocessing) -> Transform:
        return eval_transform(preprocessing)

    def save_merged(self, model: nn.Module, folder: Path, saved: Saved) -> str:
        spec = self.spec_from(saved).backbone
        preprocessing = Preprocessing.from_dict(saved["preprocessing"])
        save_merged(model, folder, spec=spec, classes=saved["classes"], preprocessing=preprocessing)
        return loading_hint(spec, folder)


class WholeImageLearner(TaskLearner[EvaluationT, ImageData[Images], Images]):
    """A learner that finds a number for each class or quantity of an image."""

    classes: tuple[str, ...]
    tta: Tta = "none"

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return the logits (b, K), in fp32, of images (b, 3, s, s): with `tta` flip, the mean of both views'."""
        found = logits_of(model(images)).float()
        return found if self.tta == "none" else (found + logits_of(model(images.flip(-1))).float()) / 2

    @abstractmethod
    def cost(self, logits: Tensor, targets: DeviceBatch) -> Tensor:
        """Return what is minimised (0-d), in the precision of logits (b, K): a mean over the images.

        `targets` is a batch, of which the image is not looked at.
        """

    def mixed(self, batch: DeviceBatch) -> DeviceBatch:
        """Return what is trained on in place of a batch."""
        return batch

    def loss(self, model: nn.Module, batch: DeviceBatch) -> Tensor:
        """Return the training loss (0-d) in fp32."""
        batch = self.mixed(batch)
        return self.cost(logits_of(model(batch["image"])).float(), batch)

    def prepare(
        self,
        model: nn.Module,
        data: ImageData[Images],
        preprocessing: Preprocessing,
        config: TrainConfig,
        device: torch.device,
        console: Console,
    ) -> Mapping[str, Examples]:
        """Return the images of each split, read as asked; the head is fitted to their features before, if asked for."""
        if config.classify.head_first and not config.estimate:
            with working(console, "fitting the head") as progress:
                penalty = fit_head(
                    model,
                    data.splits,
                    eval_transform(preprocessing),
                    self.cost,
                    batch_size=config.data.images_per_batch,
                    workers=config.data.workers or 0,
                    device=device,
                    progress=progress,
                )
            print_line(console, f"head fitted to the features of the frozen backbone, penalty {penalty:.2g} by val")
        if config.data.decode == "whole":
            return data.splits
        train = data.splits["train"]
        if not isinstance(train.read, ImageFiles):
            print_line(console, "decode: these images are not files of their own, and are decoded whole")
            return data.splits
        read = replace(train.read, enough=augmentation(config).enough(preprocessing.image_size))
        return {**data.splits, "train": replace(train, read=read)}

    @abstractmethod
    def numbers(self, logits: Tensor) -> Tensor:
        """Return what is told of images, (b, K), from logits (b, K) in fp32: probabilities, or quantities."""

    @abstractmethod
    def prediction(self, name: str, numbers: list[float]) -> Prediction:
        """Return what is told of the image of that name."""

    def predict(
        self, model: nn.Module, images: Images, transform: Transform, *, batch_size: int
    ) -> Iterator[Prediction | UnreadableImage]:
        """Yield what is told of each image, or why nothing is. The model is left in eval mode."""
        device = next(model.parameters()).device
        names = iter(images.paths)
        for examples in transformed(images, transform, batch_size):
            pixels = [example["image"] for example in examples if not isinstance(example, UnreadableImage)]
            found = iter(self.answers(model, torch.stack(pixels).to(device)).tolist() if pixels else ())
            for example in examples:
                name = next(names)
                yield example if isinstance(example, UnreadableImage) else self._finite(name, next(found))

    @torch.no_grad()
    def answers(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return what is told of images (b, 3, s, s), (b, K) in fp32. The model is left in eval mode."""
        if model.training:  # or the adapted weights that it keeps in evaluation would be made anew for each batch
            model.eval()
        return self.numbers(self.logits(model, images))

    @torch.no_grad()
    def outputs(self, model: nn.Module, batches: DeviceBatches) -> tuple[Tensor, Tensor]:
        """Return the logits and targets of all images, (n, K) in fp32 on the CPU. The model is left in eval mode.

        Raises:
            UserError: there is no batch.
        """
        model.eval()
        found = [(self.logits(model, batch["image"]).cpu(), batch["target"].cpu()) for batch in batches]
        found = [pair for part in all_parts(found) for pair in part]
        if not found:
            raise UserError("nothing to evaluate: the split has no image; give --data with at least one")
        logits, targets = (torch.cat(parts) for parts in zip(*found, strict=True))
        return logits, targets

    def _finite(self, name: str, numbers: list[float]) -> Prediction:
        check_finite(name, sum(numbers))
        return self.prediction(name, numbers)


def choices(config: TrainConfig) -> Choices:
    """Return which reading of the data a run's settings choose."""
    told = config.classify
    return Choices(config.data.classes, told.label_column, told.label_pattern, told.crops)


def augmentation(config: TrainConfig) -> Augmentation:
    """Return how training images vary, by a run's settings. Raises UserError for an unknown policy."""
    return Augmentation(
        name=config.data.augment,
        auto_augment=config.classify.auto_augment,
        color_jitter=config.data.color_jitter,
        random_erasing=config.classify.random_erasing,
    )
