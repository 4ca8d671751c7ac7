"""How to train: the loop's settings and their ranges. Imports nothing heavy, for the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass

from snella.errors import UserError

OPTIMIZERS = ("adamw", "adamw8bit")
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How to train. Steps are optimiser steps.

    Raises:
        UserError: a value is outside its range.
    """

    epochs: int
    optimizer: str = "adamw"  # or adamw8bit: its moments in 8 bits, by bitsandbytes on CUDA
    lr: float = 1e-3  # as published, as are min_lr, warmup_lr and eps
    min_lr: float = 1e-5
    warmup_lr: float = 1e-6
    warmup: float = 0.1  # fraction of all steps: 10 of the published 100 epochs
    weight_decay: float = 0.05
    eps: float = 1e-8
    clip_grad: float | None = None  # largest norm of all gradients together; None: published code does not clip
    accumulate: int = 1  # batches a step; the last step of an epoch takes what is left
    ema: float | None = None  # decay a step; the average is then what is validated and saved
    early_stopping: int = 0  # epochs without improvement; 0: off, every epoch is seen
    checkpoint_every: int = 0  # steps; 0: once an epoch
    precision: str = "fp32"  # or bf16, fp16: autocast
    device: str = "auto"  # or a torch device
    seed: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        ranges = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "lr": (0 < self.lr < math.inf, "a positive number"),
            "min_lr": (0 <= self.min_lr <= self.lr, f"between 0 and lr ({self.lr:g})"),
            "warmup_lr": (0 <= self.warmup_lr < math.inf, "0 or a positive number"),
            "warmup": (0 <= self.warmup < 1, "a fraction of all steps, from 0 to below 1"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or a positive number"),
            "eps": (0 < self.eps < math.inf, "a positive number"),
            "clip_grad": (self.clip_grad is None or self.clip_grad > 0, "a positive number"),
            "accumulate": (self.accumulate >= 1, "at least 1"),
            "ema": (self.ema is None or 0 <= self.ema < 1, "a decay from 0 to below 1"),
            "early_stopping": (self.early_stopping >= 0, "0 (off) or a number of epochs"),
            "checkpoint_every": (self.checkpoint_every >= 0, "0 (once an epoch) or a number of steps"),
            "optimizer": (self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}"),
            "precision": (self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
            "seed": (self.seed >= 0, "0 or a positive integer"),
        }
        for name, (fine, need) in ranges.items():
            if not fine:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be {need}")
