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
from snella.errors import UserError

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
        return bool(_SUITE.search(Path(recipe).read_text(encoding="utf-8")))
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
    except UserError as error:
        raise UserError(f"recipe {recipe}: {error}") from None


def recipe_text(recipe: str) -> str:
    """Return the YAML of a recipe or a suite. Raises UserError if there is none."""
    packaged = _packaged()
    if recipe in packaged:
        return packaged[recipe]
    if Path(recipe).is_file():
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
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise UserError(f"no valid YAML{where}: {getattr(error, 'problem', None) or error}") from None
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
            raise UserError(f"unknown key {key}{nearest(str(key), recipe_keys())}")
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


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Return what differs between two configs in a way that changes the result, one phrase a setting.

    A new precision of `auto` goes with any.
    """
    return [
        f"{flag(name)} was {old.value(name)}, is {new.value(name)}"
        for name, known in settings().items()
        if old.value(name) != new.value(name)
        and (name, new.value(name)) != ("precision", "auto")
        and not (new.task != "generate" and old.data.fractions.get(name) == new.data.fractions.get(name, 0))
        and not (known.reading.free or known.reading.start)
        and not (known.reading.methods and new.method.name not in known.reading.methods)
    ]
