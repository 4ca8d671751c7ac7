"""Backbones are compared as methods are."""

from __future__ import annotations

from pathlib import Path

from snella.cli.main import main
from support.runs import MODEL, read

FLAGS = ["--seeds", "0", "--lr-grid", "1e-2", "--epochs", "2", "--batch-size", "8"]


def test_runs_of_each_backbone_have_a_folder_of_their_own(images, tmp_path, ran, capsys):
    flags = [*FLAGS, "--methods", "linear,lora", "--backbones", "test_vit,test_resnet"]
    command = ["compare", "--data", str(images), "--out", str(tmp_path), *flags, *MODEL[2:]]
    assert main(command) == 0
    names = [(backbone, method) for backbone in ("test_vit", "test_resnet") for method in ("linear", "lora")]
    assert ran == [f"{'/'.join(name)}/lr-0.01/seed-0{step}" for step in ("", ", test") for name in names]
    report = read(tmp_path / "compare.json")
    assert [(row["backbone"], row["method"]) for row in report["methods"]] == names
    for row in report["methods"]:
        assert read(Path(row["runs"][0]["folder"]) / "adapter/snella.json")["backbone"]["name"] == row["backbone"]
    shown = " ".join(capsys.readouterr().out.split())
    assert "test_resnet, linear" in shown
    assert "test_vit, test_resnet, 2 epochs" in shown
    assert main(command) == 0
    assert len(ran) == 2 * len(names)
