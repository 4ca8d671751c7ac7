"""The training loop. It knows no task and no tuning method by name.

    for each epoch:
        for each group of `accumulate` batches:
            seed, learning rate, loss, gradients, AdamW step, budgets (after_step), average
        validate; keep the best tuned state; save

Every random number of a step comes from (seed, step), and every batch from (seed, epoch, index). A run that was
stopped anywhere and resumed therefore ends, on the CPU, with the same bits as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor, nn

from snella.config.fields import check_intervals
from snella.config.loop import LoopConfig
from snella.distributed import world
from snella.distributed.draws import as_whole_batches
from snella.distributed.evaluation import EvaluationStopped
from snella.distributed.part import PART, computing
from snella.distributed.step import agreed_signal, check_budgets, check_weights, sum_gradients
from snella.errors import UserError, short_reason
from snella.report.rows import read_metrics
from snella.training.checkpoint import checkpoints, write_divergence
from snella.training.evaluation import evaluate, on_device, seed_step
from snella.training.interfaces import AfterStep, Batches, Learner
from snella.training.interrupt import DIVERGED, Diverged, Interrupted, StopSignals
from snella.training.progress import Progress, Speed
from snella.training.train_state import TrainState, not_finite, start_run
from snella.training.tuned_weights import copied, load_tuned_state, train_mode, tuned_state

ROWS_PER_EPOCH = 10  # of metrics.jsonl, besides the validation's


@dataclass(frozen=True)
class FitResult:
    """What a training came to; the model holds the best epoch's tuned state."""

    best_metric: float  # the task's selection metric on val
    best_epoch: int  # from 1
    epochs_done: int
    steps: int
    seconds: float  # wall time with validation, over all resumes
    peak_memory_bytes: int  # of a training step, see snella.training.memory
    history: tuple[dict[str, Any], ...]  # the "val" rows of metrics.jsonl
    last: dict[str, Tensor] | None = field(compare=False)  # tuned state of the last epoch; None: it is the best one's


def fit(
    model: nn.Module,
    learner: Learner,
    train: Batches,
    val: Batches,
    settings: LoopConfig,
    folder: Path,
    *,
    accelerator: Accelerator,
    seed: int,
    after_step: AfterStep | None = None,
    after_epoch: Callable[[int], None] | None = None,
    resume: bool = False,
    console: Console,
    hidden: Collection[str] = (),
) -> FitResult:
    """Train the model's trainable parameters and leave it with the best epoch's tuned state (the average's if on).

    `accelerator` says where and in which precision; every
    random number comes from `seed`.
    `after_epoch(epoch)`, from 1, is called when an epoch has been validated, with what was validated in the model; it
    may not change it. `hidden` are metrics that `console` does not show.

    Writes folder/metrics.jsonl, folder/allocation.jsonl and folder/checkpoints/. With `resume` it goes on from the
    newest checkpoint, or starts where there is none; of a finished run it loads the result.

    Raises:
        Interrupted: Ctrl-C, SIGTERM or SIGHUP; a checkpoint was written.
        Diverged: the loss or the weights are not finite; the model has the best epoch so far, if there is one.
        UserError: the folder cannot be written or holds another run, the newest checkpoint
            is damaged or of other settings, or a setting is out of its range.
    """
    check_intervals(settings)
    if not len(train):
        raise UserError("an epoch has no batch: there are fewer images than batch_size; lower --batch-size")
    if not resume and world.from_first(lambda: bool(checkpoints(folder))):
        raise UserError(f"{folder} holds a run already; go on with --resume, or choose another folder")
    run = start_run(folder, model, settings, accelerator, after_step, len(train), seed=seed, resume=resume)
    if not run.position.finished:
        try:
            train_epochs(run, learner, train, val, after_epoch, console, hidden)
        except Diverged as error:
            if world.is_first():
                write_divergence(folder, error.step, error.rate, settings.peak_lr)
            if run.best is not None:
                load_tuned_state(model, run.best)
                error.best_epoch = run.position.best_epoch
            raise
    return finish(run, learner)


def finish(run: TrainState, learner: Learner) -> FitResult:
    """Load the best epoch's tuned state, and return what the training came to.

    Raises:
        UserError: no epoch had a finite metric.
    """
    at = run.position
    if run.best is None or at.best_metric is None:
        no_epoch = f"{DIVERGED[1]} no epoch of {run.folder} has a finite {learner.selection} on val"
        raise UserError(f"{no_epoch}; train again with --overwrite and a lower --lr")
    last = None
    if at.best_epoch != at.epochs:
        last = copied(run.average.shadow if run.average is not None else tuned_state(run.model), device="cpu")
    load_tuned_state(run.model, run.best)
    return FitResult(
        best_metric=at.best_metric,
        best_epoch=at.best_epoch,
        epochs_done=at.epochs,
        steps=at.step,
        seconds=at.seconds,
        peak_memory_bytes=at.peak_memory_bytes,
        history=tuple(row for row in read_metrics(run.folder) if row["kind"] == "val") if world.is_first() else (),
        last=last,
    )


def train_epochs(
    run: TrainState,
    learner: Learner,
    train: Batches,
    val: Batches,
    after_epoch: Callable[[int], None] | None,
    console: Console,
    hidden: Collection[str] = (),
) -> None:
    """Train and validate until the last epoch, or until early stopping."""
    at, settings = run.position, run.settings
    rows = read_metrics(run.folder, learner.selection) if at.step else []
    curve = [row[learner.selection] for row in rows if row["kind"] == "val"]
    progress = Progress(console, epochs=settings.epoch_count, steps=run.steps, done=at.step, curve=curve, hidden=hidden)
    whole = as_whole_batches(run.model) if world.count() > 1 else nullcontext()
    with StopSignals() as stop, progress, whole:
        while not at.finished:
            train_epoch(run, learner, train, progress, stop)
            validate(run, learner, val, progress, stop, after_epoch)


def train_epoch(run: TrainState, learner: Learner, train: Batches, progress: Progress, stop: StopSignals) -> None:
    """Do the steps of an epoch, or what is left of it."""
    at, settings = run.position, run.settings
    epoch = at.epochs + 1
    log_every = math.ceil(len(train) / settings.accumulate / ROWS_PER_EPOCH)
    train_mode(run.model)
    run.memory.restart()
    speed = Speed()
    for group in groups(train.epoch(epoch, skip=at.batches), settings.accumulate):
        step = at.step + 1
        seed_step(run.seed, step)
        run.schedule.step_update(at.step)
        loss = optimiser_step(run, learner, group, stop)
        record = after_step_of(run, step)
        run.optimizer.zero_grad()
        if run.average is not None:
            run.average.update(run.model, step)

        at.step = step
        at.batches += len(group)
        at.loss_sum += loss
        at.loss_count += 1
        images = sum(map(images_in, group))
        speed.images += images
        progress.step(step, epoch, loss=loss, images=images, memory=run.memory.bytes)
        if record is not None:
            run.allocation.append({"step": step, **record})
        ends = at.batches == len(train)
        if ends or step % log_every == 0:
            log_training(run, epoch, speed)
        due = settings.checkpoint_every and step % settings.checkpoint_every == 0
        asked = stop.requested if world.count() == 1 else run.asked
        if not ends and (due or asked):  # at the end of an epoch the validation comes first
            checkpoint = run.save()
            if asked:
                raise Interrupted(step, checkpoint, asked)


def images_in(batch: Mapping[str, Any]) -> int:
    """Return how many images a batch has; a part of one tells those of all of it."""
    return batch[PART].whole if PART in batch else len(next(iter(batch.values())))


def after_step_of(run: TrainState, step: int) -> dict[str, Any] | None:
    """Do the method's part of a step. Raises Diverged where it finds that the weights are not finite."""
    try:
        record = run.after_step(step) if run.after_step is not None else None
    except FloatingPointError as error:
        run.position.step = step
        raise run.diverged(short_reason(error)) from error
    if record is not None:
        check_budgets(record, step)
    return record


def optimiser_step(run: TrainState, learner: Learner, group: list[dict[str, Any]], stop: StopSignals) -> float:
    """Do one step on the mean loss of a group of batches, which is returned; gradients stay, unscaled and clipped.

    Of several processes each has a part of each batch; their gradients are summed once.

    In fp16 the scaler leaves out the update where gradients overflow; it counts as a step all the same.
    """
    accelerator, settings, step = run.accelerator, run.settings, run.position.step + 1
    losses = []
    for batch in group:
        moved, part = on_device(batch, accelerator.device), batch.get(PART)
        with computing(part):
            with accelerator.autocast(), run.memory.forward(moved.values()):
                loss = learner.loss(run.model, moved)
            if part is not None and not part.counts:
                loss = loss * 0
            accelerator.backward(loss / len(group))
        losses.append(loss.detach().float())
    found = torch.stack(losses).mean()
    if world.count() > 1:
        found, run.asked = sum_gradients(run.model, found, stop.requested)
    mean = float(found)
    if not math.isfinite(mean):
        run.position.step = step
        raise run.diverged(f"the loss is {mean}")
    if settings.clip_grad is not None:
        trained = [p for p in run.model.parameters() if p.requires_grad]
        accelerator.clip_grad_norm_(trained, settings.clip_grad)  # unscales first
    else:
        accelerator.unscale_gradients()
    run.optimizer.step()
    run.memory.step_done()
    return mean


def validate(
    run: TrainState,
    learner: Learner,
    val: Batches,
    progress: Progress,
    stop: StopSignals,
    after_epoch: Callable[[int], None] | None = None,
) -> None:
    """End an epoch: metrics on val, the best state, early stopping, the checkpoint."""
    at, settings = run.position, run.settings

    def seen(done: int, total: int) -> None:
        progress.validated(done, total)
        if stop.requested and done < total:
            raise EvaluationStopped

    try:
        with run.average.applied(run.model) if run.average is not None else nullcontext():
            _check_tuned(run)
            evaluation = evaluate(run.model, learner, val, run.accelerator, seed=run.seed, seen=seen)
            metrics = world.from_first(lambda: {name: float(value) for name, value in evaluation.metrics.items()})
            score = score_of(learner, metrics)
            better = is_better(score, at.best_metric, learner.higher_is_better)
            better |= settings.keep == "last" and math.isfinite(score)
            best = better or score == at.best_metric  # of equals the later epoch: learning rate and budgets went on
            if best:
                run.best = copied(tuned_state(run.model), device="cpu")
    except EvaluationStopped:  # the checkpoint stands before the validation, which a resume does again
        asked = agreed_signal(stop.requested)
        assert asked is not None
        raise Interrupted(at.step, run.save(), asked) from None

    at.epochs += 1
    at.batches = 0
    if best:
        at.best_metric, at.best_epoch = score, at.epochs
    at.stale = 0 if better else at.stale + 1
    at.finished = at.epochs == settings.epoch_count or 0 < settings.early_stopping <= at.stale
    run.metrics.append({"kind": "val", "epoch": at.epochs, "step": at.step, **metrics})
    run.accelerator.log({f"val/{name}": value for name, value in metrics.items()}, step=at.step)
    progress.epoch_done(at.epochs, metrics, score=score, best=best)
    due = not settings.checkpoint_every or at.step % settings.checkpoint_every == 0
    asked = agreed_signal(stop.requested)
    if due or at.finished or asked:
        checkpoint = run.save()
        if asked:
            raise Interrupted(at.step, checkpoint, asked)
    if after_epoch is not None:
        with run.average.applied(run.model) if run.average is not None else nullcontext():
            after_epoch(at.epochs)


def _check_tuned(run: TrainState) -> None:
    """Raise Diverged where what is tuned is not finite, and UserError where processes have it differently."""
    if broken := not_finite(tuned_state(run.model)):
        raise run.diverged(f"diverged: {broken} is not finite")
    check_weights(tuned_state(run.model))


def score_of(learner: Learner, metrics: Mapping[str, float]) -> float:
    """Return the metric that chooses the best epoch; not finite where some image is beyond what the model can do."""
    return metrics[learner.selection] if math.isfinite(metrics.get("loss", 0)) else math.nan


def is_better(metric: float, best: float | None, higher_is_better: bool) -> bool:
    """Return whether a metric beats the best so far; a tie does not, and what is not finite never does."""
    if best is None or not math.isfinite(metric):
        return math.isfinite(metric)
    return metric > best if higher_is_better else metric < best


def groups(batches: Iterator[dict[str, Tensor]], size: int) -> Iterator[list[dict[str, Tensor]]]:
    """Yield lists of `size` batches; the last one may be shorter."""
    while group := list(islice(batches, size)):
        yield group


def log_training(run: TrainState, epoch: int, speed: Speed) -> None:
    """Write a "train" row: the mean loss since the last one."""
    at = run.position
    row = {
        "loss": at.loss_sum / at.loss_count,
        "lr": run.optimizer.param_groups[0]["lr"],
        "images_per_second": speed.per_second(),
    }
    run.metrics.append({"kind": "train", "step": at.step, "epoch": epoch, **row})
    run.accelerator.log({f"train/{name}": value for name, value in row.items()}, step=at.step)
    at.loss_sum, at.loss_count = 0.0, 0
    speed.restart()
