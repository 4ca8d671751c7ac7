"""YAML that is no settings is one short line, at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snella.cli.main import main
from snella.config.recipe import read_recipe
from snella.errors import UserError
from snella.yaml_text import read_yaml

BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(14)
)
BAD = {
    "date": ("method: 2024-01-01\n", "--method 2024-01-01 is unknown"),
    "date that is none": ("epochs: 2024-13-45\n", "epochs: '2024-13-45' is not a whole number"),
    "tag": ("epochs: !!python/object:os.system x\n", "no valid YAML in line 1"),
    "odd tag": ("epochs: !!binary x\n", "no valid YAML"),
    "set": ("epochs: !!set {1, 2}\n", "epochs: {1, 2} is not a whole number"),
    "digits": (f"epochs: {'9' * 5000}\n", "no valid YAML"),
    "many digits": (f"epochs: {'9' * 4000}\n", "epochs: a number of 13288 bits is not a whole number"),
    "digits of a rate": (f"lr: {'9' * 4000}\n", "lr: a number of 13288 bits is not a number"),
    "digits of a key": (f"{'9' * 900}: 1\n", "unknown key a number of 2990 bits"),
    "hexadecimal digits": (f"epochs: 0x{'f' * 5000}\n", "epochs: '0xfff"),
    "octal digits": ("epochs: 010\n", "epochs: '010' is not a whole number"),
    "base 60": ("epochs: 1:30\n", "epochs: '1:30' is not a whole number"),
    "underscores": ("lr: 1_0.0\n", "lr: '1_0.0' is not a number"),
    "too large": (f"epochs: {10**20}\n", "epochs: 100000000000000000000 is not a whole number"),
    "deep": ("epochs: " + "[" * 30 + "]" * 30 + "\n", "20 deep in line 1"),
    "very deep": ("epochs: " + "[" * 100_000 + "\n", "20 deep in line 1"),
    "NUL": ("epochs: 3\0\n", "no valid YAML"),
    "bomb": (BOMB, "aliases stand for more than 50,000 values"),
    "inside itself": ("epochs: &a [*a]\n", "line 1 stands for what it is inside of"),
    "twice": ("lr: 0.1\nepochs: 3\nlr: 0.2\n", "lr is there twice"),
    "long": ("#" * 300_000, "300,000 characters are too many"),
    "list": ("- a\n", "not a list of `key: value` lines"),
    "long value": (f"epochs: {'x' * 5000}\n", "is not a whole number"),
    "long key": (f"{'x' * 900}: 1\n", "unknown key 'xxx"),
    "long choice": (f"method: {'x' * 5000}\n", "is unknown"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_settings_is_one_short_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, message = BAD[name]
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    start = time.perf_counter()
    assert main(["train", "--recipe", str(path)]) == 2
    assert time.perf_counter() - start < 5
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert len(said) < 500 + len(str(path))


def test_what_aliases_and_dates_are_for_still_works(tmp_path: Path) -> None:
    assert read_yaml("a: &x [1, 2]\nb: *x\nc: {<<: {d: 1}, d: 2}\ndata: 2024-01-01\n") == {
        "a": [1, 2],
        "b": [1, 2],
        "c": {"d": 2},
        "data": "2024-01-01",
    }
    (tmp_path / "r.yaml").write_text("data: 2024-01-01\nlr: 1e-3\ntarget_modules: [qkv]\n")
    config = read_recipe(str(tmp_path / "r.yaml"))
    assert (config.data.source, config.loop.lr, config.method.target_modules) == ("2024-01-01", 1e-3, ("qkv",))


def test_no_text_at_all() -> None:
    assert read_yaml("") is None
    assert read_yaml("# nothing\n") is None


@given(st.text(alphabet="ab:-[]{}&*!<>|'\"#%@`,?= \n0123456789.", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read_yaml(text)
    except UserError:
        return
