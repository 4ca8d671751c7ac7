"""What a comparison tries: rates around the usual one, and the methods that can train."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from snella.cli.commands import Compare
from snella.cli.compare_flags import make_plan
from snella.compare.plan import LADDER, Entrant, Plan, PlannedTask
from snella.config.schema import TrainConfig
from support.runs import write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images")


def test_the_recipes_rate_is_the_middle_for_the_recipes_method(images, tmp_path):
    task = PlannedTask("", TrainConfig.of(data=str(images), method="snella", lr=1.1e-5), tmp_path)
    plan = Plan((task,), ("snella", "lora"), None, (0,), tmp_path)
    assert plan.first_rates(task, Entrant("snella")) == (1e-5, 3e-5)
    assert plan.first_rates(task, Entrant("lora")) == (3e-4, 1e-3, 3e-3)


def test_no_rate_is_below_the_least_one(images, tmp_path):
    task = PlannedTask("", TrainConfig.of(data=str(images), min_lr=5e-4), tmp_path)
    plan = Plan((task,), ("lora",), None, (0,), tmp_path)
    assert plan.first_rates(task, Entrant("lora")) == (1e-3, 3e-3)
    assert plan.more(task, (1e-3, 3e-3), 1e-3) == (1e-3, 2e-3, 3e-3)
    assert plan.more(task, (1e-2, 3e-2, 1e-1), 1e-1) == (1e-2, 3e-2, 5e-2, 1e-1)


@pytest.mark.parametrize("min_lr", [0.0, 1e-5, 2e-5, 4e-4, 0.06, 0.1, 0.5])
def test_the_search_ends(images, tmp_path, min_lr):
    """Whatever the scores: no rate is tried twice, all are on the ladder, and the best has neighbours that lose."""
    task = PlannedTask("", TrainConfig.of(data=str(images), min_lr=min_lr), tmp_path)
    plan = Plan((task,), ("lora",), None, (0,), tmp_path)
    for best in LADDER:
        rates: tuple[float, ...] = ()
        new = plan.first_rates(task, Entrant("lora"))
        while new != rates:
            assert set(rates) < set(new) <= set(plan.rungs(task))
            assert list(new) == sorted(set(new))
            rates, found = new, min(new, key=lambda lr: abs(math.log(lr / best)))
            new = plan.more(task, rates, found)
        assert rates
        if best in plan.rungs(task):
            assert min(rates, key=lambda lr: abs(math.log(lr / best))) == best


def test_the_search_is_the_same_on_each_backbone(images, tmp_path):
    task = PlannedTask("", TrainConfig.of(data=str(images), image_size=32), tmp_path)
    plan = Plan((task,), ("snella", "lora"), (1e-3,), (0,), tmp_path, backbones=("test_vit", "hf:owner/net"))
    configs = list(plan.possible())
    folders = [str(Path(config.out or "").relative_to(tmp_path)) for config in configs]
    names = ("test_vit", "hf-owner-net")
    assert folders == [f"{name}/{method}/lr-0.001/seed-0" for name in names for method in ("snella", "lora")]
    assert [config.model.backbone for config in configs] == ["test_vit"] * 2 + ["hf:owner/net"] * 2
    assert {config.model.image_size for config in configs} == {32}


def test_a_suites_backbones_are_overridden_and_a_note_says_so(images):
    command = Compare(recipe="vtab1k", backbones="test_vit,test_resnet")
    plan = make_plan(command, ["--data", str(images)], lambda flags, config: config or TrainConfig())
    assert plan.suite is not None
    assert "not the suite's settings alone: --backbones test_vit,test_resnet" in plan.suite.notes
    assert {config.model.backbone for config in plan.possible()} == {"test_vit", "test_resnet"}


@pytest.mark.parametrize(
    ("settings", "methods"),
    [
        ({}, ("snella", "lora", "linear", "full")),
        ({"task": "generate"}, ("snella", "lora", "full")),
        ({"task": "generate", "half_weights": True, "precision": "bf16"}, ("snella", "lora")),
    ],
)
def test_the_usual_methods_are_those_that_can_train(settings, methods):
    config = TrainConfig.of(data="x", backbone="y", **settings)
    plan = make_plan(Compare(), ["--data", "x"], lambda flags, defaults: config)
    assert plan.methods == methods
