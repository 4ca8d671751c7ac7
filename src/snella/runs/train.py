"""A run, from config to result: joins data, task, backbone, method, training and report.

config ─ checks ─ data ─ backbone ─ method ─ fit ─┬─ adapter/ (best epoch on val)
                                                  ├─ val and test metrics ─ summary.json
                                                  └─ figures
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from safetensors.torch import save_file

from snella.config.method import SPARSE
from snella.config.recipe import LEFT_TO_THE_RUN, PLACES
from snella.config.schema import TrainConfig, run_folder, shrunk
from snella.config.validation import validate
from snella.console import Terminal, print_line, working
from snella.data.dataset import ImageData, names_read
from snella.distributed import world
from snella.distributed.start import check_same_start
from snella.errors import UserError
from snella.files import CHECKSUMS, write_checksums, write_json, writing
from snella.methods.adapters import after_step
from snella.report.figures import training_figures
from snella.report.outputs import write_outputs
from snella.report.tables import summary_table
from snella.report.trackers import check_trackers, send_results, tracking
from snella.runs.check import (
    arithmetic_note,
    check_backbone,
    check_data,
    check_same_data,
    moved,
    read_start,
    settings_to_compare,
    write_start,
)
from snella.runs.devices import check_several, device_name, make_accelerator, with_precision
from snella.runs.evaluate import evaluated_split, tested_splits
from snella.runs.folder import (
    ABOUT,
    ADAPTER,
    BASE,
    alone_in,
    claim,
    claimable,
    read_about,
    read_config,
    read_summary,
    state_of,
    summary_of,
    trainable_parameters,
    versions,
    with_own_splits,
    write_adapter,
    write_summary,
)
from snella.runs.generate import samples_of_epoch, show_samples
from snella.runs.memory import estimated, fitted
from snella.runs.prepare import Prepared, about_run, doubts, read_run_data, tell, whole_spec
from snella.tasks.registry import task_named
from snella.training.checkpoint import checkpoints, done_steps, newest_checkpoint, read_divergences, step_of
from snella.training.estimate import estimate_table
from snella.training.interrupt import Diverged
from snella.training.loop import FitResult, fit
from snella.training.optimiser import check_optimiser
from snella.tuner.model_card import saved_share

OF_A_PROCESS = (*PLACES, "device", "workers")  # settings that may differ from the first process's
LISTED = 20  # classes up to which the end of a training tells of each


def train(
    config: TrainConfig,
    console: Console | None = None,
    *,
    before_claim: Callable[[], None] = lambda: None,
    finished: Callable[[Path, ImageData[Any]], object] = lambda folder, data: None,
) -> dict[str, Any]:
    """Train as the config says and return what summary.json holds (with `estimate`: the memory it will need).

    Flags are checked first, then paths and data; the model is built; `before_claim` is called; the folder is touched.
    `finished` is called with the folder and the data of a run that was trained or tested, when all of it is written.

    Of several processes that torchrun has started each calls it; the first one writes, prints and returns, and the
    others return {}.

    Raises:
        UserError: something given is wrong; the message names it and the remedy.
        snella.distributed.world.ProcessLost: another process of the training has ended.
        snella.training.interrupt.Interrupted: Ctrl-C or SIGTERM during training; a checkpoint was written.
    """
    validate(config)
    check_several(config)
    with world.joined(config.device):
        if world.is_first():
            return _start(config, console or Terminal(), before_claim, finished)
        warnings.simplefilter("ignore")  # the first process has them too
        return _start(config, Terminal(quiet=True), before_claim, finished)


def _start(
    config: TrainConfig, console: Console, before_claim: Callable[[], None], finished: Callable[..., object]
) -> dict[str, Any]:
    """Do what `train` does, in this process. What the run folder says is what it says to the first one."""
    check_same_start(settings_to_compare(config) | versions())
    folder, own = run_folder(config), config
    settled = world.from_first(lambda: _settled(own))
    config = settled.changed(**{name: own.value(name) for name in OF_A_PROCESS})
    accelerator = _accelerator(config)
    task_named(config.task).check(config)
    if config.estimate:
        return _estimate(config, accelerator, console)
    state = world.from_first(lambda: claimable(folder, config))
    trained = config.resume and state.name == "finished"
    if state.tested and not world.from_first(lambda: moved(folder, config)):
        print_line(console, f"{folder} is finished; --overwrite trains it again")
        return world.from_first(lambda: read_summary(folder))

    goes_on = config.resume and state.name in ("started", "finished")
    start, ready = _made_ready(folder, config, goes_on, accelerator, console)
    config = ready.config

    def take() -> None:
        before_claim()
        claim(folder, config)

    world.from_first(take)
    with alone_in(folder, "training") if world.is_first() else nullcontext():
        if world.is_first() and (start is None or config.accept_data):
            write_start(folder, ready, ready.data)
        if world.is_first() and trained:
            _move(folder, config, ready)
        if state.tested:
            print_line(console, f"{folder} is finished; what it reads is written down anew")
            return world.from_first(lambda: read_summary(folder))
        with tracking(accelerator, config, folder, done_steps(folder), console) if world.is_first() else nullcontext():
            summary = _train(config, ready, folder, trained, accelerator, console)
            if world.is_first():
                finished(folder, ready.data)
                with_adapter = config.loop.tracker_adapter
                send_results(accelerator, folder, summary, done_steps(folder), adapter=with_adapter)
    return summary


def _made_ready(
    folder: Path, config: TrainConfig, goes_on: bool, accelerator: Accelerator, console: Console
) -> tuple[dict[str, Any] | None, Prepared]:
    """Return what a run that goes on was started with, and all that it needs. Raises UserError where that is other."""
    start = world.from_first(lambda: read_start(folder)) if goes_on else None
    data = _read(with_own_splits(folder, config, lost=True) if goes_on else config, console)
    if goes_on and not config.accept_data:
        check_data(folder, start, data)
    with world.in_turn() if config.task == "generate" else nullcontext():  # which fills a cache
        ready = fitted(config, data, accelerator, console)
    check_same_data(ready, data)
    if goes_on:
        check_backbone(folder, start, ready.fingerprint, ready.config.model.backbone)
        if note := arithmetic_note(start):
            print_line(console, note)
    return start, ready


def _settled(config: TrainConfig) -> TrainConfig:
    """Return the config as it is trained: shrunk by --smoke, and with what `auto` was in a run that is gone on with."""
    folder = run_folder(config)
    config = with_precision(shrunk(config) if config.smoke else config, folder)
    open_ones = [name for name, open_values in LEFT_TO_THE_RUN.items() if config.value(name) in open_values]
    if config.resume and open_ones and state_of(folder) in ("started", "finished"):
        config = config.changed(**{name: read_config(folder).value(name) for name in open_ones})
    return config


def _accelerator(config: TrainConfig) -> Accelerator:
    """Return the run's accelerator; refuse a device, a precision or a package that is not there. Raises UserError."""
    check_trackers(config.loop)
    accelerator = make_accelerator(config.device, config.precision)
    check_optimiser(config.loop.optimizer, accelerator.device)
    return accelerator


def _train(
    config: TrainConfig, ready: Prepared, folder: Path, trained: bool, accelerator: Accelerator, console: Console
) -> dict[str, Any]:
    """Train and test, after all checks; `trained`: only the tests are missing."""
    if ready.base is not None and not trained and world.is_first():
        with writing(folder / BASE) as partial:
            save_file(ready.base, partial)
    print_line(
        console,
        f"{config.model.backbone}, {config.method.name}: {trainable_parameters(ready.model):,} trainable parameters",
    )
    print_line(console, f"results in {folder}")
    if not checkpoints(folder):
        with working(console, "generating samples") as progress:
            show_samples("before", ready, folder, accelerator, progress)
    try:
        result = fit(
            ready.model,
            ready.learner,
            ready.batches["train"],
            ready.batches["val"],
            config.loop,
            folder,
            accelerator=accelerator,
            seed=config.seed,
            after_step=after_step(config.method.name, ready.model),
            after_epoch=lambda epoch: samples_of_epoch(epoch, ready, folder, accelerator),
            resume=config.resume,
            console=console,
            hidden=ready.task.metrics.keys() - ready.task.shown_metrics(len(ready.data.classes)).keys(),
        )
    except Diverged as error:
        raise _with_best_epoch(error, folder, config, ready, accelerator) from error
    val = evaluated_split("val", config, ready, accelerator)
    settled = ready.learner.settle(val)
    if not trained:
        _save_adapter(folder, config, ready, settled)
        _tell_kept(folder, config, result, console)
        with working(console, "generating samples") as progress:
            show_samples("after", ready, folder, accelerator, progress)
    return _finish(folder, config, ready, result, val, accelerator, console)


def _with_best_epoch(
    error: Diverged, folder: Path, config: TrainConfig, ready: Prepared, accelerator: Accelerator
) -> UserError:
    """Save the best epoch before a divergence, and return the error that says so and how to go on."""
    saved = ""
    if error.best_epoch:
        _save_adapter(folder, config, ready, ready.learner.settle(evaluated_split("val", config, ready, accelerator)))
        saved = f"; the best epoch before, {error.best_epoch}, is in {folder / ADAPTER}"
    lower = f"--resume --lr {config.loop.peak_lr / 10:.3g}"
    last = newest_checkpoint(folder)
    goes_on = f"{lower} goes on from step {step_of(last)}" if last else f"{lower} starts again"
    return UserError(f"{error}{saved}; {goes_on}")


def _estimate(config: TrainConfig, accelerator: Accelerator, console: Console) -> dict[str, Any]:
    """Print what a training step needs in memory; `peak_memory_bytes` is as in summary.json."""
    data = _read(config, console)
    ready = fitted(config, data, accelerator, console)
    found = estimated(ready, data, accelerator)
    console.print(estimate_table(found))
    return {**asdict(found), "peak_memory_bytes": found.total}


def _read(config: TrainConfig, console: Console) -> ImageData[Any]:
    data = read_run_data(config, console)
    tell(data, console)
    for line in doubts(config, data):
        print_line(console, f"  {line}")
    return data


def _move(folder: Path, config: TrainConfig, ready: Prepared) -> None:
    """Write down where the backbone of a finished run is now."""
    about = read_about(folder)
    if about["backbone"] != whole_spec(config, ready)["backbone"]:
        write_json(folder / ADAPTER / ABOUT, {**about, **whole_spec(config, ready)})
        if (folder / ADAPTER / CHECKSUMS).is_file():
            write_checksums(folder / ADAPTER)


def _save_adapter(folder: Path, config: TrainConfig, ready: Prepared, settled: Mapping[str, Any]) -> None:
    if world.is_first():
        write_adapter(folder, ready.model, about_run(config, ready, settled))


def _tell_kept(folder: Path, config: TrainConfig, result: FitResult, console: Console) -> None:
    """Say where the adapter keeps another share of its update's entries than was asked for."""
    method = config.method
    if method.name not in SPARSE or method.gate == "none" or not world.is_first():
        return
    kept = saved_share(folder / ADAPTER, lambda _: method.target_sparsity)
    if kept and not kept.is_near:
        epochs = f"best epoch {result.best_epoch} of {config.loop.epoch_count}"
        print_line(console, f"the adapter {kept}: budgets fall from epoch to epoch ({epochs}); more epochs come nearer")


def _finish(
    folder: Path,
    config: TrainConfig,
    ready: Prepared,
    result: FitResult,
    val: Any,
    accelerator: Accelerator,
    console: Console,
) -> dict[str, Any]:
    """Test what was asked for; draw the figures; write the summary, which ends the run."""
    learner, names = ready.learner, ready.task.metrics
    metrics, tested = tested_splits(config, ready, result, val, accelerator)
    found = {split: world.gathered(batches.unreadable) for split, batches in ready.batches.items()}
    unreadable = {split: [error for part in parts for error in part] for split, parts in found.items()}
    if not world.is_first():
        return {}
    best = result.best_epoch if result.history else None  # metrics.jsonl may be lost, where a run folder was copied
    training_figures(folder, learner.selection, names[learner.selection], learner.higher_is_better, best_epoch=best)
    for kind, draw in (learner.figures(tested) if tested else {}).items():
        draw(folder / f"{kind}.png")
    for split, seen in {"val": val, **({"test": tested} if tested else {})}.items():
        write_outputs(folder, split, names_read(ready.data, split, unreadable[split]), learner.kept(seen))
    summary = metrics | summary_of(
        *(folder, ready.model, learner, ready.data, tested),
        peak_memory_bytes=result.peak_memory_bytes,
        seconds=round(result.seconds, 3),
        device=device_name(accelerator.device),
        seed=config.seed,
    )
    if diverged := read_divergences(folder):  # it went on with a lower rate
        summary["diverged"] = diverged
    write_summary(folder, summary)
    data = ready.data
    if tested and len(data.classes) <= LISTED:
        console.print(learner.table(tested))
    title = f"{config.method.name} on {Path(data.root).name}"
    console.print(summary_table(summary, ready.task.shown_metrics(len(data.classes)), title=title))
    best_epoch = f"best epoch on val: {result.best_epoch} of {result.epochs_done}; results and figures in {folder}"
    for line in (*learner.doubts(val), *filter(None, [data.caveat]), best_epoch):
        print_line(console, line)
    return summary
