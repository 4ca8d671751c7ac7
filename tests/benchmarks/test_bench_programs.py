"""Other programs on the same files: what is written for them, and that the scripts for those installed here run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.programs import bed, filling, run, with_snella, with_transformers
from snella.config.schema import TrainConfig
from snella.errors import UserError
from support.backbones import build, spec
from support.runs import write_images

FLAGS = ["--no-pretrained", "--r", "4", "--lr", "1e-2"]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    images = write_images(folder / "images")
    config = TrainConfig.of(data=str(images), backbone="test_vit", pretrained=False, image_size=32, augment="none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bed, "read_suite_task", lambda name, data: config)
        bed.main(["packages/any", str(folder / "bed")])
        with pytest.raises(UserError, match="exists"):
            bed.main(["packages/any", str(folder / "bed")])
    return folder


def test_a_bed_has_the_images_of_the_run_and_the_backbones_weights(task: Path) -> None:
    about = json.loads((task / "bed" / "bed.json").read_text())
    assert (about["architecture"], about["image_size"], about["classes"], about["augment"]) == (
        "test_vit",
        32,
        3,
        "none",
    )
    written = [Image.open(path).tobytes() for path in (task / "bed").glob("*/*/*.png")]
    assert sorted(written) == sorted(Image.open(path).tobytes() for path in (task / "images").glob("*/*.png"))
    assert sum(about["images"].values()) == len(written)
    weights, expected = load_file(task / "bed" / "weights.safetensors"), build(spec(image_size=32)).state_dict()
    assert expected.keys() - weights.keys() == {"head.weight", "head.bias"}
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())


def test_the_scripts_start_from_those_weights(task: Path) -> None:
    about = json.loads((task / "bed" / "bed.json").read_text())
    model = with_transformers.Classifier(task / "bed", about)
    expected = build(spec(image_size=32)).state_dict()
    found = {name.removeprefix("model."): value for name, value in model.state_dict().items()}
    assert {name for name in found if not torch.equal(found[name], expected[name])} <= {"head.weight", "head.bias"}
    tuned = {n.split("lora_")[0] for n, p in with_transformers.adapted(model).named_parameters() if p.requires_grad}
    assert all("qkv" in name or "head" in name for name in tuned)


@pytest.mark.parametrize("guide", ["trainer", "peft"])
def test_a_guide_of_transformers_runs(guide: str, task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_transformers.main(guide, task / "bed", 1.0, 0)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 <= found["top1"] <= 1
    assert found["epochs"] >= 1
    assert found["versions"].keys() >= {"transformers", "peft"}


def test_this_program_runs(task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_snella.main(task / "bed", 1.0, 0, FLAGS)
    assert 0 <= json.loads(capsys.readouterr().out.splitlines()[-1])["top1"] <= 1


def test_what_is_there_is_not_run_again_and_the_table_has_the_means(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = iter([0.5, 0.7, 0.4])
    monkeypatch.setattr(run, "run", lambda *given: {"top1": next(scores)})
    words = [str(task / "bed"), "--out", str(tmp_path / "found.jsonl"), "--seconds", "1"]
    run.main([*words, "--programs", "snella", "--seeds", "0,1"])
    run.main([*words, "--programs", "snella,peft", "--seeds", "0"])
    assert capsys.readouterr().out.splitlines()[-2:] == ["| snella | 60.0 | 60.0 |", "| peft | 40.0 | 40.0 |"]


def test_a_program_that_fails_says_why(task: Path, tmp_path: Path) -> None:
    found = run.run("python3", "trainer", tmp_path / "nowhere", 1.0, 0, [])
    assert set(found) == {"error"}
    assert found["error"]


def test_the_epochs_fill_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("benchmarks.programs.filling.time.perf_counter", lambda: now[0])

    def train(epochs: int) -> str:
        now[0] += 10 + 2 * epochs  # seconds
        return f"{epochs} epochs"

    found, epochs, took = filling.filled(train, 60)
    assert found == f"{epochs} epochs"
    assert 45 <= took <= 62
    assert took == 10 + 2 * epochs
