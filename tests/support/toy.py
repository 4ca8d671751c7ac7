"""A toy training in which everything moves: random numbers, budgets, buffers, an allocator with a memory.

Run as a program, it trains in processes of their own: toy.py ROOT [interrupt-STEP | die-STEP] ... trains each in
ROOT/interrupt-STEP or ROOT/die-STEP, writes what it says to ROOT/JOB.stderr, and prints the exit codes.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor, nn

from snella.config.loop import LoopConfig
from snella.training import checkpoint
from snella.training.interfaces import DeviceBatch, DeviceBatches
from snella.training.loop import FitResult, fit

SETTINGS = LoopConfig(epochs=3, lr=0.02, accumulate=2, ema=0.8, clip_grad=0.5, checkpoint_every=2)
EVERY_STEP = range(1, 10)  # three epochs of five batches, two to a step


class Net(nn.Module):
    """A frozen base with a frozen batch norm, and an adapter and a head to train."""

    kept: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.base = nn.Linear(6, 8).requires_grad_(False)
        self.norm = nn.BatchNorm1d(8).requires_grad_(False)
        self.a = nn.Parameter(torch.randn(8, 2) / 3)
        self.b = nn.Parameter(torch.randn(2, 6) / 3)
        self.register_buffer("kept", torch.tensor([12, 12]))
        self.trained_norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        delta = self.a @ self.b
        delta = delta * (delta.abs() >= delta.abs().flatten().topk(int(self.kept.sum())).values[-1])
        x = self.norm(self.base(x) + x @ delta.T)
        return self.head(self.dropout(F.gelu(self.trained_norm(x))))


class Allocator:
    """An AfterStep whose budget falls with the importance that it has averaged."""

    def __init__(self, model: Net) -> None:
        self.model = model
        self.mean = torch.zeros_like(model.a)

    @torch.no_grad()
    def __call__(self, step: int) -> dict[str, Any] | None:
        assert self.model.a.grad is not None
        self.mean.lerp_((self.model.a * self.model.a.grad).abs(), 0.3)
        if step % 2:
            return None
        self.model.kept.copy_(8 + (self.mean.sum(0) * 1e6).long() % 8)
        return {"kept": self.model.kept.tolist()}

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.mean = state["mean"].clone()


@dataclass
class Metrics:
    metrics: dict[str, float]


class Classification:
    """A learner that uses all three random generators."""

    selection = "loss"
    higher_is_better = False

    def loss(self, model: nn.Module, batch: DeviceBatch, /) -> Tensor:
        noise = 0.1 * torch.randn(batch["x"].shape, device=batch["x"].device)
        scale = 1 + 0.1 * random.random() + 0.1 * float(np.random.rand())
        return F.cross_entropy(model(batch["x"] * scale + noise), batch["y"])

    def evaluate(self, model: nn.Module, batches: DeviceBatches, /) -> Metrics:
        losses, hits, count = 0.0, 0, 0
        for batch in batches:
            logits = model(batch["x"] + 0.01 * torch.randn_like(batch["x"])).float()
            losses += F.cross_entropy(logits, batch["y"], reduction="sum").item()
            hits += int((logits.argmax(1) == batch["y"]).sum())
            count += len(logits)
        return Metrics({"loss": losses / count, "top1": hits / count})


class ToyBatches:
    """`count` batches of four, in an order of their own in each epoch."""

    def __init__(self, count: int, seed: int, tap: Callable[[int, int], None] | None = None) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.x = torch.randn(4 * count, 6, generator=rng)
        self.y = self.x[:, :3].argmax(1)
        self.seed = seed
        self.tap = tap  # told (epoch, batch) before each batch

    def __len__(self) -> int:
        return len(self.x) // 4

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[dict[str, Tensor]]:
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.x)).reshape(-1, 4)
        for number, index in enumerate(order[skip:], start=skip):
            if self.tap is not None:
                self.tap(epoch, number)
            yield {"x": self.x[index], "y": self.y[index]}


def quiet() -> Console:
    return Console(file=StringIO())


def train(
    folder: Path,
    *,
    settings: LoopConfig = SETTINGS,
    resume: bool = False,
    at_step: Callable[[int], None] | None = None,
    at_validation: Callable[[int, int], None] | None = None,
    model: Net | None = None,
    task: Classification | None = None,
) -> tuple[Net, FitResult]:
    """The toy training from scratch or resumed; `at_step(step)` is called at the end of each step."""
    model = model or Net()

    class Watched(Allocator):
        def __call__(self, step: int) -> dict[str, Any] | None:
            record = super().__call__(step)
            if at_step is not None:
                at_step(step)
            return record

    result = fit(
        model,
        task or Classification(),
        ToyBatches(5, seed=1),
        ToyBatches(3, seed=2, tap=at_validation),
        settings,
        folder,
        accelerator=Accelerator(cpu=True),
        seed=5,
        after_step=Watched(model),
        resume=resume,
        console=quiet(),
    )
    return model, result


def interrupt_at(step: int) -> Callable[[int], None]:
    return lambda now: os.kill(os.getpid(), signal.SIGINT) if now == step else None


def die_while_saving(step: int) -> Callable[[int], None]:
    """End the process in the middle of a file of that step's checkpoint."""
    write = checkpoint._write

    def half(path: Path, content: bytes) -> int:
        if path.name == "optimiser.safetensors":
            path.write_bytes(content[: len(content) // 2])
            os._exit(9)
        return write(path, content)

    def at_step(now: int) -> None:
        if now == step:
            checkpoint._write = half

    return at_step


def main(root: Path, *jobs: str) -> None:
    """Run the jobs one after another; forks, made before anything is computed, share the import of the libraries."""
    for job in jobs:
        process = os.fork()
        if not process:
            with open(root / f"{job}.stderr", "w") as file:
                os.dup2(file.fileno(), sys.stderr.fileno())
            mode, step = job.split("-")
            train(root / job, at_step={"interrupt": interrupt_at, "die": die_while_saving}[mode](int(step)))
            sys.exit()
        print(job, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), *sys.argv[2:])
