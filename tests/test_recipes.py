"""The recipes of the package are valid, complete and say what to expect."""

from __future__ import annotations

from importlib import resources

import pytest

from snella.config import read_recipe, recipe_names, validate


def test_there_are_recipes():
    assert "demo" in recipe_names()


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_valid_and_opens_with_its_command(name):
    validate(read_recipe(name))
    text = (resources.files("snella") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    opening = text.partition("\n\n")[0] if "\n\n" in text else text
    assert opening.startswith("# ")
    assert f"#   snella train --recipe {name}" in text
