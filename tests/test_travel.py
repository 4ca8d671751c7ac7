"""The way of a step: shares that add up, changes as the definition has them, steps that are no longer than theirs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import peft
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from snella import SnellaConfig
from snella import travel as travel_module
from snella.delta import delta_weight
from snella.travel import Adapted, Travel, changes, way
from snella.tuner.model import SnellaModel


@given(st.integers(1, 2000))
def test_the_shares_of_all_steps_add_up_to_the_whole_way(steps: int) -> None:
    shares = [way(step, steps) for step in range(1, steps + 1)]
    assert math.fsum(shares) == pytest.approx(1, abs=1e-9)
    assert min(shares) >= 0
    assert shares == sorted(shares, reverse=True)
    assert way(steps + 5, steps) == shares[-1]  # who trains longer than was said goes on in the smallest steps


def change(layer: Adapted, before: Sequence[torch.Tensor]) -> torch.Tensor:
    return changes([layer], [before])[0]


def layer(kernel: str, squares: bool, *, columns: int = 20, unit: float = 1.0) -> Adapted:
    """Three updates of 12 x columns entries."""
    parameters = [torch.randn(3, 2, columns, 4), torch.randn(3, 2, 12, 4)]
    if kernel == "mixk":
        parameters += [torch.randn(3), 1 + torch.rand(3), torch.randn(3)]
    return Adapted(tuple(parameters), kernel, squares, scale=0.3, unit=unit, size=0.5)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kernel", ["pwl", "mixk"])
@pytest.mark.parametrize("squares", [True, False])
def test_a_change_is_that_of_the_updates_by_their_definition(kernel: str, squares: bool) -> None:
    torch.manual_seed(0)
    now = layer(kernel, squares, unit=0.7)
    before = [parameter + 0.01 * torch.randn_like(parameter) for parameter in now.parameters]

    def updates(parameters: list[torch.Tensor]) -> torch.Tensor:
        A, B, *scalars = parameters
        constants: Any = {"sparsity": 0, "kernel": kernel, "gate": "none", "scale": 0.3}
        K = [delta_weight(A[i], B[i], *(0.7 * s[i] for s in scalars), **constants) for i in range(3)]
        return torch.stack([k * k.abs() if squares else k for k in K])

    D = updates(list(now.parameters)) - updates(before)
    along = (D @ torch.full((20,), 20**-0.5)).square().mean().sqrt()
    torch.testing.assert_close(change(now, before), torch.maximum(D.square().mean().sqrt(), along))


def test_layers_that_are_measured_at_once_come_to_the_same() -> None:
    torch.manual_seed(3)
    layers = [layer("mixk", True), layer("pwl", True), replace(layer("mixk", True), scale=0.9, size=2.0)]
    before = [[parameter + 0.01 * torch.randn_like(parameter) for parameter in one.parameters] for one in layers]
    alone = [change(one, old) for one, old in zip(layers, before, strict=True)]
    torch.testing.assert_close(torch.stack(changes(layers, before)), torch.stack(alone))


@pytest.mark.parametrize("together", [0.0, 0.02])
def test_a_sample_of_columns_is_near_to_all_of_them(together: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of changes at random, and of such as move whole rows one way."""
    torch.manual_seed(1)
    now = layer("pwl", True, columns=1600)
    A, B = now.parameters
    before = [A + 0.01 * torch.randn_like(A), B + together * torch.randn(B.shape) * B.sign()]
    sampled = change(now, before)
    monkeypatch.setattr(travel_module, "PARTS", 1)
    whole = change(now, before)
    D = travel_module._updates([now], [now.parameters]) - travel_module._updates([now], [before])
    assert (whole > 2 * D.square().mean().sqrt()) == (together > 0)
    assert sampled == pytest.approx(whole.item(), rel=0.2)


def test_a_step_is_shortened_to_its_share_and_a_shorter_one_is_left_to_the_bit() -> None:
    torch.manual_seed(2)
    far, near = layer("pwl", False), layer("pwl", False)
    travel = Travel()
    travel.start([far, near])
    start = [[parameter.clone() for parameter in one.parameters] for one in (far, near)]
    for parameter in far.parameters:
        parameter.add_(0.1 * torch.randn_like(parameter))
    for parameter in near.parameters:
        parameter.add_(1e-6 * torch.randn_like(parameter))
    stepped = [[parameter.clone() for parameter in one.parameters] for one in (far, near)]
    most = 0.001
    assert change(far, start[0]) > 5 * most * far.size
    travel.limit([far, near], most)
    assert change(far, start[0]).item() == pytest.approx(most * far.size, rel=0.05)  # the update is nearly linear
    assert all(map(torch.equal, near.parameters, stepped[1]))
    shares = [(p - old) / (new - old) for p, old, new in zip(far.parameters, *(start[0], stepped[0]), strict=True)]
    assert (shares[0].median() - shares[1].median()).abs() < 1e-3  # both factors by the same share
    again = [parameter.clone() for parameter in far.parameters]
    travel.limit([far, near], most)  # nothing has moved since
    assert all(map(torch.equal, far.parameters, again))


def tuned(gate: str, **settings: object) -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3, img_size=32)
    return peft.get_peft_model(model, SnellaConfig(r=4, gate=gate, kernel="pwl", total_step=20, **settings))  # pyright: ignore[reportArgumentType]


def train(model: torch.nn.Module, lr: float, steps: int = 20) -> float:
    """Return the largest update of the layers, in units of the frozen weights' rms."""
    torch.manual_seed(1)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 3
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=lr)
    tuner = model.base_model
    assert isinstance(tuner, SnellaModel)
    tuner.start_travel()
    for step in range(1, steps + 1):
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        tuner.update_and_allocate(step)
        optimizer.zero_grad()
    return max(
        (one.delta_matrices("default").square().mean() / one.get_base_layer().weight.square().mean()).sqrt().item()
        for one in tuner.adapted_layers()
    )


@pytest.mark.parametrize(("gate", "lr"), [("published", 0.05), ("hard", 0.3)])
def test_a_training_stays_within_its_way_at_a_rate_that_runs_away_without(gate: str, lr: float) -> None:
    assert train(tuned(gate), lr) > 1
    assert train(tuned(gate, max_travel=0.3), lr) < 0.3 + 0.02  # by what it is at the start


def test_a_low_rate_is_not_touched() -> None:
    bounded, free = tuned("published", max_travel=0.3), tuned("published")
    train(bounded, 1e-5, 10)  # of 20: the rate of this loop does not fall as shares do
    train(free, 1e-5, 10)
    assert all(torch.equal(one, other) for one, other in zip(bounded.parameters(), free.parameters(), strict=True))


def test_a_training_goes_on_from_its_state_to_the_bit() -> None:
    half = tuned("published", max_travel=0.3)
    train(half, 0.02, 6)
    # what a resumed training has: another model, weights and the allocator's state
    again = tuned("published", max_travel=0.3)
    again.load_state_dict(half.state_dict())
    first, second = half.base_model, again.base_model
    assert isinstance(first, SnellaModel)
    assert isinstance(second, SnellaModel)
    second.load_allocator_state_dict(first.allocator_state_dict())
    for model in (first, second):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.ones_like(parameter)
                parameter.data.add_(0.01)
        model.update_and_allocate(7)
    assert all(torch.equal(one, other) for one, other in zip(half.parameters(), again.parameters(), strict=True))
