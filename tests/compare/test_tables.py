"""Methods side by side, as text, CSV and JSON."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from snella.compare.plan import Entrant
from snella.compare.results import ALONE, SOUP, Combination, TaskResult, cost_ratios
from snella.compare.statistics import Difference, Spread
from snella.compare.tables import (
    combined_cells,
    combined_commands,
    difference_text,
    suite_cells,
    task_report,
    with_spread,
    write_suite,
    write_task,
)
from snella.config.schema import TrainConfig
from snella.config.suites import Suite, SuiteTask
from support.comparisons import result, suite_of
from support.printed import rows, text


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


def test_backbones_stand_before_the_methods(tmp_path):
    found = result(**{"small/lora": (0.5,), "big/lora": (0.4,)})
    heads, lines = suite_cells(suite("task0"), suite_of(found))
    assert heads[0] == "backbone, method"
    assert [line[0] for line in lines] == ["small, lora", "big, lora"]
    assert rows(text(task_report(found)))["small, lora"] == ["5,000", "20.0 kB", "3.0 MB", "1 min 01 s", "250 ms"]
    write_task(found, tmp_path)
    heads, first, _ = (line.split(",") for line in (tmp_path / "compare.csv").read_text().splitlines())
    assert (heads[:3], first[:3]) == (["task", "backbone", "method"], ["cells", "small", "lora"])
    report = json.loads((tmp_path / "compare.json").read_text())
    assert [(row["backbone"], row["method"]) for row in report["methods"]] == [("small", "lora"), ("big", "lora")]


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


def together(name: str, soup: float, *, rates: int = 2) -> TaskResult:
    """Return a task on which the best rate has 0.5, and a soup of some rates another score."""
    found = result(**{name: (0.5,)})
    folders = tuple(f"out/lora/lr-{rate}/seed-0" for rate in range(rates))
    scores = {"top1": 0.5}, {"top1": soup}
    combined = (Combination(ALONE, folders[:1], scores[0], scores[0]), Combination(SOUP, folders, *scores))
    return replace(found, methods=(replace(found.methods[0], combined=combined),))


def test_rates_together_stand_beside_the_best_alone():
    found = together("lora", 0.6)
    heads, lines = combined_cells([found])
    assert heads == ["seed 0: test (val)", "best rate alone", "soup of rates", "ensemble of rates"]
    assert lines == [["lora", "50.0 % (50.0)", "60.0 % (50.0)", "–"]]
    assert rows(text(task_report(found)))["lora"][1] == "60.0 % (50.0)"
    soup = "snella soup out/lora/lr-0/seed-0 out/lora/lr-1/seed-0 --take-all --out out/lora/soup"
    assert combined_commands(found) == [f"lora, soup of 2 rates: {soup}"]
    assert combined_commands(together("lora", 0.5, rates=1)) == []  # that is the run
    assert combined_cells([result(lora=(0.5,))])[1] == []


def test_rates_together_have_a_mean_over_the_tasks_that_all_have_them():
    heads, lines = combined_cells(suite_of(together("lora", 0.6), together("lora", 0.8)))
    assert heads[0] == "mean of 2 tasks, seed 0: test (val)"
    assert lines == [["lora", "50.0 % (50.0)", "70.0 % (50.0)", "–"]]
    assert combined_cells(suite_of(together("lora", 0.6), result(lora=(0.5,))))[1] == []


def test_the_best_soup_is_that_of_the_best_val():
    first, second = together("snella", 0.9), together("lora", 0.1)
    (row,) = second.methods
    alone, soup = row.combined
    row = replace(row, combined=(alone, replace(soup, val={"top1": 0.7})))
    both = replace(first, methods=(*first.methods, row))
    assert [line.partition(",")[0] for line in combined_commands(both, best=True)] == ["lora"]
    assert [line.partition(",")[0] for line in combined_commands(both)] == ["snella", "lora"]


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
        assert means["snella"]["costs_beside_lora"] == cost_ratios(tasks, Entrant("snella"))
        assert means["lora"]["against_lora"] is None
