"""The benchmark of the input runs, on a few small files."""

import re

import pytest


def test_it_prints_both_tables(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.images import main

    main(["--size", "64x48", "--count", "40", "--many", "60", "--workers", "0,1", "--image-size", "32"])
    printed = capsys.readouterr().out
    assert re.search(r"60 images listed, checked and split in \d+\.\d s", printed)
    rows = re.findall(r"│ +([01]) +│ +(\d+) +│ +(\d+) +│", printed)
    assert [row[0] for row in rows] == ["0", "1"]
    assert all(int(rate) > 0 for row in rows for rate in row[1:])
