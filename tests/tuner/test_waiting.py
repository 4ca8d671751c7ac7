"""A training step never makes the host wait for the device: with CUDA by its own check, without by what would wait."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from snella import SnellaConfig
from snella.ops import native, sampling, selection
from snella.training.optimiser import adamw
from support.tuned import tuner_of

LEVELS = (False, True, "mlp")
OPTIONS = [
    *({"rematerialize": level} for level in LEVELS),
    *({"kernel": "pwl"}, {"gate": "soft"}, {"gate": "none"}),
    *({"sample_tokens": 0.25}, {"update_drop_path": 0.3}, {"update_dropout": 0.1}),
]
# lines that look at a value where the device is the CPU alone, and that draw there whatever the device
ON_THE_CPU = ('.type == "cpu"', "there = int(torch.count_nonzero", "row.nonzero()", "(~row).nonzero()")
WAIT = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "item")


class Waits(TorchDispatchMode):
    """Knows which operations would wait for a device: those whose result, or its size, the host has to know."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0]
        masks = name.startswith("index") and any(
            isinstance(i, Tensor) and i.dtype == torch.bool
            for arg in args
            if isinstance(arg, list | tuple)
            for i in arg
        )
        if name.startswith(WAIT) or masks:
            lines = [frame.line or "" for frame in traceback.extract_stack() if "snella/" in frame.filename]
            if not any(words in line for line in lines for words in ON_THE_CPU):
                self.found.append(f"{name}: {lines[-1:]}")
        return func(*args, **(kwargs or {}))


def tuned(vit: nn.Module, options: dict[str, Any]) -> nn.Module:
    config = SnellaConfig(r=4, init_sparsity=0.3, target_sparsity=0.7, total_step=10, **options)
    return peft.get_peft_model(vit, config).train()  # type: ignore[arg-type]


def forward_and_backward(model: nn.Module, images: Tensor) -> None:
    nn.functional.cross_entropy(
        model(images), torch.zeros(len(images), dtype=torch.long, device=images.device)
    ).backward()


@pytest.fixture
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the CPU take the ways of a device: tensor operations, digits, and no look at how many rows are zero."""
    monkeypatch.setattr(native, "available", lambda A: False)
    monkeypatch.setattr(selection, "select_by_sample", selection.select_by_digits)


@pytest.mark.usefixtures("as_on_a_device")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_nothing_in_a_step_waits(options: dict[str, Any], vit: nn.Module, images: Tensor) -> None:
    model = tuned(vit, options)
    with Waits() as waits:
        forward_and_backward(model, images)
    assert waits.found == []


def test_selection_and_the_averages_do_not_wait(vit: nn.Module, images: Tensor) -> None:
    model = tuned(vit, {})
    forward_and_backward(model, images)
    tuner = tuner_of(model)
    tuner.update_and_allocate(1)
    importance = tuner._importance("default")
    layers = tuner.adapted_layers()
    factors = {f"{layer.name}.{f}": getattr(layer, f"snella_{f}")["default"] for layer in layers for f in "AB"}
    with Waits() as waits, torch.no_grad():
        selection.threshold_by(torch.randn(50, 40), torch.tensor(300), True, selection.select_by_digits)
        importance._update_at_once(factors)
    assert waits.found == []
    with Waits() as waits:
        torch.ones(3)[torch.ones(3) > 0].sum().item()
    assert waits.found  # it finds what it looks for


@pytest.fixture
def waiting_is_an_error() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.usefixtures("waiting_is_an_error")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_on_cuda(options: dict[str, Any], vit: nn.Module, images: Tensor) -> None:
    model, images = tuned(vit, options).cuda(), images.cuda()
    optimizer = adamw(model, lr=1e-3, weight_decay=0.05)
    importance = tuner_of(model)._importance("default")

    def step(number: int) -> None:
        forward_and_backward(model, images)
        optimizer.step()
        _, layers = tuner_of(model)._active_layers()
        factors = {f"{layer.name}.{f}": getattr(layer, f"snella_{f}")["default"] for layer in layers for f in "AB"}
        importance.update(factors)
        optimizer.zero_grad()

    for number in range(2):  # kernels are compiled and tuned, the optimiser's state is made
        step(number)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    step(2)
    torch.cuda.set_sync_debug_mode("default")
    tuner_of(model).update_and_allocate(3)  # scores come to the host: one wait
    assert importance.skipped == 0


def test_sampled_rows_are_chosen_without_a_look_on_other_devices() -> None:
    g, x = torch.randn(12, 4, device="meta"), torch.randn(12, 3, device="meta")
    sample = sampling.Sample(0.5, torch.rand((), device="meta"))
    chosen, weights = sampling.choose_rows(g, x, sample)  # a meta tensor has no value to look at
    assert chosen.shape == weights.shape == (6,)
