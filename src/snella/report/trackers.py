"""Who else hears how a run goes, beside its files: trackers, each a class of accelerate's and a row in `TRACKERS`.

               config   metrics   pictures   report   adapter   goes on after --resume   where, unless told otherwise
tensorboard     text      yes       yes        -         -       yes, without the lost part   RUN/tensorboard
wandb           yes       yes       yes       yes       yes      the same run                 RUN/wandb, offline
mlflow          yes       yes       yes       yes       yes      the same run                 RUN/mlflow
trackio         yes       yes       yes       yes       yes      the same run                 RUN/trackio

None is asked for a login, none is sent anything over a network unless its own environment variables say so, and none
can end a training: one that fails is told once and hears no more.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import (
    GeneralTracker,
    MLflowTracker,
    TensorBoardTracker,
    TrackioTracker,
    WandBTracker,
)
from accelerate.utils import is_mlflow_available, is_tensorboard_available, is_trackio_available, is_wandb_available
from PIL import Image
from rich.console import Console

from snella.config.loop import LoopConfig
from snella.config.schema import TrainConfig
from snella.console import print_line
from snella.errors import UserError, short_reason
from snella.files import write_json
from snella.json_files import read_json

PROJECT = "snella"  # what the trackers call the project, or the experiment, that runs belong to
TRACKED = "trackers.json"  # in the run folder: tracker -> its name of the run, to go on with


@dataclass(frozen=True)
class Place:
    """Where a tracker starts."""

    folder: Path  # of the run, absolute
    done: int  # optimiser steps done in earlier parts of it
    known: str | None  # what the tracker called the run then

    @property
    def name(self) -> str:
        return self.folder.name


class TensorBoardRun(TensorBoardTracker):
    """TensorBoard, which has no files: report and adapter are left out."""

    def __init__(self, place: Place) -> None:
        super().__init__("tensorboard", place.folder, purge_step=place.done + 1)  # hides what a lost part has logged

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.writer.add_text("config", "\n".join(f"    {name}: {value}" for name, value in values.items()))

    def picture(self, name: str, path: Path, step: int) -> None:
        with Image.open(path) as opened:
            self.writer.add_image(name, np.asarray(opened.convert("RGB")), step, dataformats="HWC")

    def where(self) -> str:
        return f"tensorboard --logdir {self.logging_dir} shows it"


class WandBRun(WandBTracker):
    """Weights & Biases: offline unless WANDB_MODE or WANDB_API_KEY are set.

    The step is a metric, by which all others are drawn: wandb's own can only grow, and a resume goes back.
    """

    def __init__(self, place: Place) -> None:
        self.id = place.known or secrets.token_hex(4)
        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        # silent: it never asks; symlink: a run folder has no links; console: what is printed is the terminal's
        settings = {"silent": True, "symlink": False, "console": "off", "disable_git": True, "disable_code": True}
        super().__init__(
            os.environ.get("WANDB_PROJECT", PROJECT),
            name=place.name,
            dir=str(place.folder),
            mode=mode,
            id=self.id,
            resume="allow",
            settings=settings,
        )

    def start(self) -> None:
        super().start()
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self.run.log({**values, "step": step}, **kwargs)

    def picture(self, name: str, path: Path, step: int) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self.log({name: wandb.Image(str(path))}, step)

    def artifact(self, name: str, path: Path) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        artifact = wandb.Artifact(f"{name}-{self.id}", type="model" if name == "adapter" else name)
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            artifact.add_file(str(file))
        self.run.log_artifact(artifact)

    def where(self) -> str:
        if self.run.settings.mode != "online":
            return f"offline; wandb sync {self.run.settings.sync_dir} sends it"
        return str(self.run.url)


class MLflowRun(MLflowTracker):
    """MLflow: a store of the run's own, unless MLFLOW_TRACKING_URI names another."""

    def __init__(self, place: Place) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # of a server that is not there
        self.store = None if "MLFLOW_TRACKING_URI" in os.environ else place.folder / "mlflow"
        super().__init__(
            os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT),
            logging_dir=(self.store / "artifacts").as_uri() if self.store else None,
            run_id=place.known,
            run_name=place.name,
        )

    def start(self) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]

        if self.store:
            self.store.mkdir(parents=True, exist_ok=True)
            mlflow.set_tracking_uri(self.uri)
        super().start()
        self.id = self.active_run.info.run_id

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.store / 'mlflow.db'}" if self.store else os.environ["MLFLOW_TRACKING_URI"]

    def picture(self, name: str, path: Path, step: int) -> None:
        self.log_artifact(str(path), "pictures" if path.parent.name != "samples" else "samples")

    def artifact(self, name: str, path: Path) -> None:
        if path.is_dir():
            self.log_artifacts(str(path), name)
        else:
            self.log_artifact(str(path))

    def where(self) -> str:
        return f"mlflow ui --backend-store-uri {self.uri} shows it" if self.store else self.uri


class TrackioRun(TrackioTracker):
    """Trackio: a store of the run's own, unless TRACKIO_DIR names another."""

    def __init__(self, place: Place) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(place.folder / "trackio"))  # it is read once a process
        self.id = place.known or f"{place.name}-{secrets.token_hex(2)}"
        super().__init__(PROJECT, name=self.id, resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False)

    def start(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            super().start()

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.run.config.update(values)

    def picture(self, name: str, path: Path, step: int) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self.log({name: trackio.Image(str(path))}, step)

    def artifact(self, name: str, path: Path) -> None:
        self.run.log_artifact(path, name=f"{name}-{self.id}", type="model" if name == "adapter" else name)

    def where(self) -> str:
        from trackio.utils import TRACKIO_DIR  # pyright: ignore[reportMissingImports]

        return f"TRACKIO_DIR={TRACKIO_DIR} trackio show shows it"

    def finish(self) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        with contextlib.redirect_stdout(io.StringIO()):
            trackio.finish()


@dataclass(frozen=True)
class Tracker:
    """What a tracker needs, and how it is made; it may have `picture`, `artifact`, `where` and `id` besides."""

    package: str  # also the name of this package's extra that brings it
    available: Callable[[], bool]
    make: Callable[[Place], GeneralTracker]


TRACKERS = {
    "tensorboard": Tracker("tensorboard", lambda: bool(is_tensorboard_available()), TensorBoardRun),
    "wandb": Tracker("wandb", lambda: bool(is_wandb_available()), WandBRun),
    "mlflow": Tracker("mlflow", lambda: bool(is_mlflow_available()), MLflowRun),
    "trackio": Tracker("trackio", lambda: bool(is_trackio_available()), TrackioRun),
}


class Guarded(GeneralTracker):
    """A tracker that may fail: its first failure is told, and it hears no more. The training goes on."""

    requires_logging_directory = False

    def __init__(self, name: str, make: Callable[[], GeneralTracker], tell: Callable[[str], None]) -> None:
        self.name = name  # pyright: ignore[reportIncompatibleVariableOverride] (an attribute there too)
        self.make = make
        self.tell = tell
        self.inner: Any = None
        self.failed = False

    @property
    def tracker(self) -> Any:
        return self.inner.tracker

    def start(self) -> None:
        self.inner = self._tried(self.make)
        self._tried(lambda: self.inner.start())
        self._tried(lambda: self.tell(f"{self.name}: {self.inner.where()}") if hasattr(self.inner, "where") else None)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._tried(lambda: self.inner.store_init_configuration(values))

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self._tried(lambda: self.inner.log(values, step=step, **kwargs))

    def send(self, kind: str, *what: Any) -> None:
        """Give it a "picture" (name, path, step) or an "artifact" (name, path), where it takes such."""
        self._tried(lambda: getattr(self.inner, kind, lambda *_: None)(*what))

    def finish(self) -> None:
        self._tried(lambda: self.inner.finish())

    def _tried(self, do: Callable[[], Any]) -> Any:
        if self.failed:
            return None
        try:
            return do()
        except (Exception, SystemExit) as error:
            self.failed = True
            self.tell(f"{self.name} failed ({short_reason(error)}); the training goes on without it")
            return None


def check_trackers(settings: LoopConfig) -> None:
    """Refuse a tracker whose package is missing. Raises UserError."""
    for name in settings.trackers:
        row = TRACKERS[name]
        if not row.available():
            remedy = f"run: pip install 'snella[{row.package}]'"
            raise UserError(f"--tracker {name} needs the package {row.package}; {remedy}")


@contextlib.contextmanager
def tracking(
    accelerator: Accelerator, config: TrainConfig, folder: Path, done: int, console: Console
) -> Iterator[None]:
    """Let the trackers that the settings ask for hear what `accelerator.log` is told while the body runs.

    Args:
        folder: the run folder; where it has been trained in before, the trackers' runs go on.
        done: optimiser steps done.
    """
    asked, path = config.loop.trackers, folder / TRACKED
    known = read_json(path, dict[str, str], remedy="delete it: new runs are begun") if path.is_file() else {}
    for name in asked:
        place = Place(folder.absolute(), done, known.get(name))
        accelerator.trackers.append(_guarded(name, place, console))
    guarded = _of(accelerator)
    try:
        for tracker in guarded:
            tracker.start()
            tracker.store_init_configuration({name: _plain(value) for name, value in config.flat().items()})
        if ids := {t.name: t.inner.id for t in guarded if not t.failed and hasattr(t.inner, "id")}:
            write_json(path, {**known, **ids})
        yield
    finally:
        for tracker in guarded:
            tracker.finish()
        accelerator.trackers.clear()


def send_results(
    accelerator: Accelerator, folder: Path, summary: Mapping[str, Any], step: int, *, adapter: bool
) -> None:
    """Give the trackers what ends a run: test metrics, figures, the report, and where asked the adapter."""
    if not _of(accelerator):
        return
    accelerator.log({f"test/{name}": value for name, value in summary.get("test", {}).items()}, step=step)
    figures = {path.stem: path for path in sorted(folder.glob("*.png"))}
    send_pictures(accelerator, figures, step)
    files = {"report": folder / "report.html"} | ({"adapter": folder / "adapter"} if adapter else {})
    for name, path in files.items():
        for tracker in _of(accelerator) if path.exists() else ():
            tracker.send("artifact", name, path)


def send_pictures(accelerator: Accelerator, pictures: Mapping[str, Path], step: int) -> None:
    """Give the trackers pictures, by name, of a step; of files that are not there none."""
    for name, path in pictures.items():
        for tracker in _of(accelerator) if path.is_file() else ():
            tracker.send("picture", name, path, step)


def _of(accelerator: Accelerator) -> list[Guarded]:
    return [tracker for tracker in accelerator.trackers if isinstance(tracker, Guarded)]


def _guarded(name: str, place: Place, console: Console) -> Guarded:
    return Guarded(name, lambda: TRACKERS[name].make(place), lambda line: print_line(console, line))


def _plain(value: Any) -> Any:
    """Return a setting as every tracker takes it."""
    return value if isinstance(value, bool | int | float | str) else str(value)
