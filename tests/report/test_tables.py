"""What a terminal shows of a run."""

import io

import pytest
from rich.console import Console

from snella.report.tables import summary_table
from snella.tasks.classification.class_rows import ClassRow, class_table, prediction_table

METRICS = {"top1": "top-1", "balanced_accuracy": "balanced accuracy"}

SUMMARY = {
    "test": {"top1": 0.8951, "top5": 1.0, "balanced_accuracy": 0.8642},
    "trainable_parameters": 5_308_632,
    "adapter_bytes": 21_300_000,
    "peak_memory_bytes": 1_546_000_000,
    "seconds": 247.4,
}


def shown(table):
    file = io.StringIO()
    Console(file=file, width=200).print(table)
    return file.getvalue()


def cells(table):
    """The rows of a table as it is shown, without its frame."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown(table).splitlines() if "│" in line]


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


def test_summary_says_all_with_units():
    rows = dict(cells(summary_table(SUMMARY, METRICS, title="snella on [elpv]")))
    assert rows == {
        "test top-1": "89.5%",
        "test balanced accuracy": "86.4%",
        "trainable parameters": "5,308,632",
        "adapter size": "21.3 MB",
        "peak memory": "1.5 GB",
        "time": "4 min 07 s",
    }
    assert "snella on [elpv]" in shown(summary_table(SUMMARY, METRICS, title="snella on [elpv]"))


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (3_725, "1 h 02 min")])
def test_time_is_rounded_once(seconds, text):
    assert dict(cells(summary_table({**SUMMARY, "seconds": seconds}, METRICS, title="t")))["time"] == text
