"""A run that is damaged, unfinished or of another backbone is not loaded, and its error names the file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from snella.cli.main import main


def test_an_adapter_for_another_backbone_is_refused(spoilable: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = load_file(spoilable / "base.safetensors")
    name = next(name for name in weights if name.endswith("qkv.weight"))
    save_file(weights | {name: weights[name] + 1e-3}, spoilable / "base.safetensors")
    for command in (["evaluate"], ["predict"], ["merge", "--out", str(spoilable / "m")]):
        assert main([command[0], str(spoilable), *command[1:]]) == 2
        assert "is an adapter for another backbone" in capsys.readouterr().err


def test_a_run_without_an_adapter_says_how_to_finish_it(spoilable: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(spoilable / "adapter")
    for command in (["evaluate"], ["predict"], ["merge", "--out", str(spoilable / "m")]):
        assert main([command[0], str(spoilable), *command[1:]]) == 2
        error = capsys.readouterr().err
        assert "has no trained adapter yet" in error
        assert f"--out {spoilable} --resume" in error


DAMAGED = [
    *((f"adapter/{name}", delete) for name in ("adapter_model.safetensors", "snella.json") for delete in (False, True)),
    ("base.safetensors", False),
]


@pytest.mark.parametrize(("name", "delete"), DAMAGED)
def test_damaged_files_are_named(name: str, delete: bool, spoilable: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = spoilable / name
    if delete:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:50])
    assert main(["evaluate", str(spoilable)]) == 2
    error = capsys.readouterr().err
    assert str(spoilable) in error
    assert len(error.splitlines()) == 1
