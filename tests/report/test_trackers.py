"""Trackers: what a training tells them, with the real packages where they are installed; and that none can end it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from rich.console import Console

from snella.config.loop import TRACKER_NAMES
from snella.config.schema import TrainConfig
from snella.errors import UserError
from snella.report import trackers
from snella.report.trackers import (
    TRACKERS,
    Place,
    Tracker,
    check_trackers,
    send_pictures,
    send_results,
    tracking,
)
from support.pictures import draw


class Diary(GeneralTracker):
    """Keeps what it is told."""

    name = "diary"
    requires_logging_directory = False
    told: list[Any]

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.told = [(place.folder, place.done)]
        self.fails = ""

    @property
    def tracker(self) -> list[Any]:
        return self.told

    def start(self) -> None:
        self._note("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._note("config", values["lr"])

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self._note("log", step, values)

    def picture(self, name: str, path: Path, step: int) -> None:
        self._note("picture", name, path.name, step)

    def artifact(self, name: str, path: Path) -> None:
        self._note("artifact", name, path.name)

    def finish(self) -> None:
        self._note("end")

    def _note(self, what: str, *facts: Any) -> None:
        if what == self.fails:
            raise OSError("no route to host")
        self.told.append((what, *facts))


@pytest.fixture
def diary(monkeypatch: pytest.MonkeyPatch) -> list[Diary]:
    """The diaries that `--tracker diary` keeps."""
    kept: list[Diary] = []

    def make(place: Place) -> Diary:
        kept.append(Diary(place))
        return kept[-1]

    monkeypatch.setitem(trackers.TRACKERS, "diary", Tracker("notebook", lambda: False, make))
    return kept


def tracked(name: str, folder: Path, done: int, body: Callable[[Accelerator], object], **settings: Any) -> str:
    """Track by one tracker while the body runs; returns what is printed."""
    accelerator = Accelerator(cpu=True)
    console = Console(width=300, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    config = TrainConfig.of(data="photos", tracker=name, **settings)
    with tracking(accelerator, config, folder, done, console):
        body(accelerator)
    assert accelerator.trackers == []
    return console.export_text()


def a_training(folder: Path, steps: tuple[int, ...] = (1, 2), *, adapter: bool = True) -> Callable[[Accelerator], None]:
    """Return what tells trackers of steps, a picture after each, and a result."""

    def body(accelerator: Accelerator) -> None:
        for step in steps:
            accelerator.log({"val/top1": step / 10}, step=step)
            send_pictures(accelerator, {"samples": draw(folder / "samples" / f"epoch-{step:03d}.png")}, step)
        draw(folder / "confusion.png")
        (folder / "report.html").write_text("<p>a report</p>")
        (folder / "adapter").mkdir(exist_ok=True)
        (folder / "adapter" / "snella.json").write_text("{}")
        send_results(accelerator, folder, {"test": {"top1": 0.75}}, steps[-1], adapter=adapter)

    return body


def test_every_name_has_a_row():
    assert tuple(TRACKERS) == TRACKER_NAMES


def test_a_new_tracker_is_a_row_and_hears_settings_metrics_pictures_and_results(tmp_path: Path, diary: list[Diary]):
    tracked("diary", tmp_path, 3, a_training(tmp_path, (4,)), lr=0.5)
    assert diary[0].told == [
        (tmp_path, 3),
        ("start",),
        ("config", 0.5),
        ("log", 4, {"val/top1": 0.4}),
        ("picture", "samples", "epoch-004.png", 4),
        ("log", 4, {"test/top1": 0.75}),
        ("picture", "confusion", "confusion.png", 4),
        ("artifact", "report", "report.html"),
        ("artifact", "adapter", "adapter"),
        ("end",),
    ]


def test_the_adapter_is_sent_only_where_it_is_asked_for(tmp_path: Path, diary: list[Diary]):
    tracked("diary", tmp_path, 0, a_training(tmp_path, adapter=False))
    assert [row[1] for row in diary[0].told if row[0] == "artifact"] == ["report"]


@pytest.mark.parametrize("fails", ["start", "config", "log", "picture", "artifact", "end"])
def test_a_tracker_that_fails_is_told_once_and_the_training_goes_on(
    tmp_path: Path, diary: list[Diary], monkeypatch: pytest.MonkeyPatch, fails: str
):
    monkeypatch.setattr(Diary, "fails", fails, raising=False)
    monkeypatch.setattr(Diary, "__init__", lambda self, place: setattr(self, "told", []))
    done: list[str] = []
    printed = tracked("diary", tmp_path, 0, lambda a: (a_training(tmp_path)(a), done.append("trained")))
    assert done == ["trained"]
    assert printed.splitlines() == ["diary failed (no route to host); the training goes on without it"]


def test_without_its_package_it_is_refused(diary: list[Diary]):
    loop = TrainConfig.of(tracker="diary").loop
    with pytest.raises(UserError, match=r"--tracker diary needs the package notebook; run: pip install 'snella\[note"):
        check_trackers(loop)


def test_tensorboard_has_metrics_pictures_and_settings_and_hides_what_a_lost_part_has_logged(tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert TrainConfig.of(tensorboard=True, tracker="wandb, tensorboard").loop.trackers == ("wandb", "tensorboard")
    for done, steps in ((0, (1, 2, 3)), (1, (2,))):  # went on from step 1
        tracked("tensorboard", tmp_path, done, a_training(tmp_path, steps))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, round(event.value, 3)) for event in events.Scalars("val/top1")] == [(1, 0.1), (2, 0.2)]
    assert [event.step for event in events.Images("samples")] == [1, 2]
    assert {"confusion", "samples"} <= set(events.Tags()["images"])
    assert "config/text_summary" in events.Tags()["tensors"]


def test_wandb_is_offline_in_the_run_folder_and_goes_on_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    printed = [tracked("wandb", tmp_path, done, a_training(tmp_path, (done + 1,))) for done in (0, 1)]
    identity = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    parts = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert [part.name.rpartition("-")[2] for part in parts] == [identity] * len(parts)
    assert "wandb: offline; wandb sync" in printed[0]
    kinds = {path.relative_to(parts[0] / "files" / "media").parts[0] for path in parts[0].rglob("media/*/*")}
    assert kinds == {"images"}
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("run-*.wandb"))
    assert all(word in written for word in (b"val/top1", b"test/top1", b"adapter-", b"report-", b"batch_size"))
    places = [*tmp_path.iterdir(), *tmp_path.glob("*/*")]
    assert not [path for path in places if path.is_symlink()]  # which snella check refuses


def test_wandb_never_asks_for_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("it asks"))
    monkeypatch.setattr("getpass.getpass", lambda *a, **k: pytest.fail("it asks"))
    printed = tracked("wandb", tmp_path, 0, a_training(tmp_path))
    assert printed.splitlines() == [
        "wandb failed (No API key configured. Use `wandb login` to log in); the training goes on without it"
    ]


def test_mlflow_has_a_store_in_the_run_folder_and_goes_on_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("mlflow")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for done in (0, 1):
        tracked("mlflow", tmp_path, done, a_training(tmp_path, (done + 1,)), lr=0.5)
    with sqlite3.connect(tmp_path / "mlflow" / "mlflow.db") as store:
        rows = store.execute("select key, value, step from metrics where key = 'val/top1' order by step").fetchall()
        assert rows == [("val/top1", 0.1, 1), ("val/top1", 0.2, 2)]
        assert store.execute("select count(*) from runs").fetchone() == (1,)
        assert store.execute("select value from params where key = 'lr'").fetchone() == ("0.5",)
    files = {path.name for path in (tmp_path / "mlflow" / "artifacts").rglob("*") if path.is_file()}
    assert files == {"epoch-001.png", "epoch-002.png", "confusion.png", "report.html", "snella.json"}


def test_trackio_has_a_store_and_goes_on_with_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for done in (0, 1):
        tracked("trackio", tmp_path, done, a_training(tmp_path, (done + 1,)), lr=0.5)
    from trackio.sqlite_storage import SQLiteStorage  # pyright: ignore[reportMissingImports]
    from trackio.utils import TRACKIO_DIR  # pyright: ignore[reportMissingImports]

    assert Path(TRACKIO_DIR).is_dir()
    (run,) = [name for name in SQLiteStorage.get_runs("snella") if name.startswith(tmp_path.name)]
    logged = SQLiteStorage.get_logs("snella", run)
    assert [(row["val/top1"], row["step"]) for row in logged if "val/top1" in row] == [(0.1, 1), (0.2, 2)]
    assert {key for row in logged for key in row} >= {"samples", "confusion", "test/top1"}
    assert SQLiteStorage.get_run_config("snella", run)["lr"] == 0.5
    assert capsys.readouterr().out == ""  # where --json prints
