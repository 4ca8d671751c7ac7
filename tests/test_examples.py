"""The scripts in `examples/` run as a user runs them, and give what they say."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

EXAMPLES = Path(__file__).parent.parent / "examples"

Run = Callable[..., str]  # name of an example, flags -> what it printed


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run an example in an empty folder with the flags and return what it printed."""
    monkeypatch.chdir(tmp_path)

    def example(name: str, *flags: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *flags])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capfd.readouterr().out

    return example


def number(text: str, printed: str) -> float:
    """Return the number after a text that was printed."""
    match = re.search(rf"{re.escape(text)} *([-+\d.e]+)", printed)
    assert match, printed
    return float(match[1])


def test_timm_training_loop(run: Run, tmp_path: Path) -> None:
    printed = run("timm_training_loop", "--out", "adapter", "--steps", "40")
    sparsities = [float(value) for value in re.findall(r"sparsity ([\d.]+)", printed)]
    assert sparsities == sorted(sparsities)
    assert sparsities[0] < 0.5
    assert sparsities[-1] == pytest.approx(0.7, abs=1e-3)
    assert number("accuracy:", printed) > 0.9
    assert number("largest difference of the merged logits:", printed) < 1e-4
    budgets = [t for name, t in load_file(tmp_path / "adapter" / "adapter_model.safetensors").items() if "kept" in name]
    assert sum(int(t.sum()) for t in budgets) > 0


def test_transformers_trainer(run: Run, tmp_path: Path) -> None:
    printed = run("transformers_trainer", "--out", "adapter", "--epochs", "1")
    assert number("\nloss:", printed) < 0.9  # ln 3 = 1.1 is chance
    assert number("share of the weights left as they were:", printed) == pytest.approx(0.7, abs=2e-3)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_diffusers_pipeline(run: Run, tmp_path: Path) -> None:
    printed = run("diffusers_pipeline", "--out", "adapter")
    first, last = re.findall(r"([\d.]+), ([\d.]+)", printed)[0]
    assert float(last) < 0.6 * float(first)
    assert number("the adapter changes the predicted noise by up to", printed) > 0.1
    assert "as it was before, to the bit: True" in printed
    with Image.open(tmp_path / "adapter" / "image.png") as picture:
        assert picture.size == (16, 16)


def test_segmentation(run: Run) -> None:
    printed = run("segmentation", "--steps", "40")
    assert number("mIoU:", printed) > 0.7  # 0.3 where all is ground


@pytest.mark.slow
@pytest.mark.usefixtures("warm_runs")
def test_compare_methods(run: Run, tmp_path: Path) -> None:
    printed = run("compare_methods", "--out", "comparison")
    result = json.loads((tmp_path / "comparison" / "runs" / "compare.json").read_text())
    for row in result["methods"]:
        assert f"{row['method']}: test top1 {row['summary']['test_mean']:.3f} at lr 0.003" in printed
    assert {row["method"] for row in result["methods"]} == {"snella", "linear"}
    assert (tmp_path / "comparison" / "runs" / "compare.md").is_file()


def test_every_example_is_tested() -> None:
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tests
