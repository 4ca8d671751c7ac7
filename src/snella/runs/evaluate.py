"""Test a finished run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console

from snella.config.schema import source_name
from snella.console import checking_images, print_line
from snella.data.loading import Batches
from snella.errors import UserError
from snella.files import write_json
from snella.report.tables import format_metric
from snella.runs.data import read_run_data, tell
from snella.runs.folder import read_about, read_config
from snella.runs.load import check_options, load_run
from snella.tasks.generation.fidelity import check_features, fidelity_line
from snella.tasks.interface import Generates
from snella.tasks.registry import TASKS
from snella.training.devices import accelerator_for
from snella.training.evaluation import evaluate as evaluate_batches


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
) -> Any:
    """Test a run on a split of its own data, or on other data; writes RUN/evaluation/NAME.json and NAME.png.

    With `features`, the name of a model, `samples` images that the run makes are compared with those of the split.

    Raises:
        UserError: no finished run, data that cannot be read or is not of its classes, or another backbone.
    """
    console = console or Console()
    about = read_about(folder)
    check_options(batch_size, device)
    if features is not None:
        if samples < 2:
            raise UserError(f"--samples {samples} is below 2")
        check_features(features)
    if data is not None and split != "test":
        raise UserError("--split chooses from the run's own data; of --data the test split is taken, or all")
    images, name = _images_of(folder, data, split, about, console)
    if features is not None and len(images) < 2:
        raise UserError(f"--features compares with 2 images or more, and there are {len(images)}; name more by --data")
    run = load_run(folder, device)
    if features is not None and not isinstance(run.task, Generates):
        raise UserError(f"--features: {folder} makes no images (its task is {about['task']}); leave it out")
    batches = Batches(
        images, run.module.eval_transform(run.preprocessing), batch_size=batch_size, shuffle=False, seed=0
    )
    accelerator = _accelerator(device, run.config.precision, console)
    result = evaluate_batches(run.model, run.task, batches, accelerator)
    if batches.unreadable:
        print_line(console, f"{len(batches.unreadable)} unreadable images left out, the first: {batches.unreadable[0]}")
    target = folder / "evaluation"
    source = {} if data is None else {"data": data}
    found: dict[str, Any] = {**source, "metrics": result.metrics, **run.task.report(result)}
    write_json(target / f"{name}.json", found)
    for i, (kind, draw) in enumerate(run.task.figures(result).items()):
        draw(target / (f"{name}-{kind}.png" if i else f"{name}.png"))
    console.print(run.task.table(result))
    values = ", ".join(
        f"{label} {format_metric(key, result.metrics[key])}" for key, label in run.module.METRICS.items()
    )
    print_line(console, f"{name}: {values}; figures in {target}")
    if features is not None and isinstance(run.task, Generates):
        judged = run.task.judge(run.model, images, features, count=samples, console=console)
        write_json(target / f"{name}.json", {**found, "fidelity": asdict(judged)})
        print_line(console, fidelity_line(judged))
    return result


def _images_of(folder: Path, data: str | None, split: str, about: dict[str, Any], console: Console) -> tuple[Any, str]:
    """The images to test on, and what to call them."""
    config = read_config(folder)
    if data is None:
        own = read_run_data(config, console)
        if own.classes != tuple(about["classes"]):
            raise UserError(f"{own.root} has other classes than when {folder} was trained; name data by --data")
        tell(own, console)
        return own.splits[split], split
    with checking_images(console) as progress:
        found = TASKS[about["task"]].read_test(data, about, seed=config.seed, progress=progress)
    tell(found, console)
    name = source_name(data)
    return found.splits["test"], f"data-{name}" if name in ("train", "val", "test") else name


def _accelerator(device: str, precision: str, console: Console) -> Accelerator:
    """For the run's precision, or fp32 where this (valid) device cannot do it."""
    try:
        return accelerator_for(device, precision)
    except UserError:
        print_line(console, f"{precision}, in which it was trained, cannot be used here; evaluated in fp32")
        return accelerator_for(device, "fp32")
