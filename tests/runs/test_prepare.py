"""What is made ready before the run folder is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.runs import train


# It failed at the first step, in a run folder that was there then.
def test_a_batch_norm_that_would_see_one_value_is_refused_before_the_run_folder_is_made(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--backbone", "resnet10t", "--batch-size", "1", "--epochs", "1")
    assert train(images, tmp_path / "run", *flags, "--method", "full") == 2
    assert "a batch of one image gives the batch norm layer4.0." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    for fine in (("--method", "linear"), ("--method", "full", "--image-size", "64")):
        assert train(images, tmp_path / "run", *flags, *fine, "--estimate") == 0
