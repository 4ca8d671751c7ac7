"""What a task is to the rest: the functions that its module has, and the object that learns and predicts.

    config ─ read ─ data ─┬─ spec ─ build ─ model
                          ├─ transforms ─ batches
                          └─ make_task ─ task: loss, evaluate, predict, figures

`snella.tasks.registry` names the modules. Training, evaluation, prediction and merging go through these names alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from rich.console import Console, RenderableType
from torch import Tensor, nn

from snella.config.schema import TrainConfig
from snella.data.dataset import ImageData
from snella.data.images import Progress, UnreadableImage
from snella.data.loading import Examples
from snella.data.transforms.images import Preprocessing, Transform
from snella.diffusion.sampling import SampleSettings
from snella.models.backbone import BackboneSpec
from snella.tasks.generation.fidelity import Fidelity


class Spec(Protocol):
    """What is needed to build the same model again: a dataclass of values that JSON holds; saved with the adapter."""

    @property
    def backbone(self) -> BackboneSpec: ...


@dataclass(frozen=True)
class Prediction:
    """What was found in one image."""

    row: dict[str, Any]  # as --json prints it; "image" is its name
    pictures: dict[str, Image.Image] = field(default_factory=dict)  # kind -> a picture to write, such as a mask


class Task(Protocol):
    """What is learnt from batches, and what becomes of a model that has learnt it."""

    @property
    def selection(self) -> str: ...  # the metric that chooses the best epoch

    @property
    def higher_is_better(self) -> bool: ...

    def loss(self, model: nn.Module, batch: dict[str, Any], /) -> Tensor: ...

    def evaluate(self, model: nn.Module, batches: Any, /) -> Any: ...

    def report(self, evaluation: Any, /) -> dict[str, Any]:
        """What an evaluation found besides its metrics, as JSON holds it."""
        ...

    def details(self, evaluation: Any, /) -> dict[str, Any]:
        """What summary.json says of the test besides its metrics: name -> value."""
        ...

    def table(self, evaluation: Any, /) -> RenderableType:
        """How each class fared."""
        ...

    def figures(self, evaluation: Any, /) -> dict[str, Callable[[Path], object]]:
        """Kind -> what draws that figure to a file; the most telling one first."""
        ...


@runtime_checkable
class Predicts(Task, Protocol):
    """A task that finds something in images."""

    def predict(
        self, model: nn.Module, images: Any, transform: Transform, *, batch_size: int
    ) -> Iterator[Prediction | UnreadableImage]:
        """In order of the images: what was found, or why nothing was. The model is left in eval mode."""
        ...

    def prediction_table(self, rows: Sequence[Mapping[str, Any]], /) -> RenderableType: ...

    def flat(self, row: Mapping[str, Any], /) -> dict[str, Any]:
        """A prediction's row as a line of CSV: column -> value."""
        ...


@runtime_checkable
class Generates(Task, Protocol):
    """A task that makes images."""

    @property
    def sampling(self) -> SampleSettings: ...

    @property
    def prompts(self) -> Sequence[str]: ...  # what is asked for where nobody says

    def prepare(
        self,
        model: nn.Module,
        data: Any,
        preprocessing: Preprocessing,
        config: TrainConfig,
        device: torch.device,
        console: Console,
    ) -> Mapping[str, Examples]:
        """What the batches of each split are made of: what frozen networks make of the images, once.

        `model` is as the module's `build` gave it, not tuned yet.
        """
        ...

    def generate(
        self, model: nn.Module, asked: Sequence[str | None], seeds: Sequence[int], sampling: SampleSettings
    ) -> Iterator[Image.Image]:
        """An image for each prompt with its seed."""
        ...

    def show(self, model: nn.Module, data: Any, folder: Path, stage: str, progress: Progress | None = None) -> None:
        """Write pictures of what the model makes at a stage ("before", "after" or one between) to the run folder.

        The model is in evaluation mode. `progress` is called with (pictures made, pictures in all).
        """
        ...

    def judge(self, model: nn.Module, references: Any, features: str, *, count: int, console: Console) -> Fidelity:
        """How near `count` images that it makes come to real ones, in the features of a named model."""
        ...


class TaskModule(Protocol):
    """The functions of a task's module. `about` is what is saved with the adapter (adapter/snella.json)."""

    METRICS: dict[str, str]  # what summary.json says of a split, fractions from 0 to 1: metric -> its name for people

    RESIZE: str  # how an image becomes square where the config does not say

    PICTURES: tuple[str, ...]  # kinds of pictures that a prediction makes

    ONNX: bool  # whether a merged model can be written as ONNX too

    def check(self, config: TrainConfig) -> None:
        """Refuse a config that cannot be trained, before anything is read, built or downloaded."""
        ...

    def recognised(self, data: str) -> bool:
        """Whether a path or name looks like data of this task; cheap."""
        ...

    def read(self, config: TrainConfig, progress: Progress | None) -> ImageData: ...

    def read_test(self, data: str, about: Mapping[str, Any], *, seed: int, progress: Progress | None) -> ImageData:
        """Only the split "test", with the classes of a trained model."""
        ...

    def describe(self, data: str, *, seed: int, progress: Progress | None) -> RenderableType: ...

    def few(self, images: Any, count: int) -> Any:
        """A few of a split's examples, for --smoke."""
        ...

    def make_spec(self, config: TrainConfig, num_classes: int) -> Spec: ...

    def spec_from(self, about: Mapping[str, Any]) -> Spec: ...

    def build(self, spec: Any) -> nn.Module: ...

    def preprocessing(self, spec: Any, model: Any) -> Preprocessing: ...

    def train_transform(self, preprocessing: Preprocessing, config: TrainConfig) -> Transform: ...

    def eval_transform(self, preprocessing: Preprocessing) -> Transform: ...

    def about(self, config: TrainConfig, data: Any) -> dict[str, Any]:
        """What must be known of the data, besides the classes' names, to read and predict such data later."""
        ...

    def make_task(self, config: TrainConfig, data: Any, preprocessing: Preprocessing) -> Task: ...

    def task_from(self, about: Mapping[str, Any]) -> Task: ...

    def save_merged(self, model: Any, folder: Path, about: Mapping[str, Any]) -> str:
        """Write a model without adapters as a plain checkpoint; returns the call that loads it."""
        ...
