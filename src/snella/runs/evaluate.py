"""Test a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console

from snella.config.schema import TrainConfig, source_name
from snella.console import Terminal, checking_images, print_line
from snella.data.dataset import ImageData, names_read, with_white
from snella.data.images import WHITE
from snella.errors import UserError
from snella.files import refuse_link, write_json
from snella.report.outputs import write_outputs
from snella.report.tables import format_metric
from snella.runs.check import check_data, may_be_data, read_start
from snella.runs.devices import make_accelerator
from snella.runs.folder import read_about, read_config, with_own_splits
from snella.runs.load import LoadedRun, check_options, load_run
from snella.runs.prepare import Prepared, read_run_data, tell
from snella.tasks.registry import task_named
from snella.training.evaluation import evaluate as evaluate_batches
from snella.training.interfaces import Evaluation
from snella.training.loop import FitResult
from snella.training.tuned_weights import load_tuned_state

EVALUATION = "evaluation"  # the folder of results in a run folder


def evaluate(
    folder: Path,
    *,
    data: str | None = None,
    split: str = "test",
    features: str | None = None,
    samples: int = 64,
    batch_size: int = 64,
    device: str = "auto",
    console: Console | None = None,
) -> dict[str, Any]:
    """Test a run on a split of its own data, or on other data; writes RUN/evaluation/NAME.json, which it returns, and
    NAME.png.

    With `features`, the name of a model, `samples` images that the run makes are compared with those of the split.

    Raises:
        UserError: no finished run, data that cannot be read or is not of its classes, or another backbone.
    """
    console = console or Terminal()
    saved = read_about(folder)
    check_options(batch_size, device)
    refuse_link(folder / EVALUATION)
    if features is not None:
        _check_features(folder, saved["task"], features, samples)
    tested, part, name = _images_of(folder, data, split, saved, console)
    images = tested.splits[part]
    if features is not None and len(images) < 2:
        raise UserError(f"--features compares with 2 images or more, and there are {len(images)}; name more by --data")
    accelerator = accelerator_for(device, read_config(folder).precision, console)
    run = load_run(folder, accelerator.device)
    batches = run.batches(images, batch_size)
    evaluation = evaluate_batches(run.model, run.learner, batches, accelerator)
    if batches.unreadable:
        print_line(console, f"{len(batches.unreadable)} unreadable images left out, the first: {batches.unreadable[0]}")
    if data is None:
        write_outputs(folder, part, names_read(tested, part, batches.unreadable), run.learner.kept(evaluation))
    found = _write(folder, name, run, evaluation, data, console)
    if features is not None:
        fidelity, line = run.learner.judge(run.model, images, features, count=samples, console=console)
        found = {**found, "fidelity": fidelity}
        write_json(folder / EVALUATION / f"{name}.json", found)
        print_line(console, line)
    return {"name": name, "results": str(folder / EVALUATION), **found}


def _write(
    folder: Path, name: str, run: LoadedRun, evaluation: Evaluation, data: str | None, console: Console
) -> dict[str, Any]:
    """Write and print what was found; returns what the JSON file holds."""
    target, names = folder / EVALUATION, run.task.shown_metrics(len(run.saved["classes"]))
    source = {} if data is None else {"data": data}
    found = {**source, "metrics": evaluation.metrics, **run.learner.report(evaluation)}
    write_json(target / f"{name}.json", found)
    for i, (kind, draw) in enumerate(run.learner.figures(evaluation).items()):
        draw(target / (f"{name}-{kind}.png" if i else f"{name}.png"))
    console.print(run.learner.table(evaluation))
    values = ", ".join(f"{label} {format_metric(key, evaluation.metrics[key])}" for key, label in names.items())
    print_line(console, f"{name}: {values}; figures in {target}")
    return found


def _check_features(folder: Path, task: str, features: str, samples: int) -> None:
    """Refuse, before anything is read, features that cannot be compared in. Raises UserError."""
    if samples < 2:
        raise UserError(f"--samples {samples} is below 2")
    task_named(task).check_features(features)
    if not task_named(task).generates:
        raise UserError(f"--features: {folder} makes no images (its task is {task}); leave it out")


def _images_of(
    folder: Path, data: str | None, split: str, saved: dict[str, Any], console: Console
) -> tuple[ImageData[Any], str, str]:
    """Return the data with the split of it to test on, and what to call that."""
    config, start = with_own_splits(folder, read_config(folder)), read_start(folder)
    white = saved.get("white", WHITE)
    if data is None:
        own = read_run_data(config.changed(white=white), console)
        if own.classes != tuple(saved["classes"]):
            raise UserError(f"{own.root} has other classes than when {folder} was trained; name data by --data")
        check_data(folder, start, own)
        tell(own, console)
        return own, split, split
    moved = config.changed(data=data)
    own = _own_elsewhere(folder, start, moved.changed(white=white), saved)
    if own is not None:
        print_line(console, f"{data} has the images that {folder} was trained on: of them, {split} alone is taken")
        tell(own, console)
        return own, split, _name_of(data)
    if split != "test":
        raise UserError("--split chooses from the run's own data; of --data the test split is taken, or all")
    with checking_images(console) as progress:
        found = with_white(task_named(saved["task"]).read_test(moved, saved, progress), white)
    tell(found, console)
    return found, "test", _name_of(data)


def _name_of(data: str) -> str:
    """Return what results on other data are called; none is called as a split of the run's own."""
    name = source_name(data)
    return f"data-{name}" if name in ("train", "val", "test") else name


def _own_elsewhere(
    folder: Path, start: dict[str, Any] | None, config: TrainConfig, saved: dict[str, Any]
) -> ImageData[Any] | None:
    """Return the run's own data where those of the config are them; None where it is not known that they are."""
    if start is None or not may_be_data(start, config.data.source or ""):
        return None
    try:
        own = read_run_data(config, Console(quiet=True))
        return own if own.classes == tuple(saved["classes"]) and check_data(folder, start, own) else None
    except UserError:
        return None


def accelerator_for(device: str, precision: str, console: Console) -> Accelerator:
    """Return the accelerator for the run's precision, or fp32 where this (valid) device cannot do it."""
    try:
        return make_accelerator(device, precision)
    except UserError:
        print_line(console, f"{precision}, in which it was trained, cannot be used here; evaluated in fp32")
        return make_accelerator(device, "fp32")


def evaluated_split(split: str, config: TrainConfig, ready: Prepared, accelerator: Accelerator) -> Any:
    """Return what the learner finds in a split of the run that is trained."""
    return evaluate_batches(ready.model, ready.learner, ready.batches[split], accelerator, seed=config.seed)


def tested_splits(
    config: TrainConfig, ready: Prepared, result: FitResult, val: Any, accelerator: Accelerator
) -> tuple[dict[str, dict[str, float]], Any]:
    """Return the metrics by split as summary.json has them, and what the test found, None where there was none."""
    tested = None if config.test == "none" else evaluated_split("test", config, ready, accelerator)
    found = {"val": val} if tested is None else {"val": val, "test": tested}
    if config.test == "both":  # nothing that follows looks at the model's values
        found["test_last"] = tested
        if result.last is not None:
            load_tuned_state(ready.model, result.last)
            if ready.learner.settle(val):  # the last epoch has its own
                ready.learner.settle(evaluated_split("val", config, ready, accelerator))
            found["test_last"] = evaluated_split("test", config, ready, accelerator)
    names = ready.task.metrics
    return {split: {name: seen.metrics[name] for name in names} for split, seen in found.items()}, tested
