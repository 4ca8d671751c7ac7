"""Flags and recipes: one definition, refused by name where they are wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snella.config.fields import check_intervals, descriptions, flag, settings_of
from snella.config.method import Gate, Kernel
from snella.config.recipe import differences, read_recipe, to_yaml
from snella.config.schema import DEFAULTS, TrainConfig, recipe_keys, run_folder, settings, shrunk
from snella.config.tasks import TASKS
from snella.config.validation import SECTIONS, validate
from snella.delta import GATES, KERNELS
from snella.errors import UserError
from snella.tasks.registry import task_named


def written(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return str(path)


def refused(config: TrainConfig) -> str:
    with pytest.raises(UserError) as caught:
        validate(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_defaults_are_valid_once_data_is_given():
    validate(TrainConfig.of(data="images"))
    assert "--data" in refused(TrainConfig())


def test_every_setting_says_what_it_is():
    sections = {None: TrainConfig} | {name: type(getattr(TrainConfig(), name)) for name in SECTIONS}
    for name, known in settings().items():
        assert descriptions(sections[known.section])[known.attribute], name


SETTING = """
@dataclass(frozen=True, kw_only=True)
class Section:
    strength: float = setting(0.5, between(0, 1), flag_name="toy_strength", methods=("lora",))
    \"\"\"How strong the toy is, 0 to 1.\"\"\"
"""


def test_a_new_setting_is_one_field(tmp_path, monkeypatch):
    """Its flag, key in a recipe, help, range and reader come from the field."""
    module = tmp_path / "toy_section.py"
    imports = "from dataclasses import dataclass\nfrom snella.config.fields import between, setting\n"
    module.write_text(imports + SETTING)
    monkeypatch.syspath_prepend(tmp_path)
    import toy_section  # pyright: ignore[reportMissingImports]

    @dataclass(frozen=True, kw_only=True)
    class Whole:
        toy: toy_section.Section = field(default_factory=toy_section.Section)

    Whole.__annotations__["toy"] = toy_section.Section
    (known,) = settings_of(Whole).values()
    assert (known.name, known.section, known.attribute, known.default) == ("toy_strength", "toy", "strength", 0.5)
    assert flag(known.name) == "--toy-strength"
    assert descriptions(toy_section.Section) == {"strength": "How strong the toy is, 0 to 1."}
    with pytest.raises(UserError, match=r"--toy-strength 2 is outside \[0, 1\]"):
        check_intervals(toy_section.Section(strength=2))


def test_the_choices_are_those_of_the_modules_that_use_them():
    assert get_args(Kernel) == KERNELS
    assert get_args(Gate) == GATES


@given(
    r=st.integers(1, 512),
    lr=st.floats(1e-12, 1e3),
    allocate_every=st.none() | st.integers(1, 10**6),
    target_modules=st.none() | st.lists(st.text(min_size=1), max_size=3).map(tuple),
    ema=st.none() | st.floats(0.1, 0.9999999),
    pretrained=st.booleans(),
    data=st.text(min_size=1),
)
def test_a_written_recipe_reads_back_as_the_same_config(tmp_path_factory, **values):
    config = TrainConfig.of(**values)
    path = written(tmp_path_factory.mktemp("recipe"), to_yaml(config.changed(out="x", overwrite=True)))
    assert read_recipe(path) == config


@pytest.mark.parametrize("text", ["lr: 1e-3", "lr: 0.001", "lr: 1.0e-3", "lr: '0.001'"])
def test_every_spelling_of_a_number_is_read(tmp_path, text):
    assert read_recipe(written(tmp_path, text)).loop.lr == 0.001


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch: 3", "unknown key epoch; did you mean epochs?"),
        ("qqqq: 3", "unknown key qqqq"),
        ("epochs: three", "epochs: 'three' is not a whole number"),
        ("epochs: 1.5", "epochs: 1.5 is not a whole number"),
        ("epochs: true", "epochs: True is not a whole number"),
        ("epochs: null", "epochs: None is not a whole number"),
        ("lr: fast", "lr: 'fast' is not a number"),
        ("pretrained: 1", "pretrained: 1 is not true or false"),
        ("target_modules: qkv", "target_modules: 'qkv' is not a list of names"),
        ("data: [a, b]", "data: ['a', 'b'] is not text"),
        ("method: snela", "--method snela is unknown; did you mean snella?"),
        ("out: here", "out belongs on the command line (--out)"),
        ("- a\n- b", "`key: value`"),
        ("a: [1", "no valid YAML"),
        ("3: 4", "unknown key 3"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(tmp_path, text, said):
    with pytest.raises(UserError) as caught:
        read_recipe(written(tmp_path, text))
    assert said in str(caught.value)
    assert "recipe.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("dmo", "no recipe dmo; did you mean demo?"),
        ("none/such.yaml", "recipe none/such.yaml does not exist"),
    ],
)
def test_an_unknown_recipe_is_refused_with_the_nearest(recipe, said):
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        read_recipe(recipe)


def test_a_recipe_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="not a text file"):
        read_recipe(str(tmp_path / "r.yaml"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"r": 7}, "--r 7 is not divisible by --heads 2; try --r 6"),
        ({"r": 1, "heads": 4}, "try --r 4"),
        ({"r": 0}, "--r 0"),
        ({"target_sparsity": 1.1}, "--target-sparsity 1.1 is outside [0, 1]"),
        ({"init_sparsity": -0.1}, "--init-sparsity -0.1 is outside [0, 1]"),
        ({"target_sparsity": float("nan")}, "--target-sparsity nan"),
        ({"lr": 0.0}, "--lr 0.0 is outside the numbers above 0"),
        ({"lr": float("inf")}, "--lr inf"),
        ({"lr": 1e-6}, "--min-lr 1e-05 is above the learning rate 1e-06"),
        ({"epochs": 0}, "--epochs 0"),
        ({"batch_size": -1}, "--batch-size -1"),
        ({"allocate_every": 0}, "--allocate-every 0"),
        ({"ema": 1.0}, "--ema 1.0 is outside (0, 1)"),
        ({"warmup": 1.0}, "--warmup 1.0 is outside [0, 1)"),
        ({"seed": -1}, "--seed -1"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "no image is left"),
        ({"method": "lorra"}, "did you mean lora?"),
        ({"kernel": "mix"}, "did you mean mixk?"),
        ({"gate": "published!"}, "did you mean published?"),
        ({"task": "segmentation"}, "choose from classify"),
        ({"device": "cude"}, "--device cude is unknown; did you mean cuda?"),
        ({"resume": True, "overwrite": True}, "contradict"),
        ({"epochs": 2.0}, "is not a whole number"),
    ],
)
def test_a_wrong_value_is_refused_by_name(values, said):
    assert said in refused(TrainConfig.of(data="images", **values))


def test_only_the_methods_that_split_r_need_it_divisible():
    validate(TrainConfig.of(data="images", method="lora", r=7))


def test_differences_name_what_changes_the_result_and_nothing_else():
    config = TrainConfig.of(data="a", lr=1e-3)
    assert differences(config, config.changed(lr=0.1)) == ["--lr was 0.001, is 0.1"]
    free = {"device": "cpu", "workers": 3, "checkpoint_every": 5, "tensorboard": True, "out": "x", "resume": True}
    free |= {"rematerialize": "mlp", "gradient_checkpointing": True, "test": "none", "memory": "auto"}
    free |= {"tracker": "wandb", "tracker_adapter": True, "cache_images": "on", "trust": ("dark",), "accept_data": True}
    assert set(free) | {"overwrite", "estimate", "devices", "push", "private"} == {
        n for n, s in settings().items() if s.reading.free or s.reading.start
    }
    assert differences(config, config.changed(**free)) == []


def test_settings_of_older_runs_are_read_as_they_were(tmp_path):
    config = read_recipe(written(tmp_path, "data: a\nscale: 0.1\ninit_scale: 1.0\nlast_epoch: true\n"))
    assert (config.method.scale, config.method.start_scale, config.method.init_alpha, config.test) == (
        0.1,
        0.1,
        1.0,
        "both",
    )
    assert read_recipe(written(tmp_path, "data: a\nlast_epoch: false\n")).test == "best"
    assert read_recipe(written(tmp_path, "data: a\ninit_scale: 3e0\n")).method.start_scale == 3.0  # a text in YAML
    with pytest.raises(UserError, match="init_scale"):
        read_recipe(written(tmp_path, "data: a\ninit_scale: abc\n"))


def test_shares_that_are_left_out_are_those_of_runs_made_before():
    """Runs made before have 0.15 in their config; of generation it divides images that are all trained on now."""
    before, now = (TrainConfig.of(data="x", **shares) for shares in ({"val_fraction": 0.15, "test_fraction": 0.15}, {}))
    assert differences(before, now) == differences(now, before) == []
    assert differences(now, now.changed(val_fraction=0.2)) == ["--val-fraction was None, is 0.2"]
    before, now = before.changed(task="generate"), now.changed(task="generate")
    assert differences(before, now) == ["--val-fraction was 0.15, is None", "--test-fraction was 0.15, is None"]


def test_what_a_method_does_not_read_is_no_difference():
    lora, snella = (TrainConfig.of(data="x", method=method) for method in ("lora", "snella"))
    assert differences(lora, lora.changed(scale=0.3, target_sparsity=0.2, allocate_every=3)) == []
    assert differences(snella, snella.changed(scale=0.3)) == ["--scale was None, is 0.3"]
    assert differences(lora, lora.changed(update_dropout=0.1)) == ["--update-dropout was 0.0, is 0.1"]
    assert differences(lora, snella.changed(scale=0.3)) == ["--method was lora, is snella", "--scale was None, is 0.3"]


def test_smoke_shrinks_and_shrinks_once():
    config = TrainConfig.of(data="a", image_size=32, init_warmup=100, epochs=1)
    small = shrunk(config)
    assert (small.loop.epochs, small.model.image_size, small.data.batch_size, small.method.init_warmup) == (1, 32, 8, 0)
    assert shrunk(small) == small
    assert shrunk(TrainConfig.of(data="a")).model.image_size == 112


@pytest.mark.parametrize("task", TASKS)
def test_what_smoke_makes_is_valid_itself(task):
    backbone = "small_unet" if task == "generate" else DEFAULTS.model.backbone
    small = shrunk(TrainConfig.of(task=task, data="a", backbone=backbone))
    validate(small)
    task_named(task).check(small)


def test_smoke_takes_few_images_of_a_prior():
    config = TrainConfig.of(task="generate", data="a", backbone="small_unet", prior_prompt="a dog")
    assert shrunk(config).generate.prior_images == 4


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("elpv", "elpv-lora-s3"),
        ("some/where/birds/", "birds-lora-s3"),
        ("hfds/owner/birds v2", "birds-v2-lora-s3"),
        ("/", "data-lora-s3"),
    ],
)
def test_the_run_folder_is_named_after_data_method_and_seed(data, name):
    assert run_folder(TrainConfig.of(data=data, method="lora", seed=3)) == Path("runs") / name


def test_a_manifest_gives_its_name_without_the_suffix(tmp_path):
    (tmp_path / "cells.csv").touch()
    assert run_folder(TrainConfig.of(data=str(tmp_path / "cells.csv"))).name == "cells-snella-s0"


def test_a_recipe_may_set_all_but_how_a_run_is_started():
    assert settings().keys() - set(recipe_keys()) == {
        "out",
        "resume",
        "overwrite",
        "estimate",
        "accept_data",
        "devices",
        "push",
        "private",
    }


def test_a_setting_that_is_none_is_refused():
    with pytest.raises(TypeError, match="no setting is called lrr"):
        TrainConfig.of(lrr=1)
