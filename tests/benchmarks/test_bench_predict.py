"""The benchmark of prediction runs, on a few small files."""

import re

import pytest


def test_it_prints_both_rates_and_their_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.predict import main

    main(["--backbone", "test_vit", "--images", "60", "--size", "64x48", "--batch-size", "32", "--rounds", "1"])
    printed = capsys.readouterr().out
    rates = [float(rate) for rate in re.findall(r"(?:snella predict|plain loop): ([\d.]+) images/s", printed)]
    assert len(rates) == 2
    assert all(rate > 0 for rate in rates)
    assert re.search(r"time of snella predict / plain loop: \d+\.\d\d", printed)
