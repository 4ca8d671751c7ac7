"""Budgets in training: `update_and_allocate`, its state, and the transformers callback."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from snella import AllocationCallback, SnellaConfig
from snella.tuner import SnellaLayer
from support.vits import tiny_vit


def train(model: peft.PeftModel, images: Tensor, steps: range) -> list[dict | None]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    records = []
    for step in steps:
        torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2])).backward()
        optimizer.step()
        records.append(model.base_model.update_and_allocate(step))
        optimizer.zero_grad()
    return records


def budgets(model: nn.Module) -> dict[str, list[int]]:
    return {m.name: m.kept("default").tolist() for m in model.modules() if isinstance(m, SnellaLayer)}


def test_budgets_follow_the_schedule(vit: nn.Module, images: Tensor) -> None:
    config = SnellaConfig(r=8, total_step=12, allocate_every=3, target_sparsity=0.8)
    model = peft.get_peft_model(vit, config)
    records = train(model, images, range(1, 13))
    assert [step for step, record in enumerate(records, 1) if record] == [3, 6, 9]
    last = records[8]
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
        model.base_model.update_and_allocate(1)


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
    second.base_model.load_allocator_state_dict(first.base_model.allocator_state_dict())
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
    record = model.base_model.update_and_allocate(1)
    assert record["skipped"] == 1
    smallest = min(record["size"].values())
    assert {kept for name, kept in record["kept"].items() if record["size"][name] > smallest} != {0}
    assert abs(sum(record["kept"].values()) - record["budget"]) <= len(record["kept"])


def trainer(folder: Path, steps: int, *, seed: int = 2, **changes: Any) -> transformers.Trainer:
    torch.manual_seed(seed)
    config = transformers.ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
        image_size=32,
        num_labels=3,
    )
    settings = changes.pop("config", None) or SnellaConfig(r=4, target_sparsity=0.9)
    model = peft.get_peft_model(transformers.ViTForImageClassification(config), settings)
    data = [{"pixel_values": torch.randn(3, 32, 32), "labels": i % 3} for i in range(8)]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        save_steps=3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **changes,
    )
    return transformers.Trainer(model, arguments, train_dataset=data, callbacks=[AllocationCallback()])


def test_the_transformers_trainer(tmp_path: Path) -> None:
    straight = trainer(tmp_path / "a", 6)
    straight.train()
    sizes = [m.matrix_size("default") for m in straight.model.modules() if isinstance(m, SnellaLayer)]
    kept = sum(sum(layer) for layer in budgets(straight.model).values())
    expected = sum(0.1 * size + 0.9 * size * (1 - 5 / 6) ** 3 for size in sizes)  # the last allocation: step 5 of 6
    assert kept == pytest.approx(expected, abs=len(sizes) + 1)
    resumed = trainer(tmp_path / "b", 6)
    (tmp_path / "b").mkdir(exist_ok=True)
    (tmp_path / "a" / "checkpoint-3").rename(tmp_path / "b" / "checkpoint-3")
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-3"))
    assert budgets(resumed.model) == budgets(straight.model)
    (tmp_path / "b" / "checkpoint-3" / "allocator.safetensors").unlink()
    with pytest.warns(UserWarning, match="the averages of importance start anew"):
        trainer(tmp_path / "b", 6).train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-3"))


def test_averages_are_those_of_the_checkpoint_that_is_resumed(tmp_path: Path) -> None:
    """And not of another run's, in the folder that this one writes to."""
    straight = trainer(tmp_path / "a", 6)
    straight.train()
    trainer(tmp_path / "b", 3, seed=5).train()
    checkpoint = str(tmp_path / "a" / "checkpoint-3")
    with pytest.warns(UserWarning, match="the averages of importance start anew.*resume_from_checkpoint"):
        trainer(tmp_path / "b", 6).train(resume_from_checkpoint=checkpoint)
    resumed = trainer(tmp_path / "c", 6, resume_from_checkpoint=checkpoint)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        resumed.train(resume_from_checkpoint=checkpoint)
    assert budgets(resumed.model) == budgets(straight.model)


def test_a_config_that_trained_once_follows_the_next_trainings_steps(tmp_path: Path) -> None:
    config = SnellaConfig(r=4, target_sparsity=0.9)
    trainer(tmp_path / "a", 12, config=config).train()
    second, fresh = trainer(tmp_path / "b", 4, config=config), trainer(tmp_path / "c", 4)
    second.train(), fresh.train()
    assert budgets(second.model) == budgets(fresh.model)
    assert config.total_step is None


def test_a_schedule_of_other_steps_is_told(tmp_path: Path) -> None:
    config = SnellaConfig(r=4, total_step=9)
    with pytest.warns(UserWarning, match="total_step=9 .* training takes 3 steps"):
        trainer(tmp_path, 3, config=config).train()
