"""Tables of classes and of predictions, as a terminal shows them."""

import pytest

from snella.tasks.classification.class_rows import ClassRow, class_table, prediction_table
from support.printed import cells


def test_classes_as_they_are_named_with_a_dash_for_nothing_to_divide():
    table = class_table([ClassRow("[red]fox", 1200, 0.5, 0.25, 1 / 3), ClassRow("hen", 0, None, None, None)])
    assert cells(table) == [["[red]fox", "1,200", "50.0%", "25.0%", "33.3%"], ["hen", "0", "–", "–", "–"]]


@pytest.mark.parametrize(("runners_up", "following"), [(1, "c 30.0%"), (2, "c 30.0%, a 10.0%"), (0, "")])
def test_predictions_with_the_next_likely_classes(runners_up, following):
    row = {
        "image": "a/[b].png",
        "class": "b",
        "probability": 0.6,
        "probabilities": {"a": 0.1, "b": 0.6, "c": 0.3},
    }
    assert cells(prediction_table([row], runners_up=runners_up)) == [["a/[b].png", "b", "60.0%", following]]
