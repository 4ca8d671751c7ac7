"""The page of a comparison, read back from its compare.json."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from snella.compare.results import Combination, TaskResult
from snella.compare.tables import difference_text, task_cells, write_task
from snella.pages.comparison import comparison_page, read_results
from snella.pages.page import report
from snella.pages.parts import render
from support import comparisons

SCORES = {"snella": (0.91, 0.92, 0.915), "lora": (0.9, 0.905, 0.9), "linear": (0.8, 0.82, 0.81)}


@pytest.fixture
def result() -> TaskResult:
    return comparisons.result(**SCORES)


def test_results_are_read_back_as_they_were(result, tmp_path):
    first, *others = result.methods
    tried = Combination("soup", ("out/snella/lr-0.001/seed-0",), {"top1": 0.9}, {"top1": math.nan})
    run = replace(first.runs[0], step_seconds=math.nan)
    whole = replace(result, methods=(replace(first, combined=(tried,), runs=(run, *first.runs[1:])), *others))
    write_task(whole, tmp_path)
    (found,), name = read_results(tmp_path)
    assert name == "cells"
    assert repr(found) == repr(whole)  # NaN is not equal to itself


def test_the_tables_of_the_comparison_stand_on_its_page(result, tmp_path):
    write_task(result, tmp_path)
    text = render(comparison_page(tmp_path, tmp_path))
    for cell in (cell for row in task_cells(result)[1] for cell in row):
        assert cell in text
    assert difference_text("top1", result.difference(result.methods[0])) in text
    assert "Best on test: snella" in text


def test_runs_that_have_a_page_are_linked_from_where_the_comparison_s_is(result, tmp_path):
    folder = tmp_path / "runs" / "mine"
    own = folder / "snella" / "lr-0.001" / "seed-1"
    own.mkdir(parents=True)
    (own / "report.html").touch()
    write_task(result, folder)
    assert render(comparison_page(folder, folder)).count('href="snella/lr-0.001/seed-1/report.html"') == 1
    report(folder, out=str(tmp_path / "page.html"))
    assert 'href="runs/mine/snella/lr-0.001/seed-1/report.html"' in (tmp_path / "page.html").read_text()


def test_a_suite_has_a_table_of_all_its_tasks(result, tmp_path):
    from snella.compare.tables import as_json
    from snella.files import write_json

    other = comparisons.result(snella=(0.5,), lora=(0.6,))
    tasks = comparisons.suite_of(result, other)
    write_json(tmp_path / "compare.json", {"suite": "mine", "tasks": [as_json(task) for task in tasks]})
    page = comparison_page(Path(tmp_path), tmp_path)
    assert page.title.endswith("mine")
    rows = page.sections[0].parts[0].cells  # pyright: ignore[reportAttributeAccessIssue]
    assert [(row[0].text, row[1].text) for row in rows] == [("task0", "snella"), ("task1", "lora")]
