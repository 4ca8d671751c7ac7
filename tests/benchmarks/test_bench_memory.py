"""The count of what a forward pass keeps: by hand, and against PyTorch's own allocator."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from benchmarks.memory import kept_bytes, step_memory
from benchmarks.methods import METHODS
from benchmarks.timing import make_contender

F32 = 4
ROWS, WIDTH, OUT = 4, 6, 10


def counted(model: nn.Module) -> int:
    x = torch.randn(ROWS, WIDTH)
    return kept_bytes(lambda: model(x).square().sum(), model, (x,))


def test_linear_gelu_layer_norm() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, OUT), nn.GELU(), nn.LayerNorm(OUT))

    # GELU's input, LayerNorm's input and its rows' mean and 1/std, and the square's input; the batch does not count
    assert counted(model) == F32 * (3 * ROWS * OUT + 2 * ROWS)


def test_frozen_layers_keep_nothing_below_the_first_trained_one() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, OUT), nn.GELU(), nn.Linear(OUT, 3)).requires_grad_(False)
    model[2].requires_grad_(True)

    assert counted(model) == F32 * (ROWS * OUT + ROWS * 3)  # the last layer's input, and the square's


class OnContext(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.kept = x.exp()  # not by save_for_backward: autograd knows nothing of it
        return (ctx.kept.log() * scale).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0] * ctx.kept.sum()


class KeepsOnContext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return OnContext.apply(x, self.scale)


class KeepsAsAttribute(nn.Module):
    kept: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.kept = (2 * x)[:1]  # a view: all of its storage is there
        return x.detach().sum()


class KeepsNumPyMemory(nn.Module):
    kept: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.kept = torch.from_dlpack(np.ones((ROWS, WIDTH), np.float32))  # no operation makes it
        return (x * self.kept).sum().detach()


@pytest.mark.parametrize("model", [KeepsOnContext(), KeepsAsAttribute(), KeepsNumPyMemory()])
def test_what_is_kept_without_autograd(model: nn.Module) -> None:
    loss = F32 if isinstance(model, KeepsOnContext) else 0  # there the square of the sum keeps the sum
    assert counted(model) == F32 * ROWS * WIDTH + loss


def test_what_a_hook_keeps() -> None:
    model, kept = nn.Linear(WIDTH, OUT).requires_grad_(False), []
    model.register_forward_hook(lambda module, inputs, output: kept.append(output.double()))

    assert counted(model) == 8 * ROWS * OUT


def test_what_a_cycle_alone_holds_does_not_count() -> None:
    class Cycle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            cycle: list[Any] = [2 * x]
            cycle.append(cycle)
            return x.sum()

    assert counted(Cycle()) == 0


def test_a_checkpoint_keeps_its_input_alone() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.rest = nn.Linear(WIDTH, OUT), nn.Sequential(nn.GELU(), nn.Linear(OUT, 50), nn.GELU())

        def forward(self, x: Tensor) -> Any:
            return checkpoint(self.rest, self.first(x), use_reentrant=False)

    assert counted(Checkpointed()) == F32 * (ROWS * OUT + ROWS * 50)  # and the square's input


def allocator_bytes(base: nn.Module, name: str, batch: tuple[Tensor, Tensor]) -> int:
    """Count the net bytes that PyTorch's CPU allocator reports of a forward pass whose loss is kept."""
    contender = make_contender(name, base, r=4, device=torch.device("cpu"), dtype=torch.float32)
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss = contender.loss(*batch)
        gc.collect()
    assert loss.requires_grad
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events: Any = profiler.profiler.kineto_results.events()  # the stubs lack nbytes
    return sum(event.nbytes() for event in events if event.name() == "[memory]")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_as_the_allocator_has_it(name: str, base: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    contender = make_contender(name, base, r=4, device=torch.device("cpu"), dtype=torch.float32)
    kept = kept_bytes(lambda: contender.loss(*batch), contender.model, batch)
    checkpoints = {"snella-mlp-gc": 1, "published-gc": 2 * (3 + 3)}.get(name, 2 if "-gc" in name else 0)

    # no operation makes the random state that a checkpoint keeps, nor the numbers that tensors are multiplied by
    missing = allocator_bytes(base, name, batch) - kept - checkpoints * torch.get_rng_state().nbytes
    assert 0 <= missing <= 200
    assert kept > 10_000


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_total_has_weights_gradients_and_moments(dtype: torch.dtype, size: int) -> None:
    model = nn.Sequential(nn.Linear(WIDTH, OUT), nn.Linear(OUT, 3)).to(dtype)
    model[0].requires_grad_(False)
    memory = step_memory(model, saved_bytes=1000)
    frozen, trained = WIDTH * OUT + OUT, OUT * 3 + 3

    assert (memory.parameters, memory.trainable) == (frozen + trained, trained)
    assert memory.total_bytes == 1000 + size * (frozen + trained) + 3 * size * trained
