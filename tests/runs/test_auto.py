"""What `auto` stands for: the learning rate and the epochs of a run that says neither."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from snella.cli.main import main
from snella.config.method import METHODS
from snella.config.recipe import read_recipe
from snella.config.schema import TrainConfig
from snella.console import Terminal
from snella.errors import UserError
from snella.runs.devices import make_accelerator
from snella.runs.memory import fitted
from snella.runs.prepare import read_run_data, with_batch
from support.runs import MODEL, adapter, same, write_images

TWO_STEPS = ["--batch-size", "8", "--accumulate", "2"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images")


def settled(images: Path, **values: object) -> tuple[TrainConfig, str]:
    """Return the config of a run as it is trained, and what is printed."""
    config = TrainConfig.of(data=str(images), pretrained=False, image_size=32, device="cpu", **values)
    out = StringIO()
    console: Console = Terminal(file=out, width=200)
    ready = fitted(config, read_run_data(config, console), make_accelerator("cpu", "fp32"), console)
    return ready.config, out.getvalue()


@pytest.mark.parametrize(
    ("backbone", "method", "rate"),
    [
        ("test_vit", "snella", 5e-4),
        ("test_vit", "lora", 3e-4),
        ("test_vit", "full", 3e-5),
        ("test_efficientnet", "full", 2e-3),
        ("test_efficientnet", "lora", 2e-3),
        ("test_efficientnet", "linear", 1e-2),
    ],
)
def test_the_rate_is_that_of_the_method_and_of_the_kind_of_backbone(
    backbone: str, method: str, rate: float, images: Path
) -> None:
    config, said = settled(images, backbone=backbone, method=method, epochs=3, r=4)
    assert (config.loop.lr, config.loop.epochs) == (rate, 3)
    assert f"auto: learning rate {rate:g}, for {method} on {config_images(said)} images" in said


@pytest.mark.parametrize(
    ("method", "epochs", "rate"),
    [("snella", 100, 5e-4), ("snella", 250, 2e-4), ("snell", 1000, 5e-5), ("lora", 1000, 3e-4)],
)
def test_an_update_that_is_a_square_is_slower_in_long_trainings(
    method: str, epochs: int, rate: float, images: Path
) -> None:
    config, _ = settled(images, backbone="test_vit", method=method, epochs=epochs, r=4, batch_size=8)  # 3 steps each
    assert config.loop.lr == rate


def config_images(said: str) -> str:
    return said.rpartition(" images")[0].rpartition(" ")[2]


@pytest.mark.parametrize(
    ("batch", "accumulate", "epochs"),
    [(32, 1, 100), (1, 1, 84), (2, 1, 100), (1, 2, 100)],  # 18 images: 1500 steps, or 100 epochs
)
def test_the_epochs_make_enough_steps(batch: int, accumulate: int, epochs: int, images: Path) -> None:
    config, said = settled(images, backbone="test_vit", lr=1e-3, r=4, batch_size=batch, accumulate=accumulate)
    assert config_images(said) == "18"
    assert (config.loop.lr, config.loop.epochs) == (1e-3, epochs)


def test_every_method_has_a_rate_above_the_least_one() -> None:
    assert all(min(m.usual_rate, m.batch_norm_rate or 1) > TrainConfig().loop.min_lr for m in METHODS.values())


def test_a_rate_that_would_rise_to_its_end_is_refused(images: Path) -> None:
    with pytest.raises(UserError, match=r"--min-lr 0\.001 is above the learning rate 0\.0005"):
        settled(images, backbone="test_vit", min_lr=1e-3, r=4)


def test_a_run_keeps_what_it_was_and_is_gone_on_with(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("snella.runs.prepare.MOST_EPOCHS", 2)
    flags = ["train", "--data", str(images), *MODEL, *TWO_STEPS]
    assert main([*flags, "--out", str(tmp_path / "auto")]) == 0
    found = read_recipe(str(tmp_path / "auto" / "config.yaml")).loop
    assert (found.lr, found.epochs) == (5e-4, 2)
    said = ["--lr", "5e-4", "--epochs", "2"]
    assert main([*flags, *said, "--out", str(tmp_path / "said")]) == 0
    assert same(adapter(tmp_path / "auto"), adapter(tmp_path / "said"))
    monkeypatch.setattr("snella.runs.prepare.MOST_EPOCHS", 7)  # as a later version may have it
    capsys.readouterr()
    assert main([*flags, "--out", str(tmp_path / "auto"), "--resume"]) == 0
    assert "is finished" in capsys.readouterr().out
    assert main([*flags, "--out", str(tmp_path / "auto"), "--resume", "--lr", "1e-3"]) == 2
    assert "--lr was 0.0005, is 0.001" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "images", "size"),
    [("classify", 499, 8), ("segment", 500, 16), ("regress", 1999, 16), ("classify", 2000, 32), ("generate", 5, 32)],
)
def test_few_images_come_in_small_batches(task: str, images: int, size: int) -> None:
    data: Any = SimpleNamespace(splits={"train": range(images)})
    out = Terminal(file=StringIO())
    assert with_batch(TrainConfig.of(data="x", task=task), data, out).data.batch_size == size
    assert with_batch(TrainConfig.of(data="x", task=task, batch_size=5), data, out).data.batch_size == 5
