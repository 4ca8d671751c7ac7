"""A new method is one row and one builder: here is one, which the package knows nothing of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft import IA3Config, PeftConfig
from torch import nn

from snella.cli.main import main
from snella.config.method import METHODS, Method, MethodConfig
from snella.methods.layers import adapted_layers
from support.runs import train, write_images


def ia3(model: nn.Module, settings: MethodConfig, total_step: int | None) -> PeftConfig:
    """IA3 as PEFT has it: a factor for each output of a layer."""
    return IA3Config(**adapted_layers(model, settings), feedforward_modules=[])


def test_a_method_of_ones_own_trains_evaluates_and_merges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(METHODS, "ia3", Method("factors of outputs", usual_rate=1e-2, build=ia3))
    images, run = write_images(tmp_path / "images"), tmp_path / "run"
    assert train(images, run, "--method", "ia3", "--epochs", "1") == 0
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == "IA3"
    assert main(["evaluate", str(run)]) == 0
    assert main(["merge", str(run), "--out", str(tmp_path / "merged")]) == 0
    assert main(["train", "--help"]) == 0
    assert "ia3" in capsys.readouterr().out
    assert train(images, tmp_path / "other", "--method", "ia4") == 2
    assert "did you mean ia3?" in capsys.readouterr().err
