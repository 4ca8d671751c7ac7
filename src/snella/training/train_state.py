"""A run: the moving parts of a training, and how they go into a checkpoint and come back."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from snella.config.loop import LoopConfig
from snella.distributed import world
from snella.errors import UserError
from snella.files import Records
from snella.json_files import Count, Record
from snella.report.rows import ALLOCATION, METRICS
from snella.training.checkpoint import (
    Tensors,
    checkpoint_of,
    newest_checkpoint,
    read_checkpoint,
    read_divergences,
    step_of,
    write_checkpoint,
)
from snella.training.interfaces import AfterStep
from snella.training.interrupt import Diverged
from snella.training.memory import PeakMemory
from snella.training.optimiser import cosine_schedule, load_optimiser_tensors, make_optimiser, optimiser_tensors
from snella.training.tuned_weights import WeightAverage, average_of, load_tuned_state, tuned_state

FORMAT = 1  # of what a checkpoint holds
RATES = ("lr", "min_lr", "warmup_lr")  # what a run that has diverged may go on with at lower values
FREE = {part.name for part in fields(LoopConfig) if part.metadata["reading"].free}


@dataclass
class Position:
    """How far a run is; goes into the checkpoint as JSON."""

    step: Count = 0  # optimiser steps done
    epochs: Count = 0  # epochs done, with their validation
    batches: Count = 0  # batches done of the epoch under way
    loss_sum: float = 0.0  # since the last row of metrics.jsonl
    loss_count: Count = 0
    best_metric: float | None = None
    best_epoch: Count = 0
    stale: Count = 0  # epochs since one was better than all before, not only as good
    seconds: float = 0.0
    peak_memory_bytes: Count = 0
    metrics_rows: Count = 0
    allocation_rows: Count = 0
    finished: bool = False


STATE_HOLDS = Record({"position": Position, "conditions": dict[str, Any]}, {"scaler": dict[str, Any] | None})


@dataclass
class TrainState:
    """Everything that changes while a model trains."""

    folder: Path
    model: nn.Module
    settings: LoopConfig
    seed: int
    accelerator: Accelerator
    adam: torch.optim.Optimizer
    optimizer: torch.optim.Optimizer  # adam, with the scaler of fp16 around it
    schedule: CosineLRScheduler
    after_step: AfterStep | None
    average: WeightAverage | None
    memory: PeakMemory
    best: dict[str, Tensor] | None  # tuned state of the best epoch, on the CPU
    batches_per_epoch: int
    steps: int  # of the whole run
    position: Position
    metrics: Records
    allocation: Records
    clock: float  # when a run without interruption would have started
    asked: int | None = None  # the signal by which one of several processes is asked to stop, agreed after each step

    def save(self) -> Path:
        """Write a checkpoint of this moment, which must lie between two steps; of several processes the first does.

        Raises:
            Diverged: something in it is not finite; nothing is written.
        """
        at = self.position
        at.seconds = time.perf_counter() - self.clock
        at.peak_memory_bytes = self.memory.bytes
        at.metrics_rows, at.allocation_rows = self.metrics.rows, self.allocation.rows
        self.metrics.sync()
        self.allocation.sync()
        tensors = {
            "tuned": tuned_state(self.model),
            "optimiser": optimiser_tensors(self.adam),
            "ema": self.average.shadow if self.average is not None else None,
            "best": self.best,
            "after_step": self.after_step.state_dict() if self.after_step is not None else None,
        }
        scaler = self.accelerator.scaler
        state = {
            "position": asdict(at),
            "conditions": conditions_of(self.settings, self.accelerator, self.seed, self.batches_per_epoch),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        present = {name: group for name, group in tensors.items() if group is not None}
        if broken := not_finite({f"{name} {key}": t for name, group in present.items() for key, t in group.items()}):
            raise self.diverged(f"diverged: {broken} is not finite")
        if not world.is_first():
            return checkpoint_of(self.folder, at.step)
        return write_checkpoint(self.folder, at.step, present, state)

    def diverged(self, what: str) -> Diverged:
        """Return the error that something is not finite after the last step done."""
        remedy = "lower --lr" + (" or use --precision bf16" if self.accelerator.mixed_precision == "fp16" else "")
        return Diverged(what, self.position.step, self.optimizer.param_groups[0]["lr"], remedy)


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor with NaN or infinity, None where there is none."""
    flags = {name: t.isfinite().all() for name, t in tensors.items() if t.is_floating_point()}
    return next((name for name, flag in flags.items() if not flag), None)


class _Unwritten(Records):
    """Rows that another process writes."""

    def __init__(self) -> None:
        self.rows = 0

    def append(self, row: Mapping[str, Any]) -> None:
        pass

    def sync(self) -> None:
        pass


def start_run(
    folder: Path,
    model: nn.Module,
    settings: LoopConfig,
    accelerator: Accelerator,
    after_step: AfterStep | None,
    batches_per_epoch: int,
    *,
    seed: int,
    resume: bool,
) -> TrainState:
    """Return a run at its beginning, or where its newest checkpoint stands if `resume` and there is one.

    Raises:
        UserError: the checkpoint is damaged, or was made with other settings, data or another model.
    """
    conditions = conditions_of(settings, accelerator, seed, batches_per_epoch)
    checkpoint, tensors, state = world.from_first(lambda: _read_newest(folder if resume else None, conditions))
    position = Position(**state.get("position", {}))
    if checkpoint is not None:
        _check_position(checkpoint, position, settings, batches_per_epoch, "best" in tensors)
    model.to(accelerator.device)
    steps = settings.epoch_count * math.ceil(batches_per_epoch / settings.accumulate)
    adam = make_optimiser(settings, model)
    average = average_of(model, settings, steps)
    if checkpoint is not None:
        _load(checkpoint, tensors, state, model, adam, average, accelerator, after_step)
    world.same_tensors(list(tuned_state(model).values()))
    return TrainState(
        folder=folder,
        model=model,
        settings=settings,
        seed=seed,
        accelerator=accelerator,
        adam=adam,
        optimizer=accelerator.prepare_optimizer(adam, device_placement=False),
        schedule=cosine_schedule(
            adam, steps=steps, warmup=settings.warmup, warmup_lr=settings.warmup_lr, min_lr=settings.min_lr
        ),
        after_step=after_step,
        average=average,
        memory=PeakMemory(model, accelerator.device, position.peak_memory_bytes),
        best=tensors.get("best"),
        batches_per_epoch=batches_per_epoch,
        steps=steps,
        position=position,
        metrics=_records(folder / METRICS, position.metrics_rows),
        allocation=_records(folder / ALLOCATION, position.allocation_rows),
        clock=time.perf_counter() - position.seconds,
    )


def _read_newest(folder: Path | None, conditions: dict[str, Any]) -> tuple[Path | None, Tensors, dict[str, Any]]:
    """Return the newest checkpoint of a folder, its tensors and its state; None and nothing where there is none."""
    checkpoint = newest_checkpoint(folder) if folder is not None else None
    if checkpoint is None:
        return None, {}, {}
    tensors, state = read_checkpoint(checkpoint, STATE_HOLDS)
    _check_conditions(checkpoint, state, conditions)
    return checkpoint, tensors, state


def _records(path: Path, rows: int) -> Records:
    return Records(path, rows) if world.is_first() else _Unwritten()


def _load(
    checkpoint: Path,
    tensors: Tensors,
    state: dict[str, Any],
    model: nn.Module,
    adam: torch.optim.Optimizer,
    average: WeightAverage | None,
    accelerator: Accelerator,
    after_step: AfterStep | None,
) -> None:
    """Take over what a checkpoint holds. Raises UserError where it was made of another model or method."""
    try:
        load_tuned_state(model, tensors["tuned"])
        load_optimiser_tensors(adam, tensors["optimiser"])
        if average is not None:
            average.load(tensors["ema"])
        if after_step is not None:
            averages = {name: value.to(accelerator.device) for name, value in tensors["after_step"].items()}
            after_step.load_state_dict(averages)
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
    except (KeyError, ValueError) as error:
        raise UserError(
            f"checkpoint {checkpoint} does not fit this model and method ({error}); start a new run"
        ) from error


def conditions_of(settings: LoopConfig, accelerator: Accelerator, seed: int, batches_per_epoch: int) -> dict[str, Any]:
    """Return what must be the same at a resume."""
    precision = accelerator.mixed_precision
    return {
        **{name: value for name, value in asdict(settings).items() if name not in FREE},
        "precision": "fp32" if precision == "no" else precision,
        "seed": seed,
        "batches an epoch": batches_per_epoch,
        "checkpoint format": FORMAT,
    }


def _check_position(checkpoint: Path, at: Position, settings: LoopConfig, batches: int, has_best: bool) -> None:
    """Refuse a position that no training of these settings can be at. Raises UserError."""
    steps = at.epochs * math.ceil(batches / settings.accumulate) + math.ceil(at.batches / settings.accumulate)
    ended = at.epochs == settings.epoch_count or 0 < settings.early_stopping <= at.stale
    possible = {
        f"step {at.step}": at.step == steps == step_of(checkpoint),
        f"epochs {at.epochs}": at.epochs <= settings.epoch_count and at.batches <= batches,
        f"finished {at.finished}": at.finished == ended,
        f"best_epoch {at.best_epoch}": at.best_epoch <= at.epochs and bool(at.best_epoch) == has_best,
    }
    if wrong := [name for name, is_possible in possible.items() if not is_possible]:
        raise UserError(
            f"{checkpoint / 'state.json'}: {wrong[0]} does not fit the rest of it and the settings; "
            "delete that folder to resume from the one before it"
        )


def _check_conditions(checkpoint: Path, state: dict[str, Any], now: dict[str, Any]) -> None:
    then = state["conditions"]
    lowered = any(found["lr"] > now["lr"] for found in read_divergences(checkpoint.parent.parent))
    for name, value in now.items():
        if lowered and name in RATES:
            continue
        before = then.get(name, getattr(LoopConfig, name, None))  # its default, if it is newer than the checkpoint
        if before != value:
            raise UserError(
                f"checkpoint {checkpoint} was made with {name} {before}, not {value}: "
                "resume with the settings and data of its run, or start a new one"
            )
