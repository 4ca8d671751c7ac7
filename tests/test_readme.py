"""The README's snippets run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import diffusers
import peft
import pytest
import tyro

import tiny_pipelines
from snella import SnellaConfig
from snella.cli import COMMANDS, Train

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny pipeline in the place of the one on the hub, and an adapter of it where the run would be."""
    monkeypatch.chdir(tmp_path)
    load = diffusers.DiffusionPipeline.from_pretrained
    folder = tiny_pipelines.write_sd(tmp_path / "pipeline")
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda name: load(folder))
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    peft.get_peft_model(unet, SnellaConfig(r=4)).save_pretrained(tmp_path / "runs" / "dog" / "adapter")
    pipeline, library = snippets("python")
    exec(compile(library, "README.md", "exec"), {})
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    names: dict[str, Any] = {}
    exec(compile(pipeline, "README.md", "exec"), names)
    assert names["image"].size == (16, 16)


def test_commands_exist_and_train_parses() -> None:
    lines = [line.split("#")[0] for snippet in snippets("bash") for line in snippet.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("snella ")]
    assert [command[0] for command in commands] == [
        *("train", "evaluate", "predict", "compare", "compare", "train", "predict", "train", "predict", "merge"),
    ]
    assert all(command[0] in COMMANDS for command in commands)
    trained = [tyro.cli(Train, args=command[1:]).config for command in commands if command[0] == "train"]
    assert [(config.task, config.data) for config in trained] == [
        ("classify", "photos/"),
        ("segment", "cells/"),
        ("generate", "my_dog/"),
    ]
    makefile = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
    for target in (shlex.split(line)[1] for line in lines if line.startswith("make ")):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
