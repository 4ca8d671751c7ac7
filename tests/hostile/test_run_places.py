"""What stands where a run reads or writes: links out of it, code in a model's folder, what a kill has left."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch

from snella.cli.main import main
from support.runs import TINY, train, write_images


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and a run on them."""
    folder = tmp_path_factory.mktemp("place")
    assert train(write_images(folder / "images", classes=2, count=6), folder / "run", "--epochs", "1") == 0
    return folder


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place / "run", tmp_path / "run"))


def line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("snella: ")
    return said[-1]


@pytest.mark.parametrize("name", ["evaluation", "checkpoints", "metrics.jsonl", ".adapter.partial", "predictions"])
def test_nothing_is_written_through_a_link(
    name: str, run: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    if name == "metrics.jsonl":
        shutil.copy(run / name, elsewhere)
        (run / name).unlink()
    else:
        elsewhere.mkdir()
        shutil.rmtree(run / name, ignore_errors=True)
    (run / name).symlink_to(elsewhere)
    (run / "summary.json").unlink()
    before = elsewhere.read_text() if elsewhere.is_file() else sorted(elsewhere.iterdir())
    command = ["evaluate", str(run)] if name == "evaluation" else ["train", "--out", str(run), "--resume"]
    assert main(command) == 2
    assert f"{name} is a link" in line(capsys)
    assert (elsewhere.read_text() if elsewhere.is_file() else sorted(elsewhere.iterdir())) == before


def test_overwrite_deletes_no_folder_that_is_not_a_run(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = run.with_name(".run.replaced")
    mine.mkdir()
    (mine / "thesis.txt").touch()
    assert train(place / "images", run, "--overwrite", "--epochs", "1") == 2
    assert f"{mine} is in the way and is not a run folder" in line(capsys)
    assert (mine / "thesis.txt").exists()
    assert (run / "summary.json").exists()


def test_what_a_kill_has_left_goes_at_the_next_resume(run: Path, place: Path) -> None:
    (run / ".curves.png.partial").touch()
    (run / ".adapter.discarded").mkdir()
    (run / "summary.json").unlink()
    assert main(["train", "--out", str(run), "--resume"]) == 0
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("flags", [(), ("--resume",)])
def test_a_kill_before_the_first_settings_stood(flags: tuple[str, ...], place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.yaml.partial").write_text("lr: 0.")
    assert train(place / "images", run, "--epochs", "1", *flags) == 0


def test_code_in_a_models_folder_is_neither_run_nor_asked_about(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, marker = tmp_path / "model", tmp_path / "code-was-run"
    model.mkdir()
    config = {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "code.Mine", "AutoModelForImageClassification": "code.M"},
    }
    (model / "config.json").write_text(json.dumps(config))
    (model / "code.py").write_text(f"open({str(marker)!r}, 'w')\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\ny\n"))
    flags = [flag for flag in TINY if flag != "--no-pretrained"]
    arguments = ["train", "--data", str(place / "images"), "--out", str(tmp_path / "run"), *flags]
    assert main([*arguments, "--backbone", f"hf:{model}"]) == 2
    said = line(capsys)
    assert "it needs code of its own, which is not run" in said
    assert "trust_remote_code" not in said
    assert not marker.exists()
    assert not (tmp_path / "run").exists()


def test_weights_that_would_run_code_are_not_advised(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": Path("x")}, tmp_path / "w.pth")
    assert train(place / "images", tmp_path / "run", "--checkpoint", str(tmp_path / "w.pth")) == 2
    said = line(capsys)
    assert "save the model's state_dict() alone" in said
    assert "weights_only" not in said
