"""What a training of whole images is given to see."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from snella.config.schema import TrainConfig
from snella.data.images import ImageFiles
from snella.data.transforms.images import Preprocessing
from snella.runs.prepare import read_run_data
from snella.tasks.registry import task_named
from support.runs import write_images


def readers(source: Path | str, **settings: object) -> dict[str, object]:
    config = TrainConfig.of(data=str(source), **settings)
    console = Console(quiet=True)
    data, task = read_run_data(config, console), task_named("classify")
    preprocessing = Preprocessing(16)
    learner = task.learner(config, data, preprocessing)
    return {
        name: getattr(part, "read", None)
        for name, part in learner.prepare(
            nn.Identity(), data, preprocessing, config, torch.device("cpu"), console
        ).items()
    }


@pytest.mark.parametrize(("augment", "enough"), [("none", 32), ("flip", 32), ("crop", 66)])
def test_images_to_train_on_are_reduced_and_no_others(tmp_path: Path, augment: str, enough: int) -> None:
    """A crop of 8 % of the area, three wide to four high, has 0.245 of the side: 16 of 66 pixels."""
    read = readers(write_images(tmp_path), decode="reduced", augment=augment)
    assert read == {"train": ImageFiles(enough=enough), "val": ImageFiles(), "test": ImageFiles()}
    assert set(readers(tmp_path, augment=augment).values()) == {ImageFiles()}


def test_images_that_are_not_files_are_decoded_whole_and_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    config = TrainConfig.of(data="digits", decode="reduced")
    console = Console()
    data = read_run_data(config, console)
    learner = task_named("classify").learner(config, data, Preprocessing(16))
    made = learner.prepare(nn.Identity(), data, Preprocessing(16), config, torch.device("cpu"), console)
    assert made == data.splits
    assert "not files of their own, and are decoded whole" in capsys.readouterr().out
