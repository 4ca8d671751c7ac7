"""Recipes: a training run's config as YAML, read and written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from snella.config.fields import flag, nearest
from snella.config.schema import TrainConfig, recipe_keys, settings
from snella.config.validation import typed
from snella.errors import UserError, named
from snella.yaml_text import read_yaml

PLACES = ("data", "splits", "checkpoint", "prior_data", "backbone")  # settings that may name files or folders
FOLDER_PREFIXES = ("hf:", "local-dir:")  # of backbones in a folder
LONGEST_FILE = 1_000_000  # bytes
_SUITE = re.compile(r"^suite\s*:", re.MULTILINE)  # what only a suite of tasks has (`snella.config.suites`)


def recipe_names() -> list[str]:
    """Return the recipes that come with the package, without the suites."""
    return [name for name, text in _packaged().items() if not _SUITE.search(text)]


def suite_names() -> list[str]:
    """Return the suites of tasks that come with the package."""
    return [name for name, text in _packaged().items() if _SUITE.search(text)]


def _packaged() -> dict[str, str]:
    """Return name -> text of all that is in the package's folder."""
    folder = resources.files("snella") / "recipes"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {f.name.removesuffix(".yaml"): f.read_text(encoding="utf-8") for f in files}


def is_suite(recipe: str) -> bool:
    """Return whether this is a packaged suite's name, or a YAML file with `suite:`."""
    if recipe in suite_names():
        return True
    try:
        return Path(recipe).stat().st_size <= LONGEST_FILE and bool(
            _SUITE.search(Path(recipe).read_text(encoding="utf-8"))
        )
    except (OSError, ValueError):  # no file, or none of text
        return False


def read_recipe(recipe: str) -> TrainConfig:
    """Return the config that a recipe gives: the name of one of the package's, or the path of a YAML file.

    Raises:
        UserError: no such recipe, no YAML, an unknown key or a value of the wrong type.
    """
    text = recipe_text(recipe)
    if is_suite(recipe):
        raise UserError(f"recipe {recipe} is a suite of tasks; name one of them, {recipe}/TASK")
    try:
        return TrainConfig.of(**config_values(mapping(text)))
    except ValueError as error:  # also of Python itself, for numbers of thousands of digits
        raise UserError(f"recipe {recipe}: {error}") from None


def recipe_text(recipe: str) -> str:
    """Return the YAML of a recipe or a suite. Raises UserError if there is none."""
    packaged = _packaged()
    if recipe in packaged:
        return packaged[recipe]
    if Path(recipe).is_file():
        if Path(recipe).stat().st_size > LONGEST_FILE:
            raise UserError(f"recipe {recipe} is of {Path(recipe).stat().st_size:,} bytes: that is no recipe")
        try:
            return Path(recipe).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise UserError(f"recipe {recipe} is not a text file") from None
    if "/" in recipe or recipe.endswith((".yaml", ".yml")):
        raise UserError(f"recipe {recipe} does not exist{nearest(recipe.partition('/')[0], suite_names())}")
    names, suites = recipe_names(), ", ".join(suite_names())
    raise UserError(
        f"no recipe {recipe}{nearest(recipe, packaged)} "
        f"(there are {', '.join(names)}, the suites {suites} as SUITE/TASK, or a path)"
    )


def mapping(text: str) -> dict[Any, Any]:
    """Return the YAML of `key: value` lines. Raises UserError if it is anything else."""
    values = read_yaml(text)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError("not a list of `key: value` lines")
    return values


def config_values(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the fields of a config as YAML has them -> as `TrainConfig` takes them.

    Raises:
        UserError: an unknown key, one that belongs on the command line, or a value of the wrong type.
    """
    found, known = {}, settings()
    for key, value in _renamed(values).items():
        if key not in known:
            raise UserError(f"unknown key {named(key)}{nearest(named(key), recipe_keys())}")
        if known[key].reading.start:
            raise UserError(f"{key} belongs on the command line ({flag(key)}), not in a recipe")
        found[key] = typed(key, value, known[key].hint, parse=True)
    return found


def _renamed(values: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return the values by today's names: `last_epoch` was a switch; `init_scale` a factor, with a softmax from 1."""
    values = dict(values)
    if (last_epoch := values.pop("last_epoch", None)) is not None:
        values["test"] = "both" if last_epoch else "best"
    if (factor := values.pop("init_scale", None)) is not None:
        factor = typed("init_scale", factor, float, parse=True)
        scale = typed("scale", values.get("scale", 1.0), float, parse=True)
        values |= {"start_scale": factor * scale, "init_alpha": 1.0}
    return values


def to_yaml(config: TrainConfig) -> str:
    """Return the config as a recipe: `read_recipe` of it gives the same config, but for how it is started."""
    values = {name: config.value(name) for name in recipe_keys()}
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def placed(config: TrainConfig) -> TrainConfig:
    """Return the config with the whole paths of what it reads, so that they are found from another folder too."""
    found = {name: whole_path(config, name) for name in PLACES}
    return config.changed(**{name: path for name, path in found.items() if path is not None})


def whole_path(config: TrainConfig, name: str) -> str | None:
    """Return a setting that names a place, with its whole path; None where it does not name one that is there."""
    value = config.value(name) or ""
    prefix = next((word for word in FOLDER_PREFIXES if name == "backbone" and value.startswith(word)), "")
    if name == "backbone" and not prefix and config.task != "generate":  # a name, whatever folder is called so
        return None
    path = Path(value.removeprefix(prefix)).expanduser()
    return f"{prefix}{path.absolute()}" if value and path.exists() else None


# what a run finds out once, if it is not said: setting -> the values that leave it to the run
LEFT_TO_THE_RUN: dict[str, tuple[Any, ...]] = {
    "batch_size": (None, "auto"),
    "epochs": ("auto",),
    "lr": ("auto",),
    "precision": ("auto",),
}


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Return what differs between two configs in a way that changes the result, one phrase a setting.

    What is left to the run now goes with anything, and a place may be written in several ways.
    """
    old_places, new_places = placed(old), placed(new)
    return [
        f"{flag(name)} was {old.value(name)}, is {new.value(name)}"
        for name, known in settings().items()
        if old_places.value(name) != new_places.value(name)
        and new.value(name) not in LEFT_TO_THE_RUN.get(name, ())
        and not (new.task != "generate" and old.data.fractions.get(name) == new.data.fractions.get(name, 0))
        and not (known.reading.free or known.reading.start)
        and not (known.reading.methods and new.method.name not in known.reading.methods)
    ]
