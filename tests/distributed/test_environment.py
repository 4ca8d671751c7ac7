"""What the program that starts several processes says, and who may run as one of them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from snella.cli.main import main
from snella.config.schema import TrainConfig
from snella.distributed import environment
from snella.distributed.environment import (
    asked_of_accelerate,
    claimed_since_start,
    is_first_started,
    is_restarted,
    started_processes,
)
from snella.errors import UserError
from snella.runs.devices import check_several, make_accelerator


@pytest.mark.parametrize("size", ["", "two", "-1", "1" * 10])
def test_a_world_size_that_is_no_number_is_refused(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(UserError, match="should be a number of processes; unset it"):
        started_processes()


def test_commands_besides_train_are_refused_in_several_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for command in ("evaluate", "predict", "merge", "soup", "check", "data", "compare"):
        assert main([command, "x"]) == 2
        said = capsys.readouterr().err
        assert said == f"snella: snella {command} runs in one process, and 2 were started; leave out torchrun\n"
    with pytest.raises(UserError, match="this runs in one process, and 2 were started"):
        make_accelerator("cpu", "fp32")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"memory": "auto"}, "--memory looks at the memory of one process"),
        ({"batch_size": "auto"}, "--batch-size auto looks at"),
        ({"estimate": True}, "--estimate looks at"),
        ({"devices": 2}, "--devices 2 starts the processes itself"),
    ],
)
def test_what_looks_at_one_process_is_refused_in_several(
    settings: dict[str, object], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=expected):
        check_several(TrainConfig.of(data="x", **settings))


def test_a_program_does_not_start_processes() -> None:
    with pytest.raises(UserError, match="only the command line starts processes"):
        check_several(TrainConfig.of(data="x", devices=2))


def test_who_is_first_and_what_is_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    assert is_first_started()
    assert not is_restarted()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert not is_first_started()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert not is_restarted()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert is_restarted()


def test_a_run_of_this_launch_is_told_from_an_older_one(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    assert not claimed_since_start(file)
    file.touch()
    assert claimed_since_start(file)
    long_ago = time.time() - 10_000_000
    os.utime(file, (long_ago, long_ago))
    assert not claimed_since_start(file)


def test_what_accelerate_was_asked_for_is_read_from_its_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    called = tmp_path / "cmdline"
    monkeypatch.setattr(environment, "Path", lambda _: called)
    assert asked_of_accelerate() == 1
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    for words, asked in (("--num_processes\0" + "2", 2), ("--num-processes=4", 4), ("--num_processes\0" + "1", 1)):
        called.write_bytes(f"accelerate\0launch\0{words}\0snella\0train".encode())
        assert asked_of_accelerate() == asked
    monkeypatch.setenv("WORLD_SIZE", "2")  # on a GPU it starts them itself
    assert asked_of_accelerate() == 1
