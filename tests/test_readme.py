"""The README's snippets run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import tyro

from snella.cli import COMMANDS, Train

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert snippets("python")
    for snippet in snippets("python"):
        exec(compile(snippet, "README.md", "exec"), {})
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_commands_exist_and_train_parses() -> None:
    lines = [line.split("#")[0] for snippet in snippets("bash") for line in snippet.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("snella ")]
    assert [command[0] for command in commands] == ["train", "evaluate", "predict", "train", "predict"]
    assert all(command[0] in COMMANDS for command in commands)
    trained = [tyro.cli(Train, args=command[1:]).config for command in commands if command[0] == "train"]
    assert [(config.task, config.data) for config in trained] == [("classify", "photos/"), ("segment", "cells/")]
    makefile = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
    for target in (shlex.split(line)[1] for line in lines if line.startswith("make ")):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
