"""Recipes: a training run's config as YAML, read and written."""

from __future__ import annotations

from dataclasses import asdict
from importlib import resources
from pathlib import Path

import yaml

from snella.config import FREE_TO_CHANGE, HINTS, KEYS, START, TrainConfig, flag, nearest
from snella.errors import UserError
from snella.validation import typed


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    folder = resources.files("snella") / "recipes"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def read_recipe(recipe: str) -> TrainConfig:
    """The config that a recipe gives: the name of one of the package's, or the path of a YAML file.

    Raises:
        UserError: no such recipe, no YAML, an unknown key or a value of the wrong type.
    """
    if recipe in recipe_names():
        text = (resources.files("snella") / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8")
    elif Path(recipe).is_file():
        try:
            text = Path(recipe).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise UserError(f"recipe {recipe} is not a text file") from None
    elif "/" in recipe or recipe.endswith((".yaml", ".yml")):
        raise UserError(f"recipe {recipe} does not exist")
    else:
        names = recipe_names()
        raise UserError(f"no recipe {recipe}{nearest(recipe, names)} (there are {', '.join(names)}, or a path)")
    try:
        return _from_yaml(text)
    except UserError as error:
        raise UserError(f"recipe {recipe}: {error}") from None


def _from_yaml(text: str) -> TrainConfig:
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
    found = {}
    for key, value in values.items():
        if key in START:
            raise UserError(f"{key} belongs on the command line ({flag(key)}), not in a recipe")
        if key not in KEYS:
            raise UserError(f"unknown key {key}{nearest(str(key), KEYS)}")
        found[key] = typed(key, value, HINTS[key], parse=True)
    return TrainConfig(**found)


def to_yaml(config: TrainConfig) -> str:
    """The config as a recipe: `read_recipe` of it gives the same config, but for how it is started."""
    values = {name: value for name, value in asdict(config).items() if name in KEYS}
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """What differs between two configs in a way that changes the result, one phrase per field."""
    return [
        f"{flag(name)} was {getattr(old, name)}, is {getattr(new, name)}"
        for name in KEYS
        if name not in FREE_TO_CHANGE and getattr(old, name) != getattr(new, name)
    ]
