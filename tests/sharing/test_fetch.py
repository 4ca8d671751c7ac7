"""A run named OWNER/NAME: downloaded once, verified, and as good as the folder that was pushed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from snella.cli.main import main
from snella.sharing import fetch
from snella.sharing.fetch import run_folder_of
from support.hub import Hub

NAME = "ann/flowers-snella"


@pytest.fixture
def pushed(run: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    assert main(["push", str(run), NAME]) == 0
    hub.asked.clear()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return hub


def printed(args: list[str], capsys: pytest.CaptureFixture[str]) -> object:
    capsys.readouterr()
    assert main(args) == 0
    return json.loads(capsys.readouterr().out)


def test_it_predicts_as_the_run_does(pushed: Hub, run: Path, images: Path, capsys: pytest.CaptureFixture[str]):
    picture = str(images / "c1" / "3.png")
    assert printed(["predict", NAME, picture, "--json"], capsys) == printed(
        ["predict", str(run), picture, "--json"], capsys
    )


def test_it_is_evaluated_on_the_test_split_of_its_own_data_where_that_is_named(
    pushed: Hub, run: Path, images: Path, capsys: pytest.CaptureFixture[str]
):
    found = printed(["evaluate", NAME, "--data", str(images), "--json"], capsys)
    own = printed(["evaluate", str(run), "--json"], capsys)
    assert isinstance(found, dict)
    assert isinstance(own, dict)
    assert found["metrics"] == own["metrics"]


def test_it_is_merged(pushed: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = printed(["merge", NAME, "--out", str(tmp_path / "merged"), "--json"], capsys)
    assert isinstance(found, dict)
    assert "local-dir" in found["load"]
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_without_data_it_says_so(pushed: Hub, capsys: pytest.CaptureFixture[str]):
    for command in ("evaluate", "predict"):
        assert main([command, NAME]) == 2
        assert "this run has no data with it, as none from the hub has; name some" in capsys.readouterr().err


def test_it_is_downloaded_once_into_the_hub_s_cache_and_works_without_a_connection(
    pushed: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = run_folder_of(NAME)
    assert folder == run_folder_of(f"hf:{NAME}") == run_folder_of(f"{NAME}@main")
    assert sum("/resolve/" in line and line.startswith("GET") for line in pushed.asked) == len(
        [path for path in folder.rglob("*") if path.is_file()]
    )
    assert list((tmp_path / "hub-cache").glob("models--ann--flowers-snella/snapshots/*/config.yaml"))
    assert not [path for path in folder.rglob("*") if path.is_symlink()]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody is there
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")
    assert run_folder_of(NAME) == folder
    assert main(["predict", "ann/another"]) == 2
    assert "ann/another on the hub cannot be reached" in capsys.readouterr().err


def test_a_revision_is_pinned(pushed: Hub):
    old = pushed.repositories[NAME].branches["main"]
    first = run_folder_of(NAME)
    pushed.commit(NAME, {"summary.json": b"{}"})
    assert run_folder_of(f"{NAME}@{old}") == first
    assert run_folder_of(NAME) != first


def test_a_folder_of_that_name_wins(pushed: Hub, monkeypatch: pytest.MonkeyPatch):
    Path(NAME).mkdir(parents=True)
    assert run_folder_of(NAME) == Path(NAME)
    assert pushed.asked == []
    assert run_folder_of(f"hf:{NAME}") != Path(NAME)


def test_a_folder_that_is_not_there_beside_others_is_refused_with_both_readings(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "runs/flowrs"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "runs/flowrs has two readings" in line
    assert "write hf:runs/flowrs for the hub's" in line
    assert hub.asked == []


def test_what_the_hub_does_not_have_is_a_line(
    hub: Hub, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "ann/nothing"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "ann/nothing on the hub: there is no such repository" in line


def test_a_file_that_was_altered_is_refused(pushed: Hub, capsys: pytest.CaptureFixture[str]):
    (weights,) = (name for name in pushed.newest(NAME) if name.startswith("adapter/") and name.endswith(".safetensors"))
    pushed.commit(NAME, {weights: pushed.newest(NAME)[weights][:-4] + b"abcd"})
    assert main(["merge", NAME, "--out", "merged"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "was altered: it does not match its checksum" in line
    assert not list((fetch.cache_folder() / "hub").glob("*/*/config.yaml"))


def test_what_is_not_a_run_is_refused(pushed: Hub, run: Path, capsys: pytest.CaptureFixture[str]):
    pushed.repositories["ann/other"] = type(pushed.repositories[NAME])(None)
    pushed.commit("ann/other", {"model.bin": b"abc"})
    assert main(["predict", "ann/other"]) == 2
    assert "ann/other on the hub is not a run of snella" in capsys.readouterr().err
