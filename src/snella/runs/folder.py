"""The run folder: who may write to it, and what it holds.

RUN/config.yaml     the settings, itself a recipe      RUN/adapter/   what was trained, classes, preprocessing
RUN/checkpoints/    to resume from                     RUN/*.jsonl, *.png
RUN/summary.json    the result; written last: a run folder that has it is finished
"""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from filelock import FileLock, Timeout
from torch import nn

from snella.config.method import METHODS
from snella.config.recipe import PLACES, differences, placed, read_recipe, to_yaml, whole_path
from snella.config.schema import Tested, TrainConfig
from snella.config.tasks import TASKS
from snella.data.dataset import ImageData
from snella.data.transforms.images import Preprocessing
from snella.errors import UserError
from snella.files import (
    check_writable,
    clear_leftovers,
    refuse_link,
    size_of,
    write_checksums,
    write_json,
    write_text,
    writing,
)
from snella.json_files import Count, Record, read_json
from snella.methods.adapters import save_adapter
from snella.models.backbone import BackboneSpec
from snella.tasks.interface import TaskLearner
from snella.tasks.registry import task_named
from snella.training.checkpoint import checkpoints, read_divergences
from snella.training.train_state import RATES

CONFIG, SUMMARY, ADAPTER, BASE = "config.yaml", "summary.json", "adapter", "base.safetensors"
ABOUT = "snella.json"  # in the adapter's folder
LEFT_BY_A_KILL = (f".{CONFIG}.partial", ".lock")  # where it came before config.yaml stood
SPLITS_TABLE = "splits.csv"  # file, split and label of each image, as --splits takes it
START = "start.json"  # what it was started with, see `snella.runs.check`
SUMMARY_HOLDS = Record(
    {
        "val": dict[str, float | None],
        **dict.fromkeys(("trainable_parameters", "adapter_bytes", "peak_memory_bytes", "seed"), Count),
        "seconds": float,
    },
    {
        **dict.fromkeys(("test", "test_last"), dict[str, float | None]),
        "selection": Record({"metric": str, "higher_is_better": bool}),
        "images": dict[str, Count],
        "device": str,
        "versions": dict[str, str],
    },
)
PACKAGES = ("snella", "torch", "torchvision", "timm", "peft", "accelerate", "transformers")


def state_of(folder: Path) -> str:
    """Return what is at a path: "absent" (or an empty folder), "finished", "started", or "foreign" (anything else)."""
    if folder.is_symlink() and not folder.exists():
        return "foreign"
    if not folder.exists():
        return "absent"
    if not folder.is_dir():
        return "foreign"
    if (folder / CONFIG).is_file():
        return "finished" if (folder / SUMMARY).is_file() else "started"
    return "foreign" if any(entry.name not in LEFT_BY_A_KILL for entry in folder.iterdir()) else "absent"


def check_claim(folder: Path, config: TrainConfig) -> None:
    """Refuse, before anything is read or built, a run folder that `config` may not write to.

    Raises:
        UserError: it exists and neither --resume nor --overwrite was given, it is not a run folder, its run has other
            settings, another process trains there, it cannot be written to, or is to be replaced and we, or what the
            run reads, are in it.
    """
    state = state_of(folder)
    if state == "foreign":
        raise UserError(f"{folder} exists and is not a run folder; choose another --out")
    if state in ("started", "finished") and not (config.overwrite or config.resume):
        raise UserError(f"{folder} exists: --resume goes on with it, --overwrite replaces it, --out chooses another")
    if config.overwrite and state != "absent" and Path.cwd().is_relative_to(folder.resolve()):
        raise UserError(f"{folder} cannot be replaced from inside it; go to another folder, or choose another --out")
    for name in PLACES if config.overwrite and state != "absent" else ():
        path = Path((config.value(name) or "").removeprefix("hf:")).expanduser()
        if path.name and path.exists() and path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"--overwrite would delete {path}, which this run reads; move it, or choose another --out")
    if config.resume and state != "absent":
        check_same(folder, config)
    check_writable(folder)
    for path in folder.iterdir() if config.resume and state != "absent" else ():
        refuse_link(path)
    if state != "absent":
        with alone_in(folder, "training"):
            pass


class Claimed(NamedTuple):
    """What a run folder says of its run."""

    name: str  # see `state_of`
    tested: bool  # whether it has all tests that are asked for


def claimable(folder: Path, config: TrainConfig) -> Claimed:
    """Return what a run folder says, if `config` may go on with it or take it. Raises UserError, as `check_claim`."""
    check_claim(folder, config)
    state = state_of(folder)
    if not config.resume or state != "finished":
        return Claimed(state, False)
    tested = is_tested(read_summary(folder), config.test)
    if not tested and not checkpoints(folder):
        raise UserError(f"{folder} has no checkpoints to test; use snella evaluate, or train again with --overwrite")
    return Claimed(state, tested)


def check_same(folder: Path, config: TrainConfig) -> None:
    """Refuse to go on with a run whose settings were others; one that has diverged must have a lower rate.

    Raises:
        UserError: what differs, or where it has diverged.
    """
    old = read_recipe(str(folder / CONFIG))
    diverged = [found for found in read_divergences(folder) if found["lr"] == old.loop.lr]
    if diverged and not (folder / SUMMARY).is_file():
        if config.loop.lr == "auto" or config.loop.lr >= old.loop.peak_lr:
            step, rate = diverged[-1]["step"], diverged[-1]["learning_rate"]
            raise UserError(
                f"diverged: at step {step} with learning rate {rate:.3g}, as it would again; "
                f"go on with --resume --lr {old.loop.peak_lr / 10:.3g}, or another rate below {old.loop.peak_lr:g}"
            )
        old = old.changed(**{name: config.value(name) for name in RATES})
    trained = (folder / ADAPTER / ABOUT).is_file()
    started = any((place / START).is_file() for place in (folder, *fold_folders(folder, config)[:1]))
    for name, known in (
        ("data", started),
        ("splits", started),
        ("backbone", started or trained),
        ("checkpoint", started or trained),
    ):
        if known and whole_path(config, name):  # it may have moved; that it is the same is checked when it is read
            old = old.changed(**{name: config.value(name)})
    if differ := differences(old, config):
        raise other_settings(folder, differ, "resume with the same ones, or choose another --out")


def other_settings(folder: Path, differ: list[str], remedy: str) -> UserError:
    """Return the error for a run folder whose settings differ from those asked for."""
    more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
    return UserError(f"{folder} was trained with other settings ({', '.join(differ[:3])}{more}); {remedy}")


@contextlib.contextmanager
def alone_in(folder: Path, work: Literal["training", "comparison"]) -> Iterator[None]:
    """Keep others that do the same work out of a folder until the body, or at the latest the process, ends.

    Raises:
        UserError: one of them is at work there.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another {work} is at work in {folder}; wait for it, or choose another --out") from None
    except NotImplementedError:  # a file system without locks, where nobody can be kept out
        yield
        return
    try:
        yield
    finally:
        if os.name == "posix":  # elsewhere an open file cannot be deleted
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def is_worked_on(folder: Path) -> bool:
    """Return whether a training is at work in a folder."""
    if state_of(folder) not in ("started", "finished"):
        return False
    try:
        with alone_in(folder, "training"):
            return False
    except UserError:
        return True


def claim(folder: Path, config: TrainConfig) -> None:
    """Make the run folder and its config.yaml, once data and model are ready.

    What `--overwrite` replaces is moved aside first and deleted when the new folder stands; it comes back if that
    fails.

    Raises:
        UserError: as `check_claim`, which is asked again: while data and model were made ready, others may have come.
    """
    check_claim(folder, config)
    state = state_of(folder)
    if state != "absent" and config.resume:
        clear_leftovers(folder)
        write_text(folder / CONFIG, to_yaml(placed(config)))  # workers, device ... may have changed
        return
    folder = folder.resolve()  # "." has no name, and a link is none to move or delete
    old = folder.with_name(f".{folder.name}.replaced")
    if state != "absent":
        if old.is_symlink() or state_of(old) == "foreign":
            raise UserError(f"{old} is in the way and is not a run folder; move it, or choose another --out")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / CONFIG, to_yaml(placed(config)))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if state != "absent":
            os.replace(old, folder)
        raise
    if state != "absent":
        shutil.rmtree(old)


def read_config(folder: Path) -> TrainConfig:
    """Return the settings of a run.

    Raises:
        UserError: no run folder, or its config.yaml is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"run folder {folder} does not exist")
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is not a run folder: it has no {CONFIG}")
    return read_recipe(str(folder / CONFIG))


def fold_folders(folder: Path, config: TrainConfig) -> list[Path]:
    """Return the run folders of the folds of a cross-validation; none where the settings are of no such."""
    return [folder / f"fold-{fold}" for fold in range(1, (config.data.folds or 0) + 1)]


def is_cross_validation(config: TrainConfig) -> bool:
    """Return whether settings are those of all folds, not of a run."""
    return config.data.folds is not None and config.data.fold is None


def with_own_splits(folder: Path, config: TrainConfig, *, lost: bool = False) -> TrainConfig:
    """Return the settings of a run, with the splits that it has written down for the table that it was given.

    `lost`: only where that table is not there any more.
    """
    own, given = folder / SPLITS_TABLE, config.data.splits
    if given is None or not own.is_file() or (lost and Path(given).expanduser().is_file()):
        return config
    return config.changed(splits=str(own))


def resume_command(folder: Path) -> str:
    """Return the command that goes on with a run."""
    return shlex.join(["snella", "train", "--recipe", str(folder / CONFIG), "--out", str(folder), "--resume"])


def read_about(folder: Path) -> dict[str, Any]:
    """Return adapter/snella.json of a run: task, method, backbone, classes, preprocessing, fingerprint, versions.

    Raises:
        UserError: no run folder, training did not finish, or the file is damaged.
    """
    if is_cross_validation(read_config(folder)):
        raise UserError(f"{folder} holds the runs of a cross-validation; name one of them, such as {folder / 'fold-1'}")
    path = folder / ADAPTER / ABOUT
    if not path.is_file():
        lower = " --lr LOWER" if read_divergences(folder) else ""
        raise UserError(f"{folder} has no trained adapter yet; finish its training: {resume_command(folder)}{lower}")
    remedy = "restore it, or train again"
    task = read_json(path, Record({"task": Literal[tuple(TASKS)]}), remedy=remedy)["task"]
    holds = {"method": Literal[tuple(METHODS)], "backbone": BackboneSpec, "classes": list[str], "fingerprint": str}
    of_task = task_named(task)
    holds |= {"preprocessing": Preprocessing, **of_task.about}
    return read_json(path, Record(holds, {"versions": dict[str, str], **of_task.about_since}), remedy=remedy)


def read_summary(folder: Path) -> dict[str, Any]:
    """Return summary.json of a finished run. Raises UserError if it is damaged."""
    return read_json(folder / SUMMARY, SUMMARY_HOLDS, remedy="delete it, and --resume writes it again")


def write_adapter(folder: Path, model: nn.Module, about: Mapping[str, Any]) -> None:
    """Write RUN/adapter: what the method trained, what has to be known to use it (snella.json), and checksums."""
    with writing(folder / ADAPTER) as partial:
        save_adapter(about["method"], model, partial)
        write_json(partial / ABOUT, about)
        write_checksums(partial)


def trainable_parameters(model: nn.Module) -> int:
    """Return how many parameters of a model train."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def summary_of(
    folder: Path, model: nn.Module, learner: TaskLearner[Any, Any, Any], data: ImageData[Any], tested: Any, **found: Any
) -> dict[str, Any]:
    """Return what summary.json holds of any run folder with an adapter, besides what is `found`.

    `tested` is the evaluation of the test split, None where there was none.
    """
    return {
        "selection": {"metric": learner.selection, "higher_is_better": learner.higher_is_better},
        **(learner.details(tested) if tested else {}),
        "trainable_parameters": trainable_parameters(model),
        "adapter_bytes": size_of(folder / ADAPTER),
        "images": {split: len(images) for split, images in data.splits.items()},
        "versions": versions(),
        **found,
    }


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write summary.json, which ends a run."""
    write_json(folder / SUMMARY, summary)


def is_tested(summary: Mapping[str, Any], epochs: Tested) -> bool:
    """Return whether a finished run has the tests of these epochs."""
    return {"none": set(), "best": {"test"}, "both": {"test", "test_last"}}[epochs] <= summary.keys()


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
