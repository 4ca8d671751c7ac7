"""Suites: the published settings of every task, their means, and a task that trains by its name."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from snella import SnellaConfig
from snella.cli.main import main
from snella.config.recipe import read_recipe, recipe_names, suite_names
from snella.config.schema import TrainConfig
from snella.config.suites import (
    Published,
    group_mean,
    group_means,
    is_suite,
    is_suite_task,
    read_suite,
    read_suite_task,
    task_mean,
)
from snella.config.validation import validate
from snella.data.layouts.registry import LABELLED
from snella.data.layouts.rows import bundled_names
from snella.data.layouts.vtab_fgvc import VTAB_CLASSES
from snella.errors import UserError
from snella.methods.adapters import wrap

# task: batch, rate, weight decay, initial and target sparsity (None: no selection), as published
SNELLA = {
    "fgvc/cub": (16, 1e-3, 0.05, 0, 0.30),
    "fgvc/nabirds": (32, 1e-3, 5e-4, 0, 0.16),
    "fgvc/oxford_flowers": (16, 1e-3, 1e-3, 0, 0.61),
    "fgvc/stanford_dogs": (32, 1e-4, 5e-3, 0, 0.24),
    "fgvc/stanford_cars": (16, 1e-3, 0.05, None, None),
    "vtab1k/cifar": (8, 1e-3, 0.05, 0.01, 0.80),
    "vtab1k/caltech101": (16, 1e-3, 1e-4, None, None),
    "vtab1k/svhn": (16, 1e-3, 1e-4, None, None),
    "vtab1k/dtd": (8, 1e-3, 5e-3, 0.01, 0.93),
    "vtab1k/oxford_flowers102": (8, 1e-3, 1e-3, 0.01, 0.40),
    "vtab1k/oxford_iiit_pet": (16, 1e-3, 0.05, 0.01, 0.55),
    "vtab1k/patch_camelyon": (8, 1e-3, 5e-4, 0.01, 0.76),
    "vtab1k/diabetic_retinopathy": (32, 1e-3, 0.05, 0.01, 0.20),
    "vtab1k/smallnorb_ele": (32, 1e-3, 1e-3, 0.01, 0.63),
}
# task: batch, weight decay, sparsity, epochs, of SNELL where SNELLA has no published setting
SNELL = {
    "vtab1k/sun397": (32, 1e-3, 0.99, 200),
    "vtab1k/eurosat": (16, 4e-4, 0.5, 100),
    "vtab1k/resisc45": (32, 0.01, 0, 100),
    "vtab1k/clevr_count": (16, 0.01, 0.1, 100),
    "vtab1k/clevr_dist": (16, 1e-3, 0.74, 100),
    "vtab1k/dmlab": (8, 1e-4, 0, 100),
    "vtab1k/kitti": (8, 0.01, 0.37, 100),
    "vtab1k/dsprites_loc": (16, 0.01, 0, 100),
    "vtab1k/dsprites_ori": (8, 0.01, 0.88, 100),
    "vtab1k/smallnorb_azi": (16, 0.01, 0, 100),
}
AMP = ("vtab1k/cifar", "vtab1k/oxford_iiit_pet", "vtab1k/patch_camelyon")
TASKS = {f"{suite}/{task.name}": task for suite in ("fgvc", "vtab1k") for task in read_suite(suite).tasks}


def flat(config: TrainConfig) -> SimpleNamespace:
    return SimpleNamespace(**config.flat())


def test_there_are_the_24_tasks_in_their_groups():
    assert TASKS.keys() == SNELLA.keys() | SNELL.keys()
    vtab = read_suite("vtab1k").tasks
    assert {task.name for task in vtab} == {task.config.data.source for task in vtab} == VTAB_CLASSES.keys()
    sizes = {group: sum(task.group == group for task in vtab) for group in ("natural", "specialised", "structured")}
    assert sizes == {"natural": 7, "specialised": 4, "structured": 8}
    assert {task.group for task in read_suite("fgvc").tasks} == {""}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_what_all_published_runs_have(name):
    task, fgvc = TASKS[name], name.startswith("fgvc")
    config = task.config
    validate(config)
    assert read_suite_task(name) == config
    config = flat(config)
    assert (config.backbone, config.method, config.kernel) == ("vit_base_patch16_224.augreg_in21k", "snella", "mixk")
    assert (config.r, config.heads, config.scale, config.optimizer) == (32, 2, 0.1, "adamw")
    assert (config.update_dropout, config.update_drop_path, config.drop_path) == (0.1, 0.1, 0.1)
    assert (config.min_lr, config.warmup_lr) == (1e-5, 1e-6)
    assert math.isclose(config.warmup * config.epochs, 10)
    assert (config.init_warmup, config.final_warmup, config.allocate_every) == (0, 0, None)
    assert (config.label_smoothing, config.mixup, config.cutmix, config.early_stopping) == (0, 0, 0, 0)
    assert (config.image_size, config.normalisation) == (224, "imagenet")
    assert (config.resize, config.augment) == (("crop", "crop") if fgvc else ("squash", "none"))
    assert config.ema == (0.9999 if fgvc else None)
    assert (config.head_first, config.average, config.keep) == (False, 0, "best")
    assert config.precision == ("fp16" if name in AMP else "fp32")


@pytest.mark.parametrize("name", SNELLA)
def test_a_published_setting_is_as_published(name):
    config = flat(TASKS[name].config)
    batch, lr, decay, initial, target = SNELLA[name]
    assert (config.batch_size, config.lr, config.weight_decay, config.epochs) == (batch, lr, decay, 100)
    if target is None:
        assert config.gate == "none"
    else:
        assert (config.gate, config.init_sparsity, config.target_sparsity) == ("published", initial, target)
    assert TASKS[name].note == "published SNELLA setting"


@pytest.mark.parametrize("name", SNELL)
def test_where_there_is_none_it_is_snells(name):
    config = flat(TASKS[name].config)
    batch, decay, sparsity, epochs = SNELL[name]
    assert (config.batch_size, config.weight_decay, config.epochs) == (batch, decay, epochs)
    assert (config.gate, config.target_sparsity, config.lr) == ("published" if sparsity else "none", sparsity, 1e-3)
    assert config.init_sparsity <= sparsity
    assert TASKS[name].note == "no published SNELLA setting; SNELL's used"


def test_method_snell_runs_snells_setting():
    """At sparsity 0 it selects nothing, as published, and elsewhere it is as sparse from the start."""
    for name, gate in (("vtab1k/resisc45", "none"), ("vtab1k/kitti", "published")):
        config, model = TASKS[name].config, timm.create_model("test_vit", num_classes=2)
        tuner = wrap(model, replace(config.method, name="snell")).peft_config["default"]  # pyright: ignore
        assert isinstance(tuner, SnellaConfig)
        assert (tuner.kernel, tuner.gate, tuner.init_sparsity) == ("pwl", gate, config.method.target_sparsity)


def test_the_published_marks():
    vtab = {mark.method: (mark.group_mean, mark.task_mean) for mark in read_suite("vtab1k").published}
    assert vtab["SNELL-32"] == (76.9, 74.6)
    assert vtab["PRO-VPT"] == (78.0, 76.0)
    assert vtab["full"] == (69.0, None)
    fgvc = read_suite("fgvc").published
    assert Published("Adapter+", None, 90.7, "the cleanest protocol") in fgvc
    assert {mark.method: mark.task_mean for mark in fgvc}["SNELLA"] == 91.9
    assert all(mark.group_mean is None for mark in fgvc)


@given(st.lists(st.floats(0, 100), min_size=19, max_size=19))
def test_both_averages_are_numpys(values):
    suite = read_suite("vtab1k")
    groups = np.array([task.group for task in suite.tasks])
    by_name = {task.name: value for task, value in zip(suite.tasks, values, strict=True)}
    wanted = {group: np.mean(np.array(values)[groups == group]) for group in ("natural", "specialised", "structured")}
    assert group_means(suite, by_name) == pytest.approx(wanted)
    assert group_mean(suite, by_name) == pytest.approx(np.mean(list(wanted.values())))
    assert task_mean(suite, by_name) == pytest.approx(np.mean(values))


def test_a_mean_of_fewer_tasks_is_none():
    suite = read_suite("vtab1k")
    values = {task.name: 50.0 for task in suite.tasks if task.name != "kitti"}
    assert group_means(suite, values) == {"natural": 50, "specialised": 50}
    assert group_mean(suite, values) is None
    assert task_mean(suite, values) is None
    fgvc = read_suite("fgvc")
    assert (group_means(fgvc, {}), group_mean(fgvc, {})) == ({}, None)
    assert group_mean(fgvc, {task.name: 1.0 for task in fgvc.tasks}) is None


def written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


GOOD = """
suite: Mine
published: [{method: LoRA, task_mean: 70}]
notes: [one line]
common: {epochs: 3, lr: 1e-2, note: from common}
settings: {wide: {lr: 0.1, r: 64}, last: {note: of the setting}}
tasks: {a: {setting: wide, r: 16}, b: {data: elsewhere, group: g, setting: last}}
"""


def test_a_suite_of_ones_own(tmp_path):
    """A task's own line comes before its setting, and that before what is common."""
    path = written(tmp_path, GOOD)
    assert is_suite(path)
    suite = read_suite(path)
    assert (suite.name, suite.title, suite.notes) == ("mine", "Mine", ("one line",))
    assert suite.published == (Published("LoRA", None, 70.0),)
    a, b = suite.tasks
    assert (a.name, a.group, a.note, a.config.data.source) == ("a", "", "from common", "a")
    assert (a.config.loop.epochs, a.config.loop.lr, a.config.method.r) == (3, 0.1, 16)
    assert (b.name, b.group, b.note, b.config.data.source, b.config.loop.lr) == (
        "b",
        "g",
        "of the setting",
        "elsewhere",
        0.01,
    )
    assert read_suite_task(f"{path}/b", "root").data.source == str(Path("root") / "elsewhere")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("notes:", "note:", "unknown key note; did you mean notes?"),
        ("r: 16", "rr: 16", "task a: unknown key rr"),
        ("r: 16", "r: big", "task a: r: 'big' is not a whole number"),
        ("r: 16", "out: x", "task a: out belongs on the command line (--out)"),
        ("epochs: 3", "epochs: 1.5", "task a: epochs: 1.5 is not a whole number"),
        ("setting: last", "setting: lst", "task b: no setting lst; did you mean last?"),
        ("group: g", "group: 3", "task b: group: 3 is not text"),
        ("task_mean: 70", "mean: 70", "published: unknown key mean"),
        ("task_mean: 70", "task_mean: high", "task_mean: 'high' is not a number"),
        ("{method: LoRA, task_mean: 70}", "LoRA", "published: 'LoRA' is not a table"),
        ("method: LoRA, ", "", "a mark has no method"),
        ("[one line]", "one line", "notes: 'one line' is not a list"),
        ("{a: {setting: wide, r: 16}, b:", "{a: 3, b:", "task a: 3 is not a table"),
        ("tasks:", "tasks: {}\n#", "tasks: there is none"),
        ("suite: Mine", "suite: [1]", "suite: [1] is not text"),
        ("[one line]", "[one", "no valid YAML in line"),
    ],
)
def test_a_wrong_suite_is_refused_in_a_line(old, new, said, tmp_path):
    assert old in GOOD
    with pytest.raises(UserError) as caught:
        read_suite(written(tmp_path, GOOD.replace(old, new)))
    assert said in str(caught.value)
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("vtab1k/cifr", "suite vtab1k has no task cifr; did you mean cifar?"),
        ("vtab1k", "recipe vtab1k is a suite of tasks; name one of them, vtab1k/TASK"),
        ("vtb1k/cifar", "recipe vtb1k/cifar does not exist; did you mean vtab1k?"),
        ("vtab2k", "no recipe vtab2k; did you mean vtab1k?"),
        ("qqqqqq", "the suites fgvc, packages, public, vtab1k as SUITE/TASK"),
        ("demo/cifar", "recipe demo/cifar does not exist"),
    ],
)
def test_an_unknown_task_or_suite_is_one_line(recipe, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--recipe", recipe]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert len(shown.splitlines()) == 1


def test_a_run_folder_named_as_a_suite_has_a_recipe_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fgvc").mkdir()
    (tmp_path / "fgvc" / "config.yaml").write_text("lr: 0.1\n")
    assert not is_suite_task("fgvc/config.yaml")
    assert read_recipe("fgvc/config.yaml").loop.lr == 0.1


def test_recipes_and_suites_are_told_apart(tmp_path):
    assert suite_names() == ["fgvc", "packages", "public", "vtab1k"]
    assert not set(suite_names()) & set(recipe_names())
    assert is_suite("fgvc")
    assert is_suite_task("fgvc/cub")
    (tmp_path / "plain.yaml").write_text("lr: 0.1\n")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe")
    for name in ("demo", "nowhere", "", str(tmp_path), str(tmp_path / "plain.yaml"), str(tmp_path / "bytes.yaml")):
        assert not is_suite(name)
        assert not is_suite_task(name)
    with pytest.raises(UserError, match="is not a suite of tasks"):
        read_suite(str(tmp_path / "plain.yaml"))
    with pytest.raises(UserError, match="does not exist"):
        read_suite("nowhere/x.yaml")
    assert read_recipe(str(tmp_path / "plain.yaml")).loop.lr == 0.1


def test_data_is_the_benchmarks_folder_or_the_tasks_own(tmp_path):
    (tmp_path / "all" / "cifar").mkdir(parents=True)
    root = str(tmp_path / "all")
    assert {task.config.data.source for task in read_suite("vtab1k", root).tasks} >= {f"{root}/cifar", f"{root}/dtd"}
    assert read_suite_task("vtab1k/cifar").data.source == "cifar"
    assert read_suite_task("vtab1k/cifar", root).data.source == f"{root}/cifar"
    assert read_suite_task("vtab1k/cifar", f"{root}/cifar").data.source == f"{root}/cifar"
    assert (
        read_suite_task("vtab1k/dtd", root).data.source == f"{root}/dtd"
    )  # missing, and said to be so: not the whole folder
    assert read_suite_task("vtab1k/dtd", "nowhere").data.source == "nowhere/dtd"


@pytest.fixture
def dtd(tmp_path: Path) -> Path:
    """A benchmark's folder with dtd alone: eight training images of two of its 47 classes."""
    random = np.random.default_rng(0)
    folder = tmp_path / "vtab" / "dtd"
    for name, count in (("train800", 8), ("val200", 4), ("test", 4)):
        (folder / "images" / name).mkdir(parents=True)
        lines = [f"images/{name}/{i}.png {i % 2}" for i in range(count)]
        (folder / f"{name}.txt").write_text("\n".join(lines))
        for i in range(count):
            pixels = random.integers(0, 256, (36, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{i}.png")
    return folder


@pytest.mark.parametrize("own", [False, True])
def test_a_task_takes_a_step_by_its_name(own, dtd, tmp_path):
    """With a tiny backbone; flags come before the suite's values, which come before the defaults."""
    flags = ["--backbone", "test_vit", "--no-pretrained", "--image-size", "32", "--r", "4", "--epochs", "1"]
    data = str(dtd if own else dtd.parent)
    command = ["train", "--recipe", "vtab1k/dtd", f"--data={data}", *flags, "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    config = flat(read_recipe(str(tmp_path / "run" / "config.yaml")))
    assert (config.data, config.r, config.epochs) == (str(dtd), 4, 1)
    assert (config.batch_size, config.weight_decay, config.target_sparsity) == (8, 5e-3, 0.93)
    about = json.loads((tmp_path / "run" / "adapter" / "snella.json").read_text())
    assert len(about["classes"]) == 47
    assert (about["preprocessing"]["mean"], about["preprocessing"]["resize"]) == ([0.485, 0.456, 0.406], "squash")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in rows) == 1
    assert torch.isfinite(torch.tensor([row["loss"] for row in rows])).all()


def test_a_missing_task_is_named(dtd, tmp_path, capsys):
    assert main(["train", "--recipe", "vtab1k/svhn", "--data", str(dtd.parent), "--out", str(tmp_path / "run")]) == 2
    assert f"{dtd.parent / 'svhn'} does not exist" in capsys.readouterr().err


def test_the_suite_of_packages_needs_no_folder():
    suite = read_suite("packages")
    for task in suite.tasks:
        validate(task.config)
        assert task.config.data.source in bundled_names(LABELLED)
    assert not suite.published


@pytest.mark.parametrize(
    ("tasks", "folder"),
    [
        ("{digits: {data: digits}, textiles: {data: textiles}}", False),  # named, by chance, as what the packages ship
        ("{digits: {}, textiles: {}}", True),
        ("{digits: {setting: small}}", False),
        ("{digits: }", True),
        ("{digits: {data: digits}, textiles: {}}", True),
    ],
)
def test_a_folder_is_asked_for_where_no_task_names_its_data(tasks, folder, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"suite: Mine\nsettings: {{small: {{data: digits}}}}\ntasks: {tasks}\n")
    assert read_suite(str(path)).needs_folder == folder
    assert not read_suite(str(path), "benchmark").needs_folder
