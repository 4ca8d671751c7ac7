"""Values that no computation can take are a line before anything is read or written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import pytest

from snella.cli.main import main
from snella.config.fields import read_number
from snella.config.schema import settings


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--accumulate 100000000000000000000", "accumulate: 100000000000000000000 is not a whole number"),
        ("--mixup 1e-300", "--mixup 1e-300 is beyond fp32"),
        ("--mixup 1e-9", "--mixup 1e-09 is too small to draw by; use 0, which is off, or 0.001"),
        ("--cutmix 1e-5", "--cutmix 1e-05 is too small"),
        ("--relative-scale 1e20", "--relative-scale 1e+20 is outside (0, 1000000.0)"),
        ("--weight-decay 1e300", "--weight-decay 1e+300 is beyond fp32; use 0, or a number from 1e-36 to 1e+36"),
        ("--clip-grad 1e-300", "--clip-grad 1e-300 is beyond fp32"),
        ("--scale 1e39", "--scale 1e+39 is beyond fp32"),
        ("--color-jitter 1e300", "is beyond fp32"),
        ("--color-jitter 1e10", "--color-jitter 10000000000.0 is outside [0, 100]"),
        ("--image-size 1000000000000", "--image-size 1000000000000 is outside [1, 65536]"),
        ("--seed ²", "--seed"),
        ("--memory ²GB", "--memory: ²GB is not a size"),
        ("--device cuda:4x", "--device cuda:4x is unknown"),
        ("--lr nan", "--lr nan is outside"),
        ("--lr inf", "--lr inf is outside"),
        ("--lr -0.0", "--lr -0.0 is outside"),
        # Python reads the digits of every script, and 1_0 for 10
        ("--epochs \u0663", "--epochs: '\u0663' is not a whole number written in plain digits"),
        ("--epochs 1_000", "--epochs: '1_000' is not a whole number written in plain digits"),
        ("--epochs 1e3", "--epochs: '1e3' is not a whole number written in plain digits"),
        ("--epochs 5.0", "--epochs: '5.0' is not a whole number"),
        ("--epochs 0x10", "--epochs: '0x10' is not a whole number"),
        ("--batch-size \uff15", "--batch-size: '\uff15' is not a whole number"),
        ("--lr \u0663e-3", "--lr: '\u0663e-3' is not a number written in plain digits"),
        ("--lr 1_0e-4", "--lr: '1_0e-4' is not a number written in plain digits"),
        ("--lr 1,5", "--lr: '1,5' is not a number"),
        ("--memory \u0663GB", "--memory: \u0663GB is not a size"),
        ("--device cuda:\u0663", "--device cuda:\u0663 is unknown"),
    ],
)
def test_values_beyond_all_computing(
    flags: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--data", "x", *flags.split()]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert len(said.splitlines()) == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        *(("5", int, 5), ("+5", int, 5), (" 5 ", int, 5), ("5\r", int, 5), ("-0", int, 0), ("007", int, 7)),
        *(("1e-3", float, 1e-3), ("+.5", float, 0.5), ("3.", float, 3.0), ("-0.0", float, 0.0), ("1E5", float, 1e5)),
    ],
)
def test_a_number_in_plain_digits_is_what_it_says(text: str, kind: type, value: float) -> None:
    found = read_number(text, kind)
    assert (found, type(found)) == (value, kind)
    assert math.copysign(1, found) == math.copysign(1, value)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("--seeds 1_0", "--seeds: 1_0 is not a number"), ("--lr-grid 1e-3,\u0663", "--lr-grid: \u0663 is not a number")],
)
def test_lists_of_numbers_are_read_alike(flags: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--data", "x", *flags.split()]) == 2
    assert expected in capsys.readouterr().err


def test_every_number_has_an_interval_so_that_none_is_nan() -> None:
    numbers = {name: known for name, known in settings().items() if float in (known.hint, *get_args(known.hint))}
    assert len(numbers) > 20
    assert [name for name, known in numbers.items() if known.reading.interval is None] == []
