from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snella.data.masks.class_names import ade_names, distinct_colors, names_file, voc_names
from snella.errors import UserError


def read(folder: Path, text: str):
    (folder / "classes.json").write_text(text)
    return names_file([str(folder / "gone"), str(folder)])


def test_the_forms_of_a_names_file(tmp_path: Path) -> None:
    names = read(tmp_path, '["sky", " road "]')
    assert names
    assert (names.names, names.values, names.colors, names.ignore) == (("sky", "road"), (0, 1), None, ())
    names = read(tmp_path, '{"10": "road", "2": "sky"}')
    assert names
    assert (names.names, names.values) == (("sky", "road"), (2, 10))
    names = read(tmp_path, '[{"name": "b", "value": 9}, {"name": "a", "value": 4}]')
    assert names
    assert (names.names, names.values, names.colors) == (("a", "b"), (4, 9), None)
    names = read(tmp_path, '[{"name": "b", "color": [0, 0, 9]}, {"name": "a", "color": [1, 2, 3]}]')
    assert names
    assert (names.names, names.values, names.colors) == (("b", "a"), (0, 1), ((0, 0, 9), (1, 2, 3)))
    names = read(
        tmp_path, '[{"name": "b", "value": 3, "color": [0, 0, 9]}, {"name": "a", "value": 1, "color": [1, 2, 3]}]'
    )
    assert names
    assert (names.names, names.values, names.colors) == (("a", "b"), (1, 3), ((1, 2, 3), (0, 0, 9)))
    assert names_file([str(tmp_path / "gone")]) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ('"sky"', "holds no list and no object"),
        ('["sky"]', "names 1 classes"),
        ('["sky", 3]', "entry 0: 'sky' is not an object"),
        ('["sky", ""]', "entry 1: name '' is not text"),
        ('["sky", "sky"]', "entry 1: name 'sky' occurs twice"),
        ('{"0": "sky", "x": "road"}', "'x' (road): value 'x' is out of range"),
        ('{"0": "sky", "70000": "road"}', "value 70000 is out of range"),
        ('{"0": "sky", "00": "road"}', "value 0 occurs twice"),
        ('{"0": "sky", "1": null}', "'1': name None is not text"),
        ('[{"name": "sky"}, {"name": "road"}]', "entry 0 (sky) has no color and no value"),
        (
            '[{"name": "a", "color": [0, 0]}, {"name": "b", "color": [0, 0, 1]}]',
            "entry 0 (a): color [0, 0] is not a colour",
        ),
        ('[{"name": "a", "color": [0, 0, 256]}, {"name": "b", "value": 1}]', "color [0, 0, 256] is not a colour"),
        ('[{"name": "a", "color": [0, 0, 2]}, {"name": "b", "value": 1}]', "entry 0 has no value, others have"),
        ('[{"name": "a", "color": [0, 0, 1]}, {"name": "b", "color": [0, 0, 1]}]', "color (0, 0, 1) occurs twice"),
        ('[{"name": "a", "value": true}, {"name": "b", "value": 1}]', "value True is out of range"),
        ('[{"name": "a", "id": 1}, {"name": "b", "id": 2}]', "entry 0 has 'id'"),
    ],
)
def test_faults_are_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    assert said in str(caught.value)
    assert str(tmp_path / "classes.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ade_takes_the_first_synonym_and_all_where_that_is_not_one(tmp_path: Path) -> None:
    path = tmp_path / "objectInfo150.txt"
    rows = ["1\t0\t0\t0\t1\twall", "2\t0\t0\t0\t0\tscreen, silver screen", "3\t0\t0\t0\t0\tscreen;CRT screen"]
    path.write_text("\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows]) + "\n")
    names = ade_names(str(path))
    assert names.names == ("wall", "screen, silver screen", "screen;CRT screen")
    for rows, said in (
        (["x\twall"], "line 2: 'x wall' is not a class"),
        (["1\twall", "1\tsky"], "one number twice"),
        ([], "no two classes"),
    ):
        path.write_text("\n".join(["Idx\tName", *rows]))
        with pytest.raises(UserError, match=said):
            ade_names(str(path))


@given(st.integers(2, 200))
def test_a_colour_for_each_class(count: int) -> None:
    colors = distinct_colors([str(k) for k in range(count)])
    assert len(set(colors)) == count
    assert colors[0] == (0, 0, 0)
    assert all(0 <= part <= 255 for color in colors for part in color)
    assert distinct_colors([str(k) for k in range(count + 1)])[:count] == colors


def test_the_first_colours_are_far_apart() -> None:
    colors = distinct_colors(["background", *(f"c{k}" for k in range(12))])
    distances = [
        sum(abs(a - b) for a, b in zip(one, two, strict=True)) for one in colors for two in colors if one != two
    ]
    assert min(distances) > 60


def test_black_is_for_the_background() -> None:
    assert distinct_colors(["polyp", "Background"])[1] == (0, 0, 0)
    assert (0, 0, 0) not in distinct_colors(["sky", "road"])


def test_vocs_colours() -> None:
    """As its development kit publishes them."""
    colors = voc_names().colors
    assert colors
    named = dict(zip(voc_names().names, colors, strict=True))
    assert named["person"] == (192, 128, 128)
    assert named["tvmonitor"] == (0, 64, 128)
    assert named["bottle"] == (128, 0, 128)
