from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from snella.compare.chart import comparison_figure
from snella.compare.results import (
    MethodResult,
    RunResult,
    TaskResult,
    cost_ratios,
    mean_difference,
    mean_result,
    paired_tasks,
)
from snella.compare.statistics import Difference, Spread, mean_of_pairs
from snella.compare.tables import (
    difference_text,
    suite_cells,
    task_report,
    with_spread,
    write_suite,
    write_task,
)
from snella.config.schema import TrainConfig
from snella.config.suites import Suite, SuiteTask
from support.printed import rows, text


def run(metric: str, score: float, seed: int = 0) -> RunResult:
    scores = {metric: score}
    return RunResult(
        f"out/seed-{seed}", 1e-3, seed, metric, True, scores, scores, scores, 5000, 20_000, 3_000_000, 61.0, 0.25,
        {"train": 8}, "cpu", {"torch": "2"},
    )  # fmt: skip


def result(metric: str = "top1", higher_is_better: bool = True, **scores: tuple[float, ...]) -> TaskResult:
    methods = tuple(
        MethodResult(name, 1e-3, {1e-3: 0.5}, tuple(run(metric, score, seed) for seed, score in enumerate(values)))
        for name, values in scores.items()
    )
    return TaskResult("cells", metric, "top-1", higher_is_better, methods, ("seeds: 0",), ("a note",))


@pytest.mark.parametrize(
    ("metric", "value", "shown"),
    [
        ("top1", Spread(0.8341, 0.0123, 3), "83.4 ± 1.2 %"),
        ("top1", Spread(0.8341, None, 1), "83.4 %"),
        ("denoising_loss", Spread(0.12345, 0.01, 3), "0.1235 ± 0.0100"),
        ("top1", None, "–"),
    ],
)
def test_means_are_shown_with_their_spread(metric, value, shown):
    assert with_spread(metric, value) == shown


@pytest.mark.parametrize(
    ("metric", "value", "shown"),
    [
        ("top1", Difference(0.012, -0.003, 0.027, 3), "+1.2 [−0.3, +2.7]"),
        ("top1", Difference(-0.012, None, None, 1), "−1.2"),
        ("denoising_loss", Difference(0.012, 0.01, 0.014, 3), "+0.0120 [+0.0100, +0.0140]"),
        ("top1", None, "–"),
    ],
)
def test_differences_are_points_with_a_sign(metric, value, shown):
    assert difference_text(metric, value) == shown


def test_only_seeds_of_both_are_paired():
    found = result(snella=(0.9, 0.5), lora=(0.8,))
    difference = found.difference(found.methods[0])
    assert difference is not None
    assert difference.pairs == 1
    assert difference.mean == pytest.approx(0.1)
    assert found.difference(found.methods[1]) is None


def test_less_of_a_loss_is_better():
    found = result("loss", False, snella=(0.5, 0.6), lora=(0.7, 0.9))
    difference = found.difference(found.methods[0])
    assert difference is not None
    assert difference.mean == pytest.approx(0.25)


def suite_of(*results: TaskResult) -> list[TaskResult]:
    return [replace(found, name=f"task{i}") for i, found in enumerate(results)]


def test_the_mean_over_tasks_pairs_the_seeds():
    tasks = suite_of(result(snella=(0.9, 0.8), lora=(0.8, 0.8)), result(snella=(0.5, 0.7, 0.1), lora=(0.6, 0.4, 0.9)))
    found = mean_difference(tasks, "snella")
    expected = mean_of_pairs([(0.9 + 0.5 - 0.8 - 0.6) / 2, (0.8 + 0.7 - 0.8 - 0.4) / 2])
    assert found is not None
    assert (found.mean, found.low, found.pairs) == pytest.approx((expected.mean, expected.low, 2))
    assert mean_difference(tasks, "lora") is None


def test_a_method_that_lacks_a_task_is_compared_on_the_others():
    tasks = suite_of(result(shira=(0.5,), lora=(0.4,)), result(shira=(), lora=(0.9,)))
    assert [task.name for task, *_ in paired_tasks(tasks, "shira")] == ["task0"]
    difference = mean_difference(tasks, "shira")
    assert difference is not None
    assert difference.mean == pytest.approx(0.1)
    assert mean_difference(suite_of(result(shira=(0.5,))), "shira") is None


def test_costs_are_multiples_of_loras():
    tasks = []
    for factor in (4, 9):
        task = result(snella=(0.5,), lora=(0.5,))
        snella, lora = task.methods
        (run,) = snella.runs
        snella = replace(snella, runs=(replace(run, peak_memory_bytes=factor * run.peak_memory_bytes),))
        tasks.append(replace(task, methods=(snella, lora)))
    assert cost_ratios(tasks, "snella") == pytest.approx(
        {"trainable_parameters": 1, "adapter_bytes": 1, "peak_memory_bytes": 6, "seconds": 1, "step_seconds": 1}
    )
    assert cost_ratios(suite_of(result(snella=(0.5,))), "snella") == {}


def test_a_suite_has_a_chart_of_means_of_the_methods_with_all_tasks(tmp_path: Path):
    tasks = suite_of(result(snella=(0.9, 0.8), oft=(0.5,)), result(snella=(0.7, 0.6), oft=()))
    mean = mean_result(tasks)
    scores = {row.method: [run.test["top1"] for run in row.runs] for row in mean.methods}
    assert scores == {"snella": pytest.approx([0.8, 0.7]), "oft": []}
    comparison_figure(mean, tmp_path / "chart.png")
    assert Image.open(tmp_path / "chart.png").size[0] > 500


def suite(*names: str, group: str = "") -> Suite:
    tasks = tuple(SuiteTask(name, group, TrainConfig.of(data="x"), "") for name in names)
    return Suite("toys", "Toys", tasks, (), ())


def test_methods_are_rows_where_they_are_more_than_the_tasks():
    tasks = suite_of(result(snella=(0.5,), lora=(0.4,), oft=(0.2,)), result(snella=(0.9,), lora=(0.6,), oft=()))
    heads, lines = suite_cells(suite("task0", "task1"), tasks)
    assert heads == ["method", "task0", "task1", "mean of the 2 tasks", "against lora (points)"]
    assert lines == [
        ["snella", "50.0 %", "90.0 %", "70.0 %", "+20.0"],
        ["lora", "40.0 %", "60.0 %", "50.0 %", "–"],
        ["oft", "20.0 %", "–", "–", "−20.0 (1 of 2 tasks)"],
    ]
    heads, lines = suite_cells(suite("task0", "task1", group="toys"), tasks)
    assert heads == ["task", "group", "snella", "lora", "oft"]
    assert lines[0] == ["task0", "toys", "50.0 %", "40.0 %", "20.0 %"]


def test_tasks_of_other_metrics_have_no_mean():
    tasks = suite_of(result(lora=(0.5,), snella=(0.5,)), result("miou", lora=(0.25,), snella=(0.5,)))
    _, lines = suite_cells(suite("task0", "task1"), tasks)
    assert lines == [["task0", "50.0 %", "50.0 %"], ["task1", "25.0 %", "50.0 %"]]


def test_without_lora_nothing_is_paired(tmp_path):
    shown = text(task_report(result(snella=(0.9, 0.8), linear=(0.7, 0.7))))
    assert "against" not in shown
    assert rows(shown)["linear"] == ["5,000", "20.0 kB", "3.0 MB", "1 min 01 s", "250 ms"]
    assert "a note" in shown


def test_a_method_without_a_run_has_a_row_of_dashes(tmp_path):
    found = result(snella=(), lora=(0.5,))
    assert set(rows(text(task_report(found)))["snella"]) == {"–"}
    write_task(found, tmp_path)
    assert (tmp_path / "compare.csv").read_text().splitlines()[1].startswith("cells,snella,0.001,top1,0,,")


def test_json_has_no_nan(tmp_path):
    write_task(result(snella=(math.nan,)), tmp_path)

    def refuse(name: str) -> None:
        raise AssertionError(name)

    report = json.loads((tmp_path / "compare.json").read_text(), parse_constant=refuse)
    assert report["methods"][0]["runs"][0]["test"] == {"top1": None}


def test_a_suites_json_has_the_differences_of_means_and_the_costs(tmp_path):
    alike = suite_of(result(lora=(0.5, 0.6), snella=(0.6, 0.6)), result(lora=(0.5, 0.6), snella=(0.7, 0.6)))
    other = suite_of(result(lora=(0.5,), snella=(0.6,)), result("miou", lora=(0.5,), snella=(0.7,)))
    for tasks, expected in ((alike, 0.075), (other, None)):
        write_suite(suite("task0", "task1"), tasks, tmp_path)
        means = json.loads((tmp_path / "compare.json").read_text())["means"]
        against = means["snella"]["against_lora"]
        assert (against and against["mean"]) == (expected and pytest.approx(expected))
        assert means["snella"]["costs_beside_lora"] == cost_ratios(tasks, "snella")
        assert means["lora"]["against_lora"] is None


@pytest.mark.parametrize("scores", [{"snella": (0.5,)}, {"snella": (0.9, 0.8), "lora": (0.9, 0.8), "full": ()}])
def test_the_chart_is_drawn_for_few_and_for_equal_points(scores, tmp_path: Path):
    with Image.open(comparison_figure(result(**scores), tmp_path / "chart.png")) as picture:
        assert picture.width == round(8.6 * 160)
