"""Who may work in a folder."""

from __future__ import annotations

from pathlib import Path

import filelock
import pytest

from snella.config.schema import TrainConfig
from snella.errors import UserError
from snella.runs.folder import alone_in, check_claim, claim


def test_one_at_a_time_and_nothing_is_left(tmp_path):
    for _ in range(2):
        refused = pytest.raises(UserError, match="another training is at work in")
        with alone_in(tmp_path, "training"), refused, alone_in(tmp_path, "training"):
            pass
        assert not any(tmp_path.iterdir())


def test_a_run_that_came_meanwhile_is_left_alone(tmp_path):
    config, folder = TrainConfig.of(data="x"), tmp_path / "run"
    check_claim(folder, config)
    check_claim(folder, config)  # both find nothing there
    claim(folder, config)
    (folder / "checkpoints").mkdir()
    with pytest.raises(UserError, match="exists: --resume goes on with it"):
        claim(folder, config)
    assert (folder / "checkpoints").is_dir()
    with alone_in(folder, "training"), pytest.raises(UserError, match="another training is at work"):
        claim(folder, config.changed(overwrite=True))
    assert (folder / "checkpoints").is_dir()


def test_the_folder_we_are_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    claim(Path("."), TrainConfig.of(data="x"))
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    for inside in (tmp_path, tmp_path / "deeper"):
        inside.mkdir(exist_ok=True)
        monkeypatch.chdir(inside)
        with pytest.raises(UserError, match="cannot be replaced from inside it"):
            check_claim(tmp_path, TrainConfig.of(data="x", overwrite=True))


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
    def no_locks(*args: object, **kwargs: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(filelock.FileLock, "acquire", no_locks)
    reached = []
    with alone_in(tmp_path, "training"), alone_in(tmp_path, "training"):
        reached.append(True)
    assert reached


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    claim(folder, TrainConfig.of(data="d", out=str(folder)))
    return folder


@pytest.mark.parametrize("field", ["data", "checkpoint", "backbone"])
def test_what_a_run_reads_is_not_replaced_with_its_folder(field: str, run: Path) -> None:
    (run / "mine").mkdir()
    (run / "mine" / "thesis.txt").touch()
    value = f"hf:{run}/mine" if field == "backbone" else f"{run}/mine"
    again = TrainConfig.of(data="d", out=str(run), overwrite=True).changed(**{field: value})
    with pytest.raises(UserError, match=r"--overwrite would delete .*mine, which this run reads"):
        check_claim(run, again)
    assert (run / "mine" / "thesis.txt").exists()


def test_a_link_to_a_run_folder_stays_one(run: Path, tmp_path: Path) -> None:
    (run / "summary.json").touch()
    link = tmp_path / "link"
    link.symlink_to(run)
    claim(link, TrainConfig.of(data="d", out=str(link), overwrite=True))
    assert link.is_symlink()
    assert [entry.name for entry in run.iterdir()] == ["config.yaml"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "run"]
