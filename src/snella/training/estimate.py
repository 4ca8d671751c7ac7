"""What a training step of a run will need in memory, before it trains.

    weights + gradients + moments + average (EMA) + fixed + images of a batch · per image

The last two are what a forward pass of the task's loss keeps for the backward pass: counted, as
`snella.training.memory` counts on a CPU, for two small batches of the run's own training images, and taken to grow
linearly between them. On CUDA the same tensors count: without the allocator's and the kernels' workspace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Group, RenderableType
from rich.table import Table
from torch import nn

from snella.training.evaluation import on_device, seed_step
from snella.training.interfaces import Learner
from snella.training.memory import PeakMemory, step_bytes, weight_bytes
from snella.training.optimiser import moment_bytes
from snella.training.tuned_weights import train_mode, tuned_state

MakeBatch = Callable[[int], dict[str, Any]]  # a training batch of so many images


@dataclass(frozen=True)
class Estimate:
    """Bytes of a training step, by what they are for."""

    weights: int
    gradients: int
    moments: int  # of the optimiser
    average: int  # of the tuned weights (EMA); 0 without
    fixed: int  # kept by the forward pass whatever the batch
    per_image: int  # kept by the forward pass for each image
    batch_size: int  # images in a batch of the run
    free: int | None  # on the device before the run; None where it has no memory of its own

    @property
    def constant(self) -> int:
        """Return all that does not depend on the batch."""
        return self.weights + self.gradients + self.moments + self.average + self.fixed

    @property
    def total(self) -> int:
        return self.constant + self.batch_size * self.per_image

    @property
    def fitting(self) -> int | None:
        """Return the images of the largest batch whose step fits the free memory; None where that is not known."""
        if self.free is None or not self.per_image:
            return None
        return max(0, (self.free - self.constant) // self.per_image)


def estimate(
    model: nn.Module,
    learner: Learner,
    make_batch: MakeBatch,
    accelerator: Accelerator,
    *,
    batch_size: int,
    optimizer: str,
    averaged: bool,
    seed: int,
) -> Estimate:
    """Run the forward pass of two small batches in training mode, and count. The model goes to the device."""
    device = accelerator.device
    free = None
    if device.type == "cuda":
        model.to("cpu")  # making a prior's images may have left it there
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0]
    model.to(device)
    train_mode(model)

    def kept(images: int) -> tuple[int, int]:
        """Return the images that the batch had, and the bytes that its forward pass keeps."""
        batch = on_device(make_batch(images), device)
        seed_step(seed, 1)
        memory = PeakMemory(model, torch.device("cpu"))  # which counts tensors, wherever they are
        with accelerator.autocast(), memory.forward(batch.values()):
            loss = learner.loss(model, batch)
        del loss
        return len(next(iter(batch.values()))), memory.bytes - step_bytes(model, 0)

    try:
        small, large = kept(1), kept(2)
    except (ValueError, AssertionError):  # a batch norm over one value has no variance
        small, large = kept(2), kept(4)
    more = large[0] - small[0]
    per_image = (large[1] - small[1]) // more if more else small[1] // small[0]  # more: there are as many images
    trained = [p for p in model.parameters() if p.requires_grad]
    return Estimate(
        weights=weight_bytes(model),
        gradients=sum(p.nbytes for p in trained),
        moments=moment_bytes(optimizer, trained),
        average=sum(tensor.nbytes for tensor in tuned_state(model).values()) if averaged else 0,
        fixed=max(0, small[1] - small[0] * per_image),
        per_image=per_image,
        batch_size=batch_size,
        free=free,
    )


def estimate_table(found: Estimate) -> RenderableType:
    """Return the parts and their sum in MB (10^6 bytes); below, what would fit."""
    rows = Table(title="memory of a training step", caption="without the allocator's and kernels' workspace")
    rows.add_column("")
    rows.add_column("MB", justify="right")
    parts = {
        "weights": found.weights,
        "gradients": found.gradients,
        "the optimiser's moments": found.moments,
        "average of the weights (EMA)": found.average,
        "kept by the forward pass, whatever the batch": found.fixed,
        f"kept for {found.batch_size} images of {found.per_image / 1e6:,.2f} MB": found.batch_size * found.per_image,
    }
    for name, size in parts.items():
        if size:
            rows.add_row(name, f"{size / 1e6:,.2f}")
    rows.add_section()
    rows.add_row("in all", f"{found.total / 1e6:,.2f}", style="bold")
    if found.free is None:
        return rows
    fitting = "" if found.fitting is None else f": fits --batch-size {found.fitting}"
    return Group(rows, f"free on the device: {found.free / 1e6:,.0f} MB{fitting}")
