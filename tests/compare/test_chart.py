"""The chart of a comparison is drawn for few points, for equal ones, and for the mean over tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from snella.compare.chart import comparison_figure
from snella.compare.results import mean_result
from support.comparisons import result, suite_of


def test_a_suite_has_a_chart_of_means_of_the_methods_with_all_tasks(tmp_path: Path):
    tasks = suite_of(result(snella=(0.9, 0.8), oft=(0.5,)), result(snella=(0.7, 0.6), oft=()))
    mean = mean_result(tasks)
    scores = {row.name: [run.test["top1"] for run in row.runs] for row in mean.methods}
    assert scores == {"snella": pytest.approx([0.8, 0.7]), "oft": []}
    comparison_figure(mean, tmp_path / "chart.png")
    assert Image.open(tmp_path / "chart.png").size[0] > 500


@pytest.mark.parametrize(
    "scores",
    [
        {"snella": (0.5,)},
        {"snella": (0.9, 0.8), "lora": (0.9, 0.8), "full": ()},
        {f"backbone{i}/snella": (i / 10,) for i in range(9)},
    ],
)
def test_the_chart_is_drawn_for_few_and_for_equal_points(scores, tmp_path: Path):
    with Image.open(comparison_figure(result(**scores), tmp_path / "chart.png")) as picture:
        assert picture.width == round(8.6 * 160)
