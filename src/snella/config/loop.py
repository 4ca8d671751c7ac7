"""The settings of the training loop. Steps are optimiser steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from snella.config.fields import above, at_least, from_below, inside, setting

Optimizer = Literal["adamw", "adamw8bit"]
Keep = Literal["best", "last"]
TRACKER_NAMES = ("tensorboard", "wandb", "mlflow", "trackio")


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How to train."""

    epochs: int | Literal["auto"] = setting("auto", at_least(1))
    """Passes over the training images, or over the images for prior_prompt where those are more. 100 as published.
    auto: as many as make 1500 steps, but at least 10 and at most 100."""
    optimizer: Optimizer = setting("adamw")
    """What makes a step of the gradients: adamw as published.
    adamw8bit keeps AdamW's two moments in 8 bits (needs the package bitsandbytes and a CUDA device)."""
    lr: float | Literal["auto"] = setting("auto", above(0))
    """Peak learning rate. 1e-3 as published. auto: what is usual for the method and the kind of backbone, and of snella
    and snell less in long trainings, since their update grows with the square of the steps; it is said. To be sure of
    a rate, compare several (snella compare)."""
    min_lr: float = setting(1e-05, at_least(0))
    """Learning rate at the end of the cosine. 1e-5 as published."""
    warmup_lr: float = setting(1e-06, at_least(0))
    """Learning rate at the first step. 1e-6 as published."""
    warmup: float = setting(0.1, from_below(0, 1))
    """Share of all steps over which the learning rate rises, below 1. 0.1 is the published 10 epochs of 100."""
    weight_decay: float = setting(0.05, at_least(0))
    """Decoupled weight decay of AdamW; one-dimensional parameters have none. 0.05 is the most frequent published."""
    clip_grad: float | None = setting(None, above(0))
    """Largest norm of the gradient. None: not clipped, as published."""
    accumulate: int = setting(1, at_least(1))
    """Batches per optimiser step: a larger batch in the same memory."""
    ema: float | None = setting(None, inside(0, 1))
    """Decay of an average of the tuned weights, which is then what is evaluated and saved.
    0.9999 as published for FGVC. None: no average, since a short run would hardly move it."""
    average: float = setting(0.0, from_below(0, 1))
    """Share of the steps, at the end, whose weights are averaged: the mean of the tuned weights after each of them is
    what is evaluated and saved, 0 to 1. Not together with --ema. 0: no average, as published."""
    keep: Keep = setting("best")
    """Which epoch is kept: best, by the validation split, or last. A validation split of a few hundred images says
    less of an epoch than its place in the schedule."""
    early_stopping: int = setting(0, at_least(0))
    """Epochs without a better validation score after which training ends. 0: never, as published."""
    checkpoint_every: int = setting(0, at_least(0), free=True)
    """Steps between two checkpoints. 0: one at the end of each epoch."""
    tracker: str | None = setting(None, free=True)
    """Who else is told how it goes, with commas between them: tensorboard, wandb, mlflow, trackio (each needs its
    package). They get the settings, metrics, pictures and the report, write to the run folder, and send nothing
    elsewhere unless their own environment variables say so."""
    tracker_adapter: bool = setting(False, free=True)
    """Give the trackers the adapter too, in the end."""
    tensorboard: bool = setting(False, free=True)
    """The same as --tracker tensorboard."""

    @property
    def trackers(self) -> tuple[str, ...]:
        """Return the names of the trackers that are asked for, each once."""
        words = [word.strip() for word in (self.tracker or "").split(",")]
        return tuple(dict.fromkeys([*filter(None, words), *(["tensorboard"] if self.tensorboard else [])]))

    @property
    def peak_lr(self) -> float:
        """Return the learning rate, once what `auto` stands for has taken its place."""
        assert self.lr != "auto"
        return self.lr

    @property
    def epoch_count(self) -> int:
        """Return the number of epochs, once what `auto` stands for has taken its place."""
        assert self.epochs != "auto"
        return self.epochs
