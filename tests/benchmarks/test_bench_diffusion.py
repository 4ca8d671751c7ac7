"""Benchmarks of generation: memory on a UNet, and finished runs side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import diffusion, generated
from support import tiny_pipelines as tiny
from support.generation_runs import train, write_class_folders

SMALL = {**diffusion.SHAPES, "block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 32, "layers_per_block": 1}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusion, "SHAPES", SMALL)
    monkeypatch.setattr(diffusion, "PARAMETERS", sum(p.numel() for p in diffusion.build_unet(SMALL).parameters()))


@pytest.mark.usefixtures("small")
def test_memory_is_counted_by_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--size", "16", "--r", "4", "--methods", "full,lora,snella", "--out", str(tmp_path)]
    assert diffusion.main(flags) == 0
    (file,) = tmp_path.glob("*.json")
    rows: dict[str, Any] = {row["method"]: row for row in json.loads(file.read_text())["methods"]}
    assert rows.keys() == {"full", "lora", "snella"}
    assert 0 < rows["snella"]["memory"]["saved_bytes"] < rows["lora"]["memory"]["saved_bytes"]
    assert rows["full"]["memory"]["trainable"] > 10 * rows["lora"]["memory"]["trainable"]
    assert "snella" in capsys.readouterr().out


def test_the_unet_is_stable_diffusions() -> None:
    with torch.device("meta"):
        unet: nn.Module = diffusion.build_unet(diffusion.SHAPES)
    assert sum(p.numel() for p in unet.parameters()) == diffusion.PARAMETERS


@pytest.mark.parametrize("flags", [["--methods", "lorra"], ["--batch", "0"]])
def test_wrong_flags_are_a_line(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        diffusion.main(flags)
    assert end.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unet, data = tiny.write_unet(tmp_path / "unet", classes=2), write_class_folders(tmp_path / "data")
    runs = [tmp_path / method for method in ("lora", "linear")]
    assert all(train(data, unet, run, "--method", run.name) == 0 for run in runs)
    out = tmp_path / "methods.png"
    assert generated.main([*map(str, runs), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    loss = json.loads((runs[0] / "summary.json").read_text())["test"]["denoising_loss"]
    assert f"{loss:.4f}" in printed
    with Image.open(out) as picture:
        assert min(picture.size) > 100
    assert generated.main([str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err
