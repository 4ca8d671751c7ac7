"""What a terminal shows of a run."""

import pytest

from snella.report.tables import summary_table
from support.printed import cells, text

METRICS = {"top1": "top-1", "balanced_accuracy": "balanced accuracy"}

SUMMARY = {
    "test": {"top1": 0.8951, "top5": 1.0, "balanced_accuracy": 0.8642},
    "trainable_parameters": 5_308_632,
    "adapter_bytes": 21_300_000,
    "peak_memory_bytes": 1_546_000_000,
    "seconds": 247.4,
}


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
    assert "snella on [elpv]" in text(summary_table(SUMMARY, METRICS, title="snella on [elpv]"))


@pytest.mark.parametrize(("seconds", "expected"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (3_725, "1 h 02 min")])
def test_time_is_rounded_once(seconds, expected):
    assert dict(cells(summary_table({**SUMMARY, "seconds": seconds}, METRICS, title="t")))["time"] == expected
