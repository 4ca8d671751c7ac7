"""The snippets of README and docs run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import diffusers
import peft
import pytest

import snella.compare.search
import snella.methods.adapters
from snella import SnellaConfig
from snella.cli.commands import Train, parse_train
from snella.cli.main import COMMANDS, main
from snella.compare.plan import Plan
from snella.data.layouts.caption_folders import caption_folder
from snella.data.layouts.class_folders import image_folder
from snella.data.layouts.manifests import manifest
from snella.data.layouts.masked_folders import masked_folder
from snella.data.masks.class_names import names_file
from support import tiny_pipelines
from support.snippets import commands, snippets

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
METHODS = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
DATA = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
GENERATION = (ROOT / "docs" / "generation.md").read_text(encoding="utf-8")
COMPARING = (ROOT / "docs" / "comparing.md").read_text(encoding="utf-8")
PAGES = [README, *((ROOT / "docs" / f"{name}.md").read_text() for name in ("commands", "segmentation")), GENERATION]


def test_python_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny pipeline in the place of the one on the hub, and an adapter of it where the run would be."""
    monkeypatch.chdir(tmp_path)
    load = diffusers.DiffusionPipeline.from_pretrained
    folder = tiny_pipelines.write_sd(tmp_path / "pipeline")
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda name: load(folder))
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    peft.get_peft_model(unet, SnellaConfig(r=4)).save_pretrained(str(tmp_path / "runs" / "dog" / "adapter"))
    (library,), (pipeline,) = snippets("python", README), snippets("python", GENERATION)
    exec(compile(library, "README.md", "exec"), {})
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    names: dict[str, Any] = {}
    exec(compile(pipeline, "generation.md", "exec"), names)
    assert names["image"].size == (16, 16)


def test_commands_exist_and_train_parses() -> None:
    lines = [line.split("#")[0] for snippet in snippets("bash", README) for line in snippet.splitlines()]
    told = [command for page in PAGES for command in commands(page)]
    assert [command[0] for command in told] == [
        *("train", "predict", "app", "train", "evaluate", "predict", "train", "predict", "train", "predict", "merge"),
    ]
    assert all(command[0] in COMMANDS for command in told)
    flags = [command[1:] for command in told if command[0] == "train"]
    trained = [parse_train(args, "train", Train()).config for args in flags]
    assert [(config.task, config.data.source) for config in trained] == [
        ("classify", "flowers/"),
        ("classify", "flowers/"),
        ("segment", "cells/"),
        ("generate", "my_dog/"),
    ]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in (shlex.split(line)[1] for line in lines if line.startswith("make ")):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_comparisons_are_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []
    monkeypatch.setattr(snella.compare.search, "compare", lambda plan, workers: plans.append(plan) or {})
    for command in commands(COMPARING) + commands(METHODS):
        if command[0] == "compare":
            assert main(command) == 0
    assert [len(plan.tasks) for plan in plans] == [1, 19, 10]
    assert plans[-1].methods == tuple(snella.methods.adapters.METHODS)


def written(folder: Path, name: str, text: str) -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_layouts_of_folders_are_read(tmp_path: Path) -> None:
    """Each column of a layout by itself; no image is opened for that."""
    for layout in snippets("text", DATA):
        for side in (0, 1):
            for line in layout.splitlines():
                written(tmp_path / str(side), line.split()[side], "")
    assert image_folder(str(tmp_path / "0" / "flowers")).classes == ("daisy", "rose")
    assert set(image_folder(str(tmp_path / "1" / "flowers")).splits) == {"train", "test"}
    assert masked_folder(str(tmp_path / "0" / "cells")).splits == {"all": [("images/1.jpg", "masks/1.png")]}
    assert set(masked_folder(str(tmp_path / "1" / "cells")).splits) == {"train"}


def test_files_beside_images_are_read(tmp_path: Path) -> None:
    (table,) = snippets("csv", DATA)
    lines, captions = snippets("jsonl", DATA)
    listing = manifest(written(tmp_path, "manifest.csv", table))
    assert {split: len(entries) for split, entries in listing.splits.items()} == {"train": 2, "test": 2}
    assert manifest(written(tmp_path, "manifest.jsonl", lines)).classes == listing.classes == ("daisy", "rose")
    dog = tmp_path / "dog"
    written(dog, "metadata.jsonl", captions)
    for name in ("1.jpg", "2.jpg"):
        written(dog, name, "")
    assert caption_folder(str(dog))[1] == {"1.jpg": "a photo of sks dog", "2.jpg": "sks dog, asleep"}
    forms = [
        names_file([str(Path(written(tmp_path / str(i), "classes.json", text)).parent)])
        for i, text in enumerate(snippets("json", DATA))
    ]
    assert [form and (form.names, form.values) for form in forms] == [
        (("background", "cell"), values) for values in ((0, 1), (0, 255), (0, 1))
    ]
    assert forms[2] is not None
    assert forms[2].colors == ((0, 0, 0), (255, 0, 0))
