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
from support.tuned import budgets, layers, tuner_of


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
        save_steps=changes.pop("save_steps", 3),
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **changes,
    )
    return transformers.Trainer(
        model, arguments, train_dataset=data, eval_dataset=data, callbacks=[AllocationCallback()]
    )


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
    ways: list[tuple[str, dict[str, Any]]] = [("b", {}), ("c", {"resume_from_checkpoint": checkpoint})]
    for folder, named in ways:
        resumed = trainer(tmp_path / folder, 6, **named)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            warnings.filterwarnings("ignore", message="the adapter keeps")  # these trainings end above their target
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


def test_the_best_model_is_one_at_the_target(tmp_path: Path) -> None:
    """Whose budget has fallen: the first evaluation's metric is the best by far, and no other is loaded without it."""
    config = SnellaConfig(r=4, target_sparsity=0.9, final_warmup=4)
    metrics = iter([9.0, 1.0, 2.0, 3.0])
    wanted = trainer(
        tmp_path, 8, config=config, save_steps=2, eval_strategy="steps", eval_steps=2,
        load_best_model_at_end=True, metric_for_best_model="score", greater_is_better=True,
    )  # fmt: skip
    wanted.compute_metrics = lambda _: {"score": next(metrics)}
    wanted.train()
    assert wanted.state.best_metric == 3.0
    kept = tuner_of(model_of(wanted)).kept_share()
    assert kept is not None
    assert kept.is_near


def test_a_training_that_ends_above_its_target_says_so(tmp_path: Path) -> None:
    config = SnellaConfig(r=4, target_sparsity=0.9, total_step=30)
    with pytest.warns(
        UserWarning, match=r"the adapter keeps \d\d\.\d% of its update's entries, and 10\.0% was asked for"
    ):
        trainer(tmp_path, 3, config=config).train()
