"""What a comparison tries: rates around the usual one, and the methods that can train."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from snella.cli.commands import Compare
from snella.cli.compare_flags import make_plan
from snella.compare.plan import LADDER, Plan, PlannedTask
from snella.config.schema import TrainConfig
from support.runs import write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images")


def test_the_recipes_rate_is_the_middle_for_the_recipes_method(images, tmp_path):
    task = PlannedTask("", TrainConfig.of(data=str(images), method="snella", lr=1.1e-5), tmp_path)
    plan = Plan((task,), ("snella", "lora"), None, (0,), tmp_path)
    assert plan.first_rates(task, "snella") == (1e-5, 3e-5)
    assert plan.first_rates(task, "lora") == (1e-4, 3e-4, 1e-3)


def test_no_rate_is_below_the_least_one(images, tmp_path):
    task = PlannedTask("", TrainConfig.of(data=str(images), min_lr=5e-4), tmp_path)
    plan = Plan((task,), ("lora",), None, (0,), tmp_path)
    assert plan.first_rates(task, "lora") == (1e-3, 3e-3)
    assert plan.more(task, (1e-3, 3e-3), 1e-3) == (1e-3, 2e-3, 3e-3)
    assert plan.more(task, (1e-2, 3e-2, 1e-1), 1e-1) == (1e-2, 3e-2, 5e-2, 1e-1)


@pytest.mark.parametrize("min_lr", [0.0, 1e-5, 2e-5, 4e-4, 0.06, 0.1, 0.5])
def test_the_search_ends(images, tmp_path, min_lr):
    """Whatever the scores: no rate is tried twice, all are on the ladder, and the best has neighbours that lose."""
    task = PlannedTask("", TrainConfig.of(data=str(images), min_lr=min_lr), tmp_path)
    plan = Plan((task,), ("lora",), None, (0,), tmp_path)
    for best in LADDER:
        rates: tuple[float, ...] = ()
        new = plan.first_rates(task, "lora")
        while new != rates:
            assert set(rates) < set(new) <= set(plan.rungs(task))
            assert list(new) == sorted(set(new))
            rates, found = new, min(new, key=lambda lr: abs(math.log(lr / best)))
            new = plan.more(task, rates, found)
        assert rates
        if best in plan.rungs(task):
            assert min(rates, key=lambda lr: abs(math.log(lr / best))) == best


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
