"""What a task is to the rest: an object that knows its data and models, and the learner that it makes for a run.

    config ─ read ─ data ─┬─ make_spec ─ build ─ model
                          ├─ transforms ─ batches
                          └─ learner ─ loss, evaluate, predict or generate, figures

`snella.tasks.registry` finds the objects by name. Training, evaluation, prediction and merging go through these names
alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from PIL import Image
from rich.console import Console, RenderableType
from torch import Tensor, nn

from snella.config.schema import TrainConfig
from snella.data.dataset import ImageData, Transform
from snella.data.images import Progress, UnreadableImage
from snella.data.loading import Examples
from snella.data.splits import Division
from snella.data.transforms.images import Preprocessing
from snella.errors import UserError
from snella.models.backbone import BackboneSpec
from snella.models.export import base_hint
from snella.training.interfaces import DeviceBatch, DeviceBatches, Evaluation

KEPT = 20_000_000  # numbers that a run keeps of the images of a split; of more it keeps none
Saved = Mapping[str, Any]  # adapter/snella.json: what has to be known of a run to use its adapter


def division_of(config: TrainConfig) -> Division:
    """Return what a config says of the splits."""
    data = config.data
    return Division(data.group_column, data.group_pattern, data.splits, data.folds, data.fold, data.shots)


class Spec(Protocol):
    """What is needed to build the same model again: a dataclass of values that JSON holds; saved with the adapter."""

    @property
    def backbone(self) -> BackboneSpec: ...


@dataclass(frozen=True)
class Prediction:
    """What was found in one image."""

    row: dict[str, Any]  # as --json prints it; "image" is its name
    pictures: dict[str, Image.Image] = field(default_factory=dict)  # kind -> a picture to write, such as a mask


@dataclass(frozen=True)
class LoraPlace:
    """Where a run's update belongs as a LoRA, which others load without this package."""

    base: str  # the model that it is loaded into: the call that makes it, or words
    part: str = ""  # attribute of the task's model that holds that model; "" where it is that model
    pipeline: str = ""  # what a pipeline of diffusers that loads LoRAs calls that model


def check_finite(image: str, total: float) -> None:
    """Refuse what a model says of an image where the sum of it is not finite. Raises UserError."""
    if not math.isfinite(total):
        raise UserError(f"{image}: what the model gives is not finite; its training has diverged: lower --lr")


EvaluationT = TypeVar("EvaluationT", bound=Evaluation)
SplitT = TypeVar("SplitT", bound=Examples)
DataT = TypeVar("DataT", bound=ImageData[Any])
SpecT = TypeVar("SpecT", bound=Spec)


class TaskLearner(ABC, Generic[EvaluationT, DataT, SplitT]):
    """What is learnt from batches, and what becomes of a model that has learnt it.

    A task that looks at images overrides `predict`, one that makes some `generate`; what a task does not override does
    nothing.
    """

    selection: str  # the metric that chooses the best epoch
    higher_is_better: bool
    mixes: bool = False  # whether the loss mixes each image with the one before it in the batch
    prompts: Sequence[str] = ()  # what is asked of a model that makes images where nobody says

    @abstractmethod
    def loss(self, model: nn.Module, batch: DeviceBatch, /) -> Tensor:
        """Return the loss (0-d) of a batch on the model's device.

        Of a part of a batch it is the part's share of the batch's loss (`snella.distributed.part`).
        """

    @abstractmethod
    def evaluate(self, model: nn.Module, batches: DeviceBatches, /) -> EvaluationT:
        """Return the metrics over all batches, and what else the task finds.

        Several processes see some of them each: what they find is put together by `distributed.evaluation.all_parts`.
        """

    @abstractmethod
    def table(self, evaluation: EvaluationT, /) -> RenderableType:
        """Return how each class fared."""

    def report(self, evaluation: EvaluationT, /) -> dict[str, Any]:
        """Return what an evaluation found besides its metrics, as JSON holds it."""
        return {}

    def kept(self, evaluation: EvaluationT, /) -> dict[str, Tensor]:
        """Return what RUN/outputs keeps of each image, (n, ...) each, on the CPU; {} where that is nothing."""
        return {}

    def settle(self, evaluation: EvaluationT, /) -> dict[str, Any]:
        """Take over what the best epoch's evaluation on val decides, such as thresholds; return it, for snella.json.

        Tests and predictions go by it.
        """
        return {}

    def doubts(self, evaluation: EvaluationT, /) -> list[str]:
        """Return a line for each sign in an evaluation on val that nothing was learnt."""
        return []

    def details(self, evaluation: EvaluationT, /) -> dict[str, Any]:
        """Return what summary.json says of the test besides its metrics: name -> value."""
        return {}

    def figures(self, evaluation: EvaluationT, /) -> dict[str, Callable[[Path], object]]:
        """Return kind -> what draws that figure to a file; the most telling one first."""
        return {}

    def prepare(
        self,
        model: nn.Module,
        data: DataT,
        preprocessing: Preprocessing,
        config: TrainConfig,
        device: torch.device,
        console: Console,
    ) -> Mapping[str, Examples]:
        """Return what the batches of each split are made of: its examples, or what frozen networks make of them once.

        `model` is as the task's `build` gave it, not tuned yet.
        """
        return data.splits

    def show(self, model: nn.Module, data: DataT, folder: Path, stage: str, progress: Progress | None = None) -> None:
        """Write pictures of what the model makes at a stage ("before", "after" or one between) to the run folder.

        The model is in evaluation mode. `progress` is called with (pictures made, pictures in all).
        """
        return

    def predict(
        self, model: nn.Module, images: SplitT, transform: Transform, *, batch_size: int
    ) -> Iterator[Prediction | UnreadableImage]:
        """Yield, in order of the images, what was found, or why nothing was. The model is left in eval mode."""
        return iter(())

    def prediction_table(self, rows: Sequence[Mapping[str, Any]], /) -> RenderableType:
        """Return predictions as a table for a terminal."""
        return ""

    def csv_row(self, row: Mapping[str, Any], /) -> dict[str, Any]:
        """Return a prediction's row as a line of CSV: column -> value."""
        return dict(row)

    def generate(
        self,
        model: nn.Module,
        asked: Sequence[str | None],
        seeds: Sequence[int],
        *,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Iterator[Image.Image]:
        """Yield an image for each prompt with its seed. None for steps and guidance: those of the run."""
        return iter(())

    def judge(
        self, model: nn.Module, references: SplitT, features: str, *, count: int, console: Console
    ) -> tuple[dict[str, Any], str]:
        """Compare `count` images that it makes with real ones, in the features of a named model.

        Returns what was found, as JSON holds it and in a line.
        """
        return {}, ""


class Task(ABC, Generic[SpecT, DataT, SplitT]):
    """What differs between tasks: data, model, learner, and what a checkpoint of it is. It has no state."""

    metrics: ClassVar[dict[str, str]]  # in summary.json, fractions from 0 to 1: metric -> its name for people
    resize: ClassVar[str]  # how an image becomes square where the config does not say
    pictures: ClassVar[tuple[str, ...]] = ()  # kinds of pictures that a prediction makes
    exports_onnx: ClassVar[bool] = False  # whether a merged model can be written as ONNX too
    ensembles: ClassVar[bool] = False  # whether its models' outputs are logits of classes that exclude each other
    explains: ClassVar[bool] = False  # whether its models' outputs are a logit for each class, which has a heat map
    generates: ClassVar[bool] = False  # whether its models make images, and do not look at any
    about: ClassVar[Mapping[str, Any]] = {}  # its own part of snella.json: key -> hint (`snella.json_files`)

    about_since: ClassVar[Mapping[str, Any]] = {}  # the same, of what older runs do not have

    def shown_metrics(self, classes: int) -> dict[str, str]:
        """Return the metrics that say something of so many classes -> their names; files have all of them."""
        return dict(self.metrics)

    def check(self, config: TrainConfig) -> None:
        """Refuse a config that cannot be trained, before anything is read, built or downloaded. Raises UserError."""
        return

    def check_features(self, name: str) -> None:
        """Refuse features in which the images that a model makes cannot be compared. Raises UserError."""
        return

    @abstractmethod
    def recognises(self, data: str) -> bool:
        """Return whether a path or name looks like data of this task; cheap."""

    @abstractmethod
    def read(self, config: TrainConfig, progress: Progress | None) -> DataT:
        """Return the data of a run, the same at every call: what is missing of its splits comes from the seed."""

    @abstractmethod
    def read_test(self, config: TrainConfig, saved: Saved, progress: Progress | None) -> DataT:
        """Return only the split "test" of the data that a config names, with the classes of a trained model."""

    @abstractmethod
    def describe(self, data: DataT) -> RenderableType:
        """Return what `snella data` prints."""

    @abstractmethod
    def subset(self, images: SplitT, count: int) -> SplitT:
        """Return a few of a split's examples, for --smoke."""

    @abstractmethod
    def make_spec(self, config: TrainConfig, num_classes: int) -> SpecT:
        """Return how to build the model that a config asks for."""

    @abstractmethod
    def spec_from(self, saved: Saved) -> SpecT:
        """Return how to build the model of a run."""

    @abstractmethod
    def build(self, spec: SpecT) -> nn.Module:
        """Return the model, a function of `spec` and the weights."""

    @abstractmethod
    def preprocessing(self, spec: SpecT, model: nn.Module) -> Preprocessing:
        """Return the preprocessing that the model was pre-trained with, at the size asked for."""

    @abstractmethod
    def train_transform(self, preprocessing: Preprocessing, config: TrainConfig) -> Transform:
        """Return what becomes of a training example."""

    @abstractmethod
    def eval_transform(self, preprocessing: Preprocessing) -> Transform:
        """Return what becomes of an example that is evaluated or predicted."""

    def facts(self, config: TrainConfig, data: DataT) -> dict[str, Any]:
        """Return what must be saved of the data, besides the classes' names, to read and predict such data later."""
        return {}

    @abstractmethod
    def learner(
        self, config: TrainConfig, data: DataT, preprocessing: Preprocessing
    ) -> TaskLearner[Any, DataT, SplitT]:
        """Return the learner of a run."""

    @abstractmethod
    def learner_from(self, saved: Saved) -> TaskLearner[Any, DataT, SplitT]:
        """Return the learner of a finished run, to evaluate and predict with."""

    @abstractmethod
    def save_merged(self, model: nn.Module, folder: Path, saved: Saved) -> str:
        """Write a model without adapters as a plain checkpoint; returns the call that loads it."""

    def lora_place(self, saved: Saved, model: nn.Module) -> LoraPlace:
        """Return what a LoRA of a run is loaded into; `model` is as it was before the training.

        Raises:
            UserError: only this package makes such a model.
        """
        return LoraPlace(base_hint(self.spec_from(saved).backbone))
