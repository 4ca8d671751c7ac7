"""The console script: help and wrong flags without torch, and everything else as the package has it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import snella_cli
from snella.version import __version__
from support.runs import TINY, write_images

SOURCE = Path(snella_cli.__file__).parent
SCRIPT = "import sys, snella_cli; sys.exit(snella_cli.main())"  # as pip writes it


def script(
    *args: str, cwd: Path, first: Path | None = None, python: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    """Run the script; modules in the folder `first` stand before the installed ones."""
    path = os.pathsep.join(str(folder) for folder in (first, SOURCE) if folder)
    command = [python, "-c", SCRIPT, *args]
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def stand_in(tmp_path: Path):
    """Write a torch whose import does something else; returns the folder it is in."""

    def write(statement: str) -> Path:
        folder = tmp_path / "modules"
        folder.mkdir()
        (folder / "torch.py").write_text(statement)
        return folder

    return write


@pytest.mark.parametrize(
    ("args", "code", "shown"),
    [
        ("--version", 0, f"snella {__version__}\n"),
        ("--help", 0, "snella train --data FOLDER"),
        ("train --help", 0, "--target-sparsity"),
        ("trian", 2, "did you mean train?"),
        ("train --lrr 3", 2, "did you mean --lr?"),
        ("train --data x --r 7", 2, "--r 7 is not divisible by --heads 2"),
        ("compare --help", 0, "--lr-grid"),
        ("compare --data x --lr 1", 2, "use --lr-grid"),
        ("evaluate --split tst", 2, "did you mean test?"),
    ],
)
def test_help_and_wrong_flags_do_not_load_torch(args, code, shown, stand_in, tmp_path):
    ran = script(*args.split(), cwd=tmp_path, first=stand_in("raise SystemError('torch was loaded')"))
    assert ran.returncode == code
    assert shown in ran.stdout + ran.stderr
    assert len(ran.stderr.splitlines()) <= 1


def test_ctrl_c_while_torch_loads_is_one_line(stand_in, tmp_path):
    ran = script("data", "photos", cwd=tmp_path, first=stand_in("raise KeyboardInterrupt"))
    assert ran.returncode == 130
    assert ran.stderr == "snella: stopped; this starts again: snella data photos\n"


def test_a_run_and_its_evaluation(python, tmp_path):
    images = write_images(tmp_path / "images")
    trained = script(
        "train", "--data", str(images), "--out", "run", *TINY, "--epochs", "1", cwd=tmp_path, python=python
    )
    assert trained.returncode == 0, trained.stderr
    evaluated = script("evaluate", "run", cwd=tmp_path, python=python)
    assert evaluated.returncode == 0, evaluated.stderr
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == "SNELLA"
