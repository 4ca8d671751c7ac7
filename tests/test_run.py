"""A run from the command line to its results, and what wrong input comes to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from snella.cli import main
from snella.trained import load_run


def write_images(root: Path, classes: int = 3, count: int = 12) -> Path:
    """Noisy images whose channel tells the class."""
    random = np.random.default_rng(0)
    for label in range(classes):
        folder = root / f"c{label}"
        folder.mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 90, (40, 40, 3))
            pixels[..., label] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_images(tmp_path / "data")


def train(data: Path, out: Path, *flags: str) -> int:
    model = ["--backbone", "test_vit", "--no-pretrained", "--image-size", "32", "--r", "4", "--device", "cpu"]
    return main(["train", "--data", str(data), "--out", str(out), *model, "--epochs", "2", "--batch-size", "8", *flags])


@pytest.mark.parametrize("method", ["snella", "full"])
def test_train_evaluate_predict_merge(method: str, data: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    assert train(data, run, "--method", method, "--lr", "3e-3") == 0
    names = {path.name for path in run.iterdir()}
    expected = {"config.yaml", "adapter", "checkpoints", "metrics.jsonl", "summary.json", "confusion.png", "curves.png"}
    assert expected <= names
    assert ("allocation.png" in names) == (method == "snella")
    summary = json.loads((run / "summary.json").read_text())
    assert {"top1", "top5", "balanced_accuracy"} <= summary["test"].keys()
    assert summary["trainable_parameters"] > 0

    assert main(["evaluate", str(run), "--device", "cpu"]) == 0
    again = json.loads((run / "evaluation" / "test.json").read_text())
    assert again["metrics"]["top1"] == pytest.approx(summary["test"]["top1"])

    (data / "c0" / "broken.png").write_bytes(b"no image")
    capsys.readouterr()
    files = [str(data / "c0" / name) for name in ("0.png", "broken.png")]
    assert main(["predict", str(run), *files, "--json", "--device", "cpu"]) == 1
    shown = capsys.readouterr()
    (row,) = json.loads(shown.out)
    assert row["image"] == files[0]
    assert sum(row["probabilities"].values()) == pytest.approx(1)
    assert "broken.png" in shown.err

    assert main(["merge", str(run), "--out", str(tmp_path / "merged")]) == 0
    plain = timm.create_model(f"local-dir:{tmp_path / 'merged'}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), load_run(run, "cpu").model(images), rtol=1e-4, atol=1e-4)


def test_the_same_seed_gives_the_same_bits_and_a_finished_run_is_kept(data: Path, tmp_path: Path, capsys) -> None:
    for name in ("a", "b"):
        assert train(data, tmp_path / name) == 0
    first, second = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("a", "b"))
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
    before = (tmp_path / "a" / "summary.json").read_text()
    assert train(data, tmp_path / "a") == 2
    assert train(data, tmp_path / "a", "--resume") == 0
    assert "is finished" in capsys.readouterr().out
    assert (tmp_path / "a" / "summary.json").read_text() == before


def test_an_adapter_for_another_backbone_is_refused(data: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    assert train(data, run) == 0
    about = json.loads((run / "adapter" / "snella.json").read_text())
    (run / "adapter" / "snella.json").write_text(json.dumps(about | {"fingerprint": "0"}))
    assert main(["evaluate", str(run)]) == 2
    assert "is an adapter for another backbone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--r", "7"], "--r 7 is not divisible by --heads 2"),
        (["--target-sparsity", "1.5"], "--target-sparsity 1.5 is outside"),
        (["--backbone", "vit_bse_patch16_224"], "vit_base_patch16_224"),
        (["--method", "lorra"], "did you mean lora"),
        (["--lerning-rate", "1"], "unknown flag --lerning-rate"),
        (["--target-modules", "qvk"], "choose from: patch_embed.proj, blocks.*.attn.qkv"),
        (["--device", "gpu"], "--device gpu is unknown"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    flags: list[str], message: str, data: Path, tmp_path: Path, capsys
) -> None:
    assert train(data, tmp_path / "run", *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) <= 2
    assert not any(sign in error for sign in "│╭Traceback"[:2])
    assert not (tmp_path / "run").exists()


def test_bad_data_is_named(tmp_path: Path, capsys) -> None:
    one = write_images(tmp_path / "one", classes=1)
    assert train(one, tmp_path / "run") == 2
    broken = tmp_path / "broken"
    for label in "ab":
        (broken / label).mkdir(parents=True)
        (broken / label / "0.png").write_bytes(b"")
    assert train(broken, tmp_path / "run") == 2
    assert main(["evaluate", str(tmp_path)]) == 2
    assert not (tmp_path / "run").exists()
    assert len(capsys.readouterr().err.strip().splitlines()) <= 6
