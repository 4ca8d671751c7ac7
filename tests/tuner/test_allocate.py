"""Budgets in training: `update_and_allocate` and its state."""

from __future__ import annotations

import warnings
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from snella import SnellaConfig
from support.tuned import budgets, tuner_of
from support.vits import tiny_vit


def train(model: peft.PeftModel, images: Tensor, steps: range) -> list[dict[str, Any] | None]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    records = []
    for step in steps:
        torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2])).backward()
        optimizer.step()
        records.append(tuner_of(model).update_and_allocate(step))
        optimizer.zero_grad()
    return records


def test_budgets_follow_the_schedule(vit: nn.Module, images: Tensor) -> None:
    config = SnellaConfig(r=8, total_step=12, allocate_every=3, target_sparsity=0.8)
    model = peft.get_peft_model(vit, config)
    records = train(model, images, range(1, 13))
    assert [step for step, record in enumerate(records, 1) if record] == [3, 6, 9]
    last = records[8]
    assert last is not None
    assert list(last["size"]) == list(last["kept"])
    assert list(last["kept"])[:4] == [f"blocks.0.attn.qkv[{i}]" for i in range(3)] + ["blocks.0.attn.proj"]
    assert abs(sum(last["kept"].values()) - last["budget"]) <= len(last["kept"])
    by_layer = budgets(model)
    assert by_layer["blocks.0.attn.qkv"] == [last["kept"][f"blocks.0.attn.qkv[{i}]"] for i in range(3)]
    assert by_layer["blocks.1.mlp.fc2"] == [last["kept"]["blocks.1.mlp.fc2"]]
    total = sum(last["size"].values())
    assert last["budget"] == int(0.2 * total + 0.8 * total * (1 - 9 / 12) ** 3)


def test_without_total_step_budgets_stay_and_it_is_said_once(vit: nn.Module, images: Tensor) -> None:
    model = peft.get_peft_model(vit, SnellaConfig(r=8, init_sparsity=0.5, target_sparsity=0.9))
    before = budgets(model)
    with pytest.warns(UserWarning, match="total_step is None: budgets stay at init_sparsity=0.5") as said:
        assert train(model, images, range(1, 4)) == [None] * 3
    assert len(said) == 1
    assert budgets(model) == before
    quiet = peft.get_peft_model(tiny_vit(), SnellaConfig(r=8, init_sparsity=0.5, target_sparsity=0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(quiet, images, range(1, 3))


def test_too_late_a_call_is_an_error(vit: nn.Module, images: Tensor) -> None:
    model = peft.get_peft_model(vit, SnellaConfig(r=8, total_step=4))
    with pytest.raises(ValueError, match="before the gradients are cleared"):
        tuner_of(model).update_and_allocate(1)


def test_allocator_state_goes_on_where_it_was(images: Tensor) -> None:
    def fresh() -> peft.PeftModel:
        torch.manual_seed(4)
        return peft.get_peft_model(tiny_vit(), SnellaConfig(r=8, total_step=8, target_sparsity=0.9))

    straight = fresh()
    train(straight, images, range(1, 9))
    first = fresh()
    train(first, images, range(1, 5))
    second = fresh()
    second.load_state_dict(first.state_dict())
    tuner_of(second).load_allocator_state_dict(tuner_of(first).allocator_state_dict())
    train(second, images, range(5, 9))
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), second.parameters(), strict=True))
    assert budgets(straight) == budgets(second)


def test_an_adapter_made_anew_starts_with_no_averages(vit: nn.Module, images: Tensor) -> None:
    model = peft.get_peft_model(vit, SnellaConfig(r=4, total_step=8))
    train(model, images, range(1, 3))
    model.add_adapter("other", SnellaConfig(r=4, total_step=8))
    model.delete_adapter("default")
    model.add_adapter("default", SnellaConfig(r=8, total_step=8))
    model.set_adapter("default")
    assert all(record is not None for record in train(model, images, range(1, 3)))


def test_a_first_step_that_overflows_leaves_equal_shares(vit: nn.Module, images: Tensor) -> None:
    model = peft.get_peft_model(vit, SnellaConfig(r=8, total_step=8))
    (torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2])) * float("inf")).backward()
    record = tuner_of(model).update_and_allocate(1)
    assert record is not None
    assert record["skipped"] == 1
    smallest = min(record["size"].values())
    assert {kept for name, kept in record["kept"].items() if record["size"][name] > smallest} != {0}
    assert abs(sum(record["kept"].values()) - record["budget"]) <= len(record["kept"])
