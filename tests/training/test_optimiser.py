"""Optimisers: whom they are refused to, and that any state of theirs survives a checkpoint."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, overload

import pytest
import torch
from torch import Tensor, nn

from snella.config.loop import LoopConfig
from snella.errors import UserError
from snella.training.checkpoint import read_checkpoint, write_checkpoint
from snella.training.optimiser import (
    adamw,
    check_optimiser,
    load_optimiser_tensors,
    make_optimiser,
    moment_bytes,
    optimiser_tensors,
)


class EightBit(torch.optim.Optimizer):
    """State of the types that 8-bit optimisers have: codes, code books, scales, a counter; nested or not."""

    def __init__(self, parameters: Any, nested: bool) -> None:
        super().__init__(parameters, {"lr": 1e-3})
        self.nested = nested

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        for group in self.param_groups:
            for p in group["params"]:
                codes = torch.randint(256, p.shape, dtype=torch.uint8)
                scales = {"qmap1": torch.linspace(-1, 1, 256), "absmax1": torch.rand(2, dtype=torch.float64)}
                self.state[p] = {"step": 3, "ratio": 0.1, "state1": codes}
                self.state[p] |= {"quantised": scales} if self.nested else scales
        return None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.state.update({parameters[index]: entry for index, entry in state_dict["state"].items()})


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("nested", [False, True])
def test_any_state_survives_a_checkpoint(tmp_path: Path, nested: bool) -> None:
    model = nn.Linear(3, 2)
    optimizer = EightBit(model.parameters(), nested)
    optimizer.step()
    path = write_checkpoint(tmp_path, 1, {"optimiser": optimiser_tensors(optimizer)}, {})
    other = EightBit(model.parameters(), nested)
    load_optimiser_tensors(other, read_checkpoint(path)[0]["optimiser"])
    assert len(other.state) == 2
    assert all(same(other.state[p], optimizer.state[p]) for p in model.parameters())


def test_the_state_of_adamw_goes_on_to_the_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)

    def steps(optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            for p in model.parameters():
                p.grad = p.detach().sin()
            optimizer.step()

    first = adamw(model, lr=0.1, weight_decay=0.01, eps=1e-8)
    steps(first, 2)
    path = write_checkpoint(tmp_path, 2, {"optimiser": optimiser_tensors(first), "model": model.state_dict()}, {})
    steps(first, 2)
    expected = [p.detach().clone() for p in model.parameters()]
    tensors, _ = read_checkpoint(path)
    model.load_state_dict(tensors["model"])
    second = adamw(model, lr=0.1, weight_decay=0.01, eps=1e-8)
    load_optimiser_tensors(second, tensors["optimiser"])
    steps(second, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected, strict=True))


def test_eight_bits_need_cuda_and_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"needs a CUDA device, and this run is on cpu; use adamw$"):
        make_optimiser(LoopConfig(optimizer="adamw8bit"), nn.Linear(3, 2))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'snella\[bitsandbytes\]'$"):
        check_optimiser("adamw8bit", torch.device("cuda"))
    check_optimiser("adamw", torch.device("cpu"))


def test_bytes_of_moments() -> None:
    model = nn.Linear(64, 128)
    optimizer = adamw(model, lr=0.1, weight_decay=0, eps=1e-8)
    model(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    moments = [t for state in optimizer.state.values() for name, t in state.items() if name != "step"]
    assert moment_bytes("adamw", model.parameters()) == sum(t.nbytes for t in moments)
    # 8192 codes twice with 32 scales each; the bias is too small for codes
    assert moment_bytes("adamw8bit", model.parameters()) == 2 * (8192 + 4 * 32) + 2 * 4 * 128
