"""What fits the memory: which way of making a step is taken, that it changes no result, and how large a batch fits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from snella.config.fields import read_bytes
from snella.config.recipe import read_recipe
from support.runs import adapter, read, same, train

FLAGS = ("--epochs", "1")
LEVELS = {
    "none": ("--rematerialize", "none"),
    "inputs": ("--rematerialize", "inputs"),
    "mlp": ("--rematerialize", "mlp"),
    "all": ("--gradient-checkpointing",),
}
MEMORY = re.compile(r"memory: ([\d.]+ \wB) of ([\d.]+ \wB)(?: that are free)? for batches of (\d+), (.*)")


@pytest.fixture(scope="module")
def runs(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each level, chosen by its flags."""
    root = tmp_path_factory.mktemp("levels")
    for level, flags in LEVELS.items():
        assert train(images, root / level, *FLAGS, *flags) == 0
    return root


def peak(run: Path) -> int:
    return read(run / "summary.json")["peak_memory_bytes"]


def chosen(text: str) -> str:
    found = MEMORY.search(text)
    assert found
    return found[4].strip()


@pytest.mark.parametrize(("level", "below"), [("none", None), ("inputs", "none"), ("mlp", "inputs")])
def test_the_fastest_level_that_fits_is_taken(
    level: str, below: str | None, runs: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = 2 * peak(runs / level) if below is None else (peak(runs / level) + peak(runs / below)) // 2
    assert train(images, tmp_path / "run", *FLAGS, "--memory", str(limit)) == 0
    words = "nothing made again" if level == "none" else f"--rematerialize {level}"
    assert chosen(capsys.readouterr().out) == words
    assert peak(tmp_path / "run") == pytest.approx(peak(runs / level), rel=0.01)
    assert same(adapter(tmp_path / "run"), adapter(runs / "none"))


def test_then_some_blocks_are_checkpointed(
    runs: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = peak(runs / "mlp") - 1000
    assert train(images, tmp_path / "run", *FLAGS, "--memory", str(limit)) == 0
    assert re.fullmatch(r"--rematerialize mlp, [1-6] of 6 blocks checkpointed", chosen(capsys.readouterr().out))
    assert peak(tmp_path / "run") < limit
    assert same(adapter(tmp_path / "run"), adapter(runs / "none"))
    assert train(images, tmp_path / "run", *FLAGS, "--memory", "auto", "--resume") == 0  # free to change


def test_a_method_that_makes_nothing_again_has_its_blocks_checkpointed(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(images, tmp_path / "plain", *FLAGS, "--method", "lora") == 0
    limit = peak(tmp_path / "plain") - 1000
    assert train(images, tmp_path / "run", *FLAGS, "--method", "lora", "--memory", str(limit)) == 0
    assert re.fullmatch(r"[1-6] of 6 blocks checkpointed", chosen(capsys.readouterr().out))
    assert peak(tmp_path / "run") < limit
    assert same(adapter(tmp_path / "run"), adapter(tmp_path / "plain"))


def test_what_does_not_fit_is_one_line(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (("--memory", "1MB"), ("--memory", "1MB", "--batch-size", "auto")):
        assert train(images, tmp_path / "run", *FLAGS, *flags) == 2
        assert "MB at the least, more than 1.0 MB; try a smaller --batch-size" in capsys.readouterr().err
    assert train(images, tmp_path / "run", "--memory", "lots") == 2
    assert "--memory: lots is not a size such as 6GB or 800MiB, nor auto" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_largest_power_of_two_that_fits_is_the_batch(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(images, run, *FLAGS, "--batch-size", "auto") == 0
    assert "batch size: 16, the largest power of two that fits" in capsys.readouterr().out  # of 21 images to train on
    assert read_recipe(str(run / "config.yaml")).data.batch_size == 16
    assert train(images, run, *FLAGS, "--batch-size", "auto", "--resume") == 0
    assert "is finished" in capsys.readouterr().out

    sizes = {}
    for size in (2, 4):
        assert train(images, tmp_path / f"size-{size}", *FLAGS, "--batch-size", str(size)) == 0
        sizes[size] = peak(tmp_path / f"size-{size}")
    limit = str((sizes[2] + sizes[4]) // 2)
    assert train(images, tmp_path / "small", *FLAGS, "--batch-size", "auto", "--memory", limit) == 0
    assert read_recipe(str(tmp_path / "small" / "config.yaml")).data.batch_size == 2


def test_in_a_comparison_the_batch_is_the_same_for_all(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from snella.cli.main import main

    assert main(["compare", "--data", str(images), "--batch-size", "auto"]) == 2
    assert "--batch-size auto would give each method another one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"),
    [("6GB", 6 * 10**9), ("1.5 GiB", 3 * 2**29), ("800m", 8 * 10**8), ("7", 7), (".5kB", 500), ("2KiB", 2048)],
)
def test_sizes(text: str, size: int) -> None:
    assert read_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "0", "-1GB", "6XB", "1e9", "6 G B"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size such as"):
        read_bytes(text)
