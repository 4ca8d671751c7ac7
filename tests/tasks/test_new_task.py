"""A new task is one object and one row: here is one, which the package knows nothing of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from rich.console import RenderableType
from torch import Tensor, nn

from snella.cli.main import main
from snella.config.schema import TrainConfig
from snella.config.tasks import TASKS
from snella.data.dataset import ImageData, Images, Transform
from snella.data.images import Progress, UnreadableImage
from snella.data.readers.labelled import read_data, read_test_data
from snella.data.transforms.images import Preprocessing, eval_transform
from snella.models.backbone import BackboneSpec, build_backbone, preprocessing_of
from snella.models.export import save_merged
from snella.tasks.interface import Prediction, Saved, Task, TaskLearner
from snella.training.interfaces import DeviceBatch, DeviceBatches
from support.runs import train, write_images


@dataclass(frozen=True)
class Spec:
    backbone: BackboneSpec


@dataclass(frozen=True)
class Errors:
    metrics: dict[str, float]


class Brightness(TaskLearner[Errors, ImageData[Images], Images]):
    """The mean of an image's values, which a model with one output learns."""

    selection = "error"
    higher_is_better = False

    def loss(self, model: nn.Module, batch: DeviceBatch, /) -> Tensor:
        return (model(batch["image"])[:, 0] - batch["image"].mean((1, 2, 3))).square().mean()

    def evaluate(self, model: nn.Module, batches: DeviceBatches, /) -> Errors:
        errors = [self.loss(model, batch).item() for batch in batches]
        return Errors({"error": sum(errors) / len(errors), "loss": sum(errors) / len(errors)})

    def table(self, evaluation: Errors, /) -> RenderableType:
        return f"error {evaluation.metrics['error']:.3f}"

    def predict(
        self, model: nn.Module, images: Images, transform: Transform, *, batch_size: int
    ) -> Iterator[Prediction | UnreadableImage]:
        with torch.no_grad():
            for path in images.paths:
                pixels = transform({"image": images.read(path)})["image"]
                yield Prediction({"image": path, "brightness": model.eval()(pixels[None]).item()})

    def prediction_table(self, rows: Sequence[Mapping[str, Any]], /) -> RenderableType:
        return f"{len(rows)} brightnesses"


class BrightnessTask(Task[Spec, ImageData[Images], Images]):
    metrics: ClassVar[dict[str, str]] = {"error": "squared error"}
    resize = "squash"

    def recognises(self, data: str) -> bool:
        return False

    def read(self, config: TrainConfig, progress: Progress | None) -> ImageData[Images]:
        return read_data(str(config.data.source), seed=config.seed, progress=progress)

    def read_test(self, config: TrainConfig, saved: Saved, progress: Progress | None) -> ImageData[Images]:
        return read_test_data(str(config.data.source), saved["classes"], seed=config.seed, progress=progress)

    def describe(self, data: ImageData[Images]) -> RenderableType:
        return data.root

    def subset(self, images: Images, count: int) -> Images:
        return Images(images.paths[:count], images.labels[:count], images.read)

    def make_spec(self, config: TrainConfig, num_classes: int) -> Spec:
        return Spec(BackboneSpec.of(config.model, config.seed, 1))

    def spec_from(self, saved: Saved) -> Spec:
        return Spec(BackboneSpec(**saved["backbone"]))

    def build(self, spec: Spec) -> nn.Module:
        return build_backbone(spec.backbone)

    def preprocessing(self, spec: Spec, model: nn.Module) -> Preprocessing:
        return preprocessing_of(spec.backbone, model)

    def train_transform(self, preprocessing: Preprocessing, config: TrainConfig) -> Transform:
        return eval_transform(preprocessing)

    def eval_transform(self, preprocessing: Preprocessing) -> Transform:
        return eval_transform(preprocessing)

    def learner(self, config: TrainConfig, data: ImageData[Images], preprocessing: Preprocessing) -> Brightness:
        return Brightness()

    def learner_from(self, saved: Saved) -> Brightness:
        return Brightness()

    def save_merged(self, model: nn.Module, folder: Path, saved: Saved) -> str:
        preprocessing = Preprocessing.from_dict(saved["preprocessing"])
        save_merged(model, folder, spec=self.spec_from(saved).backbone, classes=["x"], preprocessing=preprocessing)
        return "timm"


def test_a_task_of_ones_own_trains_evaluates_predicts_and_merges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TASKS, "brightness", BrightnessTask())
    images, run = write_images(tmp_path / "images"), tmp_path / "run"
    assert train(images, run, "--task", "brightness", "--epochs", "3") == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["selection"] == {"metric": "error", "higher_is_better": False}
    assert 0 <= summary["test"]["error"] < 1  # of a variance of values in units of ImageNet's
    assert main(["evaluate", str(run)]) == 0
    assert "squared error" in capsys.readouterr().out
    assert main(["predict", str(run), str(images / "c0"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 10
    assert all(isinstance(row["brightness"], float) for row in rows)
    assert main(["merge", str(run), "--out", str(tmp_path / "merged")]) == 0
    assert (tmp_path / "merged" / "model.safetensors").exists()


def test_what_other_tasks_read_is_refused_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TASKS, "brightness", BrightnessTask())
    assert train(tmp_path, tmp_path / "run", "--task", "brightness", "--mixup", "0.5") == 2
    assert "--mixup is read with --task classify only" in capsys.readouterr().err
    assert train(tmp_path, tmp_path / "run", "--task", "brightnes") == 2
    assert "did you mean brightness?" in capsys.readouterr().err
