"""A run that stands already, or was stopped: kept, replaced, or gone on with to the same bits."""

from __future__ import annotations

import re
import shlex
import signal
from pathlib import Path

import pytest

import snella.runs.train
from snella.cli.main import main
from snella.runs.folder import alone_in
from support.runs import adapter, read, same, stop_after_first_checkpoint, train


@pytest.mark.parametrize("flags", [[], ["--method", "linear"]])
def test_an_existing_run_is_kept_unless_asked(
    flags: list[str], images: Path, spoilable: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (spoilable / "summary.json").read_text()
    assert train(images, spoilable, *flags) == 2
    assert "--resume goes on with it, --overwrite replaces it" in capsys.readouterr().err
    assert (spoilable / "summary.json").read_text() == before


@pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
def test_a_run_that_is_under_way_elsewhere_is_left_alone(
    flag: str, images: Path, spoilable: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (spoilable / "summary.json").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in spoilable.iterdir()}
    with alone_in(spoilable, "training"):
        assert train(images, spoilable, flag) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message == f"snella: another training is at work in {spoilable}; wait for it, or choose another --out"
    assert {path.name: path.stat().st_mtime_ns for path in spoilable.iterdir()} == before


def test_overwrite_keeps_the_old_run_until_the_new_one_starts(
    images: Path, spoilable: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (spoilable / "summary.json").read_text()
    assert train(images, spoilable, "--overwrite", "--target-modules", "qvk") == 2
    assert train("nowhere", spoilable, "--overwrite") == 2
    assert (spoilable / "summary.json").read_text() == before
    assert train(images, spoilable, "--overwrite", "--method", "linear") == 0
    assert read(spoilable / "adapter" / "snella.json")["method"] == "linear"
    assert {path.name for path in spoilable.parent.iterdir()} == {"run"}


def test_stopped_after_an_overwrite_what_was_trained_is_kept(
    images: Path, spoilable: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(snella.runs.train, "_finish", stopped)
    assert train(images, spoilable, "--overwrite") == 130
    assert f"this goes on: snella train --recipe {spoilable / 'config.yaml'} --out" in capsys.readouterr().err
    monkeypatch.setattr(snella.runs.train, "fitted", stopped)
    assert train(images, spoilable, "--overwrite") == 130
    assert f"this goes on: snella train --data {images} " in capsys.readouterr().err


def test_lost_rows_do_not_keep_a_run_from_its_end(images: Path, spoilable: Path) -> None:
    summary = read(spoilable / "summary.json")
    for kept in (4, 0):
        (spoilable / "summary.json").unlink()
        rows = (spoilable / "metrics.jsonl").read_text().splitlines(keepends=True)
        (spoilable / "metrics.jsonl").write_text("".join(rows[:kept]))
        assert train(images, spoilable, "--resume") == 0
        assert read(spoilable / "summary.json")["test"] == summary["test"]


def test_resume_of_a_finished_run_says_so(images: Path, spoilable: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (spoilable / "summary.json").read_text()
    assert train(images, spoilable, "--resume") == 0
    assert "is finished" in capsys.readouterr().out
    assert (spoilable / "summary.json").read_text() == before


def test_resume_of_nothing_starts_from_the_beginning(images: Path, snella_run: Path, tmp_path: Path) -> None:
    assert train(images, tmp_path / "run", "--resume") == 0
    assert same(adapter(snella_run), adapter(tmp_path / "run"))


def test_resume_with_other_settings_says_which(
    images: Path, spoilable: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (spoilable / "summary.json").unlink()
    assert train(images, spoilable, "--resume", "--lr", "0.5", "--epochs", "7") == 2
    error = capsys.readouterr().err
    assert "--lr was 0.003, is 0.5" in error
    assert "--epochs was 2, is 7" in error


def test_settings_that_decide_nothing_may_differ_at_a_resume(images: Path, spoilable: Path) -> None:
    (spoilable / "summary.json").unlink()
    assert train(images, spoilable, "--resume", "--checkpoint-every", "100", "--workers", "1") == 0


STOPPED = ["--epochs", "6", "--checkpoint-every", "1", "--ema", "0.9", "--mixup", "0.2", "--max-travel", "0.5"]


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(images, folder, *STOPPED) == 0
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_to_the_same_bits(
    number: int, whole: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    thread = stop_after_first_checkpoint(run, number)
    stopped = train(images, run, *STOPPED)
    thread.join()
    assert stopped == 128 + number
    assert not (run / "summary.json").exists()
    command = re.search(r"snella: stopped; this goes on: (snella train .*)\n", capsys.readouterr().err)
    assert command is not None
    assert main(shlex.split(command[1])[1:]) == 0
    assert same(adapter(run), adapter(whole))
    timed = {"seconds", "peak_memory_bytes"}
    first, second = (read(folder / "summary.json") for folder in (whole, run))
    assert {k: v for k, v in first.items() if k not in timed} == {k: v for k, v in second.items() if k not in timed}


def test_out_alone_is_enough_to_resume(images: Path, spoilable: Path, snella_run: Path) -> None:
    (spoilable / "summary.json").unlink()
    assert main(["train", "--resume", "--out", str(spoilable)]) == 0
    assert same(adapter(spoilable), adapter(snella_run))
