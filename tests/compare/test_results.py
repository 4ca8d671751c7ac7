"""Differences and costs beside LoRA, on one task and over several."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snella.compare.plan import Entrant
from snella.compare.results import cost_ratios, mean_difference, paired_tasks, step_seconds
from snella.compare.statistics import mean_of_pairs
from support.comparisons import entrant, result, suite_of


def test_only_seeds_of_both_are_paired():
    found = result(snella=(0.9, 0.5), lora=(0.8,))
    difference = found.difference(found.methods[0])
    assert difference is not None
    assert difference.pairs == 1
    assert difference.mean == pytest.approx(0.1)
    assert found.difference(found.methods[1]) is None


def test_each_backbone_has_its_own_lora():
    scores = {"small/snella": (0.5, 0.6), "small/lora": (0.4, 0.4), "big/lora": (0.7, 0.9), "big/snella": (0.8, 0.9)}
    found = result(**scores)
    differences = {row.name: found.difference(row) for row in found.methods}
    means = {name: difference and difference.mean for name, difference in differences.items()}
    assert means == {
        "small, snella": pytest.approx(0.15),
        "small, lora": None,
        "big, lora": None,
        "big, snella": pytest.approx(0.05),
    }
    found = replace(found, methods=found.methods[:3])  # a backbone without LoRA is beside no other's
    assert cost_ratios(suite_of(found), entrant("big/snella")) == {}
    assert cost_ratios(suite_of(found), entrant("small/snella"))["seconds"] == 1


def test_less_of_a_loss_is_better():
    found = result("loss", False, snella=(0.5, 0.6), lora=(0.7, 0.9))
    difference = found.difference(found.methods[0])
    assert difference is not None
    assert difference.mean == pytest.approx(0.25)


def test_the_mean_over_tasks_pairs_the_seeds():
    tasks = suite_of(result(snella=(0.9, 0.8), lora=(0.8, 0.8)), result(snella=(0.5, 0.7, 0.1), lora=(0.6, 0.4, 0.9)))
    found = mean_difference(tasks, Entrant("snella"))
    expected = mean_of_pairs([(0.9 + 0.5 - 0.8 - 0.6) / 2, (0.8 + 0.7 - 0.8 - 0.4) / 2])
    assert found is not None
    assert (found.mean, found.low, found.pairs) == pytest.approx((expected.mean, expected.low, 2))
    assert mean_difference(tasks, Entrant("lora")) is None


def test_a_method_that_lacks_a_task_is_compared_on_the_others():
    tasks = suite_of(result(shira=(0.5,), lora=(0.4,)), result(shira=(), lora=(0.9,)))
    assert [task.name for task, *_ in paired_tasks(tasks, Entrant("shira"))] == ["task0"]
    difference = mean_difference(tasks, Entrant("shira"))
    assert difference is not None
    assert difference.mean == pytest.approx(0.1)
    assert mean_difference(suite_of(result(shira=(0.5,))), Entrant("shira")) is None


def test_costs_are_multiples_of_loras():
    tasks = []
    for factor in (4, 9):
        task = result(snella=(0.5,), lora=(0.5,))
        snella, lora = task.methods
        (run,) = snella.runs
        snella = replace(snella, runs=(replace(run, peak_memory_bytes=factor * run.peak_memory_bytes),))
        tasks.append(replace(task, methods=(snella, lora)))
    assert cost_ratios(tasks, Entrant("snella")) == pytest.approx(
        {"trainable_parameters": 1, "adapter_bytes": 1, "peak_memory_bytes": 6, "seconds": 1, "step_seconds": 1}
    )
    assert cost_ratios(suite_of(result(snella=(0.5,))), Entrant("snella")) == {}


def test_the_time_of_a_step_is_a_median_and_without_validations():
    rows = [{"kind": "train", "images_per_second": speed} for speed in (1.0, 8.0, 16.0)] + [{"kind": "val"}]
    assert step_seconds(rows, 8) == 1.0
