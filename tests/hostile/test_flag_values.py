"""Values that no computation can take are a line before anything is read or written."""

from __future__ import annotations

from pathlib import Path

import pytest

from snella.cli.main import main


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
