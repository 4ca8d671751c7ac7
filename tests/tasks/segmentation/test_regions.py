"""Classes of a segmentation from the confusion matrix of its pixels, and their tables."""

from __future__ import annotations

import pytest
import torch

from snella.tasks.segmentation.regions import area_table, region_rows, region_table
from support.printed import cells

CONFUSION = torch.tensor([[1000, 500, 0], [0, 500, 0], [0, 0, 0]])  # true class x predicted class


def test_each_class_by_hand() -> None:
    ground, road, never = region_rows(["[red]ground", "road", "never"], CONFUSION)
    assert (ground.pixels, ground.recall, ground.precision) == (1500, pytest.approx(2 / 3), 1.0)
    assert (ground.iou, ground.dice) == (pytest.approx(1000 / 1500), pytest.approx(2000 / 2500))
    assert (road.iou, road.dice, road.recall, road.precision) == (0.5, pytest.approx(2 / 3), 1.0, 0.5)
    assert (never.pixels, never.iou, never.dice, never.recall, never.precision) == (0, None, None, None, None)


def test_a_table_has_dashes_for_nothing_to_divide() -> None:
    assert cells(region_table(region_rows(["[red]ground", "road", "never"], CONFUSION))) == [
        ["[red]ground", "1,500", "66.7%", "80.0%", "66.7%", "100.0%"],
        ["road", "500", "50.0%", "66.7%", "100.0%", "50.0%"],
        ["never", "0", "–", "–", "–", "–"],
    ]


def test_the_largest_areas_come_first_and_empty_ones_not_at_all() -> None:
    areas = {
        "sky": {"pixels": 10, "share": 0.1},
        "sea": {"pixels": 70, "share": 0.7},
        "boat": {"pixels": 0, "share": 0.0},
        "land": {"pixels": 20, "share": 0.2},
    }
    rows = [{"image": "[a].png", "areas": areas, "mask": "a-mask.png"}, {"image": "b.png", "areas": {}}]
    assert cells(area_table(rows, most=2)) == [
        ["[a].png", "sea 70.0%, land 20.0%, 1 more", "a-mask.png"],
        ["b.png", "", "–"],
    ]
