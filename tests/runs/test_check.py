"""What changes under a run is told before anything is trained or tested, and what has moved can be named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

from snella.cli.main import main
from snella.ops import native
from support.runs import adapter, same, train, write_images


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and a run on them."""
    place = tmp_path_factory.mktemp("trained")
    assert train(write_images(place / "images", classes=2, count=8), place / "run") == 0
    return place


@pytest.fixture
def data(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "images", tmp_path / "images"))


@pytest.fixture
def run(trained: Path, data: Path, tmp_path: Path) -> Path:
    """A copy of the run, on a copy of its images, that lacks its last step: the test."""
    copy = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    (copy / "summary.json").unlink()
    settings = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(settings.replace(str(trained / "images"), str(data)))
    return copy


def relabelled(data: Path) -> str:
    (data / "c0" / "3.png").rename(data / "c1" / "30.png")
    return "gone: "


def renamed(data: Path) -> str:
    (data / "c0" / "3.png").rename(data / "c0" / "33.png")
    return "c0/33.png"


def another(data: Path) -> str:
    (data / "c0" / "3.png").write_bytes((data / "c0" / "3.png").read_bytes() + b" ")
    return "c0/3.png: "


@pytest.mark.parametrize("change", [relabelled, renamed, another])
def test_other_images_of_the_same_count_are_named(
    change: Callable[[Path], str], run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = change(data)
    before = (run / "start.json").read_bytes()
    for command in (["train", "--resume", "--out", str(run)], ["evaluate", str(run)]):
        assert main(command) == 2
        line = said(capsys)
        assert f"the data of {run} are not those that it was started with" in line
        assert expected in line
        assert "--resume --accept-data" in line
    assert (run / "start.json").read_bytes() == before
    if change is not relabelled:
        assert main(["train", "--resume", "--out", str(run), "--accept-data"]) == 0
        assert main(["evaluate", str(run)]) == 0


def test_a_run_of_a_few_shots_knows_them(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Val and test are those of a run on all images; another number is refused, and so are images that it drew."""
    out = tmp_path / "few"
    assert train(data, out, "--shots", "2") == 0
    assert "train: 2 images of each class at most" in capsys.readouterr().out
    few = json.loads((out / "start.json").read_text())
    whole = json.loads((trained / "run" / "start.json").read_text())
    assert few["images"] == {**whole["images"], "train": 4}
    assert set(few["entries"]["train"]) < set(whole["entries"]["train"])
    assert all(few["entries"][split] == whole["entries"][split] for split in ("val", "test"))
    assert main(["check", str(out)]) == 0
    (out / "summary.json").unlink()
    capsys.readouterr()
    for other in (["--shots", "3"], ["--recipe", str(out / "config.yaml"), "--shots", "1"]):
        assert main(["train", "--data", str(data), "--resume", "--out", str(out), *other]) == 2
        assert "--shots was 2, is" in said(capsys)
    drawn = next(iter(few["entries"]["train"]))
    (data / drawn).rename(data / drawn.replace(".png", "x.png"))
    assert main(["train", "--resume", "--out", str(out)]) == 2
    assert "are not those that it was started with" in said(capsys)


def test_a_run_without_a_listing_goes_on_as_before(run: Path, data: Path) -> None:
    (run / "start.json").unlink()
    renamed(data)
    assert main(["train", "--resume", "--out", str(run)]) == 0
    assert (run / "start.json").is_file()


def test_data_that_have_moved(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = adapter(run)
    moved = shutil.move(data, tmp_path / "elsewhere")
    assert main(["train", "--resume", "--out", str(run)]) == 2
    assert "does not exist" in said(capsys)
    assert main(["evaluate", str(run), "--data", str(moved)]) == 0
    assert "has the images that" in capsys.readouterr().out
    evaluation = json.loads((run / "evaluation" / "elsewhere.json").read_text())
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--resume", "--out", "run", "--data", "elsewhere"]) == 0
    assert same(adapter(run), tuned)
    assert main(["evaluate", "run"]) == 0
    assert json.loads((run / "evaluation" / "test.json").read_text())["metrics"] == evaluation["metrics"]
    monkeypatch.chdir("/")  # the place is known from anywhere
    assert main(["train", "--resume", "--out", str(run)]) == 0
    moved = shutil.move(moved, tmp_path / "further")
    assert main(["train", "--resume", "--out", str(run), "--data", str(moved)]) == 0  # of a finished run
    assert "what it reads is written down anew" in capsys.readouterr().out
    assert main(["evaluate", str(run)]) == 0
    renamed(Path(moved))
    moved = shutil.move(moved, tmp_path / "images")
    assert main(["train", "--resume", "--out", str(run), "--data", str(moved)]) == 2
    assert "are not those that it was started with" in said(capsys)


def test_relative_data_is_found_from_another_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train("images", "run", "--epochs", "1") == 0
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    write_images(tmp_path / "below" / "images", classes=3, count=4)  # others of the same name
    assert main(["evaluate", "../run"]) == 0
    (tmp_path / "run" / "summary.json").unlink()
    assert main(["train", "--resume", "--out", "../run"]) == 0


def test_a_file_of_weights_that_has_moved(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(5)
    weights, run = tmp_path / "w.pth", tmp_path / "run"
    torch.save(timm.create_model("test_vit", img_size=32, num_classes=2).state_dict(), weights)
    data = trained / "images"
    assert train(data, run, "--checkpoint", str(weights), "--epochs", "1") == 0
    moved = Path(shutil.move(weights, tmp_path / "moved.pth"))
    assert main(["evaluate", str(run)]) == 2
    assert "w.pth" in said(capsys)
    assert main(["train", "--resume", "--out", str(run), "--checkpoint", str(moved)]) == 0
    assert main(["evaluate", str(run)]) == 0
    torch.manual_seed(6)
    torch.save(timm.create_model("test_vit", img_size=32, num_classes=2).state_dict(), tmp_path / "other.pth")
    before = (run / "config.yaml").read_bytes()
    assert main(["train", "--resume", "--out", str(run), "--checkpoint", str(tmp_path / "other.pth")]) == 2
    assert "is not what" in said(capsys)
    assert (run / "config.yaml").read_bytes() == before


def test_another_way_to_compute_is_told(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "arithmetic", lambda: "an abacus")
    assert main(["train", "--resume", "--out", str(run)]) == 0
    assert "and are now by an abacus: results differ in their last bits" in capsys.readouterr().out


# ---- snella check RUN


def test_a_whole_run_is_well(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(run)]) == 1  # not finished
    found = capsys.readouterr().out
    assert "wrong  run: not finished; go on with: snella train" in found
    assert found.count("wrong") == 1
    assert main(["train", "--resume", "--out", str(run)]) == 0
    capsys.readouterr()
    assert main(["check", str(run)]) == 0
    found = capsys.readouterr().out
    assert "wrong" not in found
    for part in (
        "run: finished",
        "checkpoints: 2, whole and finite",
        "adapter: finite, complete",
        "data: ",
        "versions: ",
    ):
        assert f"ok     {part}" in found
    assert "budgets: " in found
    renamed(data)
    assert main(["check", str(run)]) == 1
    assert "wrong  data: the data of" in capsys.readouterr().out


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("summary.json", "records"),
        ("metrics.jsonl", "records"),
        ("allocation.jsonl", "records"),
        ("start.json", "data"),
        ("adapter/snella.json", "adapter"),
        ("adapter/adapter_model.safetensors", "adapter"),
        ("base.safetensors", "adapter"),
        ("checkpoints/step-00000003/tuned.safetensors", "checkpoints"),
    ],
)
def test_what_is_damaged_is_named(
    name: str, part: str, snella_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(snella_run, tmp_path / "run"))
    cut(run / name)
    assert main(["check", str(run)]) == 1
    found = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"wrong  {part}: ")]
    assert len(found) == 1
    assert name.split("/")[-1] in found[0] or "step-00000003" in found[0]


def test_a_link_in_a_run_is_told(snella_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(snella_run, tmp_path / "run"))
    shutil.rmtree(run / "evaluation", ignore_errors=True)  # of another test
    (run / "evaluation").symlink_to(tmp_path)
    assert main(["check", str(run)]) == 1
    assert "evaluation is a link" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "none")]) == 2
