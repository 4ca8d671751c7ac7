"""Budgets in a transformers `Trainer`, by its callback."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

from snella import AllocationCallback, SnellaConfig
from support.tuned import budgets, layers


def trainer(folder: Path, steps: int, *, seed: int = 2, **changes: Any) -> transformers.Trainer:
    torch.manual_seed(seed)
    kind: Any = transformers.ViTConfig  # whose signature leaves out what all configs take
    config = kind(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
        image_size=32,
        num_labels=3,
    )
    settings = changes.pop("config", None) or SnellaConfig(r=4, target_sparsity=0.9)
    model = peft.get_peft_model(transformers.ViTForImageClassification(config), settings)
    data: Any = [{"pixel_values": torch.randn(3, 32, 32), "labels": i % 3} for i in range(8)]
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


def model_of(trainer: transformers.Trainer) -> nn.Module:
    assert isinstance(trainer.model, nn.Module)
    return trainer.model


def test_the_transformers_trainer(tmp_path: Path) -> None:
    straight = trainer(tmp_path / "a", 6)
    straight.train()
    sizes = [layer.matrix_size("default") for layer in layers(model_of(straight))]
    kept = sum(sum(layer) for layer in budgets(model_of(straight)).values())
    expected = sum(0.1 * size + 0.9 * size * (1 - 5 / 6) ** 3 for size in sizes)  # the last allocation: step 5 of 6
    assert kept == pytest.approx(expected, abs=len(sizes) + 1)
    resumed = trainer(tmp_path / "b", 6)
    (tmp_path / "b").mkdir(exist_ok=True)
    (tmp_path / "a" / "checkpoint-3").rename(tmp_path / "b" / "checkpoint-3")
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-3"))
    assert budgets(model_of(resumed)) == budgets(model_of(straight))
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
    assert budgets(model_of(resumed)) == budgets(model_of(straight))


def test_a_config_that_trained_once_follows_the_next_trainings_steps(tmp_path: Path) -> None:
    config = SnellaConfig(r=4, target_sparsity=0.9)
    trainer(tmp_path / "a", 12, config=config).train()
    second, fresh = trainer(tmp_path / "b", 4, config=config), trainer(tmp_path / "c", 4)
    second.train()
    fresh.train()
    assert budgets(model_of(second)) == budgets(model_of(fresh))
    assert config.total_step is None


def test_a_schedule_of_other_steps_is_told(tmp_path: Path) -> None:
    config = SnellaConfig(r=4, total_step=9)
    with pytest.warns(UserWarning, match="total_step=9 .* training takes 3 steps"):
        trainer(tmp_path, 3, config=config).train()
