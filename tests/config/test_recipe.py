"""The recipes of the package are valid, complete and say what to expect."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snella.cli.main import main
from snella.config.recipe import read_recipe, recipe_names, suite_names
from snella.config.suites import read_suite
from snella.config.validation import validate
from support.hf_segmenters import saved
from support.masked import write_pairs
from support.masked_runs import blobs, picture


def test_there_are_recipes():
    assert "demo" in recipe_names()


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_valid_and_opens_with_its_command(name):
    validate(read_recipe(name))
    text = (resources.files("snella") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    opening = text.partition("\n\n")[0] if "\n\n" in text else text
    assert opening.startswith("# ")
    assert f"#   snella train --recipe {name}" in text


@pytest.mark.parametrize("name", suite_names())
def test_a_suite_opens_with_its_commands_and_what_to_expect(name):
    suite = read_suite(name)
    text = (resources.files("snella") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    opening = text[: text.index("suite:")]
    assert all(line.startswith("#") for line in opening.splitlines())
    assert f"#   snella compare --recipe {name}" in opening
    assert any(f"#   snella train --recipe {name}/{task.name}" in opening for task in suite.tasks)
    snell = next((mark for mark in suite.published if mark.method == "SNELL-32"), None)
    if snell is None:
        assert "No published figures" in opening
        return
    assert all(f"{mean}" in opening for mean in (snell.group_mean, snell.task_mean) if mean)
    assert "best epoch on the test split" in opening


def ade20k(root: Path) -> Path:
    """Five training and two validation images as ADE20K has them, with all of its 150 class names."""
    folder = root / "ADEChallengeData2016"
    write_pairs(folder, 5, (0, 1, 20, 150), images="images/training", masks="annotations/training")
    write_pairs(folder, 2, (0, 1, 20, 150), images="images/validation", masks="annotations/validation", first=7)
    rows = "".join(f"{k}\t0.1\t1\t1\t0\tthing {k}, object\n" for k in range(1, 151))
    (folder / "objectInfo150.txt").write_text(f"Idx\tRatio\tTrain\tVal\tStuff\tName\n{rows}")
    return folder


def kvasir(root: Path) -> Path:
    """Ten images as Kvasir-SEG has them: masks are JPEGs of two levels."""
    for i in range(10):
        mask = blobs(i, classes=2)
        for part, image in (("images", picture(mask)), ("masks", Image.fromarray(mask * np.uint8(255)))):
            (root / "Kvasir-SEG" / part).mkdir(parents=True, exist_ok=True)
            image.save(root / "Kvasir-SEG" / part / f"{i}.jpg")
    return root / "Kvasir-SEG"


SEGMENT = {"ade20k-setr": (ade20k, 150), "ade20k-upernet": (ade20k, 150), "kvasir-seg": (kvasir, 2)}
SMALL = ("--no-pretrained", "--device", "cpu", "--epochs", "1", "--r", "4", "--precision", "fp32", "--workers", "0")


@pytest.mark.parametrize(
    "name", ["ade20k-setr", *(pytest.param(n, marks=pytest.mark.slow) for n in ("ade20k-upernet", "kvasir-seg"))]
)
def test_a_segmentation_recipe_takes_its_steps(name: str, tmp_path: Path) -> None:
    """On a made-up set in its layout, with a small backbone of the same kind."""
    write, classes = SEGMENT[name]
    backbone = "test_vit"
    if name == "ade20k-upernet":
        saved("Beit", tmp_path / "beit", classes)
        backbone = f"hf:{tmp_path / 'beit'}"
    flags = ["--data", str(write(tmp_path)), "--backbone", backbone, "--image-size", "32", "--batch-size", "2"]
    assert main(["train", "--recipe", name, *flags, *SMALL, "--out", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["classes"]) == classes
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) >= 3  # two steps and a validation


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ade20k-setr", "kvasir-seg"])
def test_a_segmentation_recipe_takes_its_steps_with_its_own_backbone(name: str, tmp_path: Path) -> None:
    flags = ["--data", str(SEGMENT[name][0](tmp_path)), "--batch-size", "2", "--image-size", "64"]
    assert main(["train", "--recipe", name, *flags, *SMALL, "--out", str(tmp_path / "run")]) == 0
