"""Data, pipelines and finished runs that the tests of runs share. Tests only read them, or add to a run's folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support import tiny_pipelines
from support.generation_runs import CAPTIONS, PROMPT, write_class_folders, write_flat, write_texts
from support.generation_runs import train as train_to_generate
from support.runs import train, write_images


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="session")
def snella_run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("snella") / "run"
    assert train(images, folder) == 0
    return folder


@pytest.fixture(scope="session")
def full_run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full") / "run"
    assert train(images, folder, "--method", "full") == 0
    return folder


@pytest.fixture(params=["snella", "full"])
def trained(request: pytest.FixtureRequest) -> Path:
    """A finished run of each of the two methods."""
    return request.getfixturevalue(f"{request.param}_run")


@pytest.fixture
def spoilable(snella_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run that a test may spoil."""
    return Path(shutil.copytree(snella_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pipelines, images and runs are that learn to generate."""
    return tmp_path_factory.mktemp("generate")


@pytest.fixture(scope="session")
def sd(place: Path) -> Path:
    return tiny_pipelines.write_sd(place / "sd")


@pytest.fixture(scope="session")
def unet(place: Path) -> Path:
    return tiny_pipelines.write_unet(place / "unet", classes=2)


@pytest.fixture(scope="session")
def flat(place: Path) -> Path:
    return write_flat(place / "flat")


@pytest.fixture(scope="session")
def texts(place: Path) -> Path:
    return write_texts(place / "texts", CAPTIONS)


@pytest.fixture(scope="session")
def classes(place: Path) -> Path:
    return write_class_folders(place / "classes")


@pytest.fixture(scope="session")
def sd_run(place: Path, sd: Path, flat: Path) -> Path:
    flags = ("--prompt", PROMPT, "--epochs", "2", "--lr", "0.1", "--adapt-convs")
    assert train_to_generate(flat, sd, place / "sd-run", *flags) == 0
    return place / "sd-run"


@pytest.fixture(scope="session")
def class_run(place: Path, unet: Path, classes: Path) -> Path:
    flags = ("--lr", "3e-2", "--epochs", "2", "--sample-every", "1")
    assert train_to_generate(classes, unet, place / "class-run", *flags) == 0
    return place / "class-run"


@pytest.fixture(scope="session")
def classifier_run(place: Path) -> Path:
    data = write_images(place / "to-classify", classes=2, count=6)
    assert train(data, place / "classifier", "--epochs", "1", "--method", "linear") == 0
    return place / "classifier"
