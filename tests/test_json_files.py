"""JSON of other types than expected is one line that names the file, the key, what is expected and what is there."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snella.errors import UserError
from snella.json_files import Count, From, Record, parse_json, read_json, read_rows, without_nan

REMEDY = "restore it"


@dataclass(frozen=True)
class Size:
    width: Annotated[int, From(1)]
    unit: Literal["px", "cm"] = "px"
    colour: tuple[int, int, int] | None = None


HOLDS = Record({"name": str, "sizes": list[Size]}, {"share": float, "counts": dict[str, Count], "on": bool | None})
GOOD: dict[str, Any] = {"name": "a", "sizes": [{"width": 3}], "share": 0.5, "counts": {"x": 0}, "on": None, "new": []}


def fault_of(value: Any) -> str:
    with pytest.raises(UserError) as refused:
        parse_json(value if isinstance(value, str) else json.dumps(value), HOLDS, "a.json", remedy=REMEDY)
    message = str(refused.value)
    assert message.startswith("a.json")
    assert message.endswith("; restore it")
    assert len(message) < 300
    return message


def test_what_is_as_expected_is_returned(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(GOOD))
    assert read_json(tmp_path / "a.json", HOLDS, remedy=REMEDY) == GOOD


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 3}, "a.json: name is 3, and should be text"),
        ({"name": None}, "name is null, and should be text"),
        ({"sizes": {}}, "sizes is an object of 0, and should be a list"),
        ({"sizes": [{"width": 3}, 4]}, "sizes[1] is 4, and should be an object"),
        ({"sizes": [{}]}, "sizes[0].width is missing, and should be a whole number from 1 up"),
        ({"sizes": [{"width": 0}]}, "sizes[0].width is 0, and should be a whole number from 1 up"),
        ({"sizes": [{"width": True}]}, "sizes[0].width is true, and should be a whole number"),
        ({"sizes": [{"width": 2.0}]}, "sizes[0].width is 2.0, and should be a whole number"),
        ({"sizes": [{"width": 10**40}]}, "sizes[0].width is huge, and should be a whole number"),
        ({"sizes": [{"width": 1, "unit": "inch"}]}, 'sizes[0].unit is "inch", and should be "px" or "cm"'),
        ({"sizes": [{"width": 1, "colour": [1, 2]}]}, "colour is a list of 2, and should be a list of 3 or null"),
        ({"sizes": [{"width": 1, "depth": 1}]}, "sizes[0].depth is there, and should not be: 1"),
        ({"share": "0.5"}, 'share is "0.5", and should be a finite number'),
        ({"share": math.inf}, "share is null, and should be a finite number"),
        ({"counts": {"x": -1}}, "counts.x is -1, and should be a whole number from 0 up"),
        ({"on": 1}, "on is 1, and should be true or false or null"),
    ],
)
def test_another_type_names_the_key(changes: dict[str, Any], message: str) -> None:
    assert message in fault_of({**GOOD, **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.json is damaged"),
        ("[", "a.json is damaged"),
        ("[]", "the whole is a list of 0, and should be an object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"share": ' + "9" * 5000 + "}", "a.json is damaged"),
        ('{"name": "a", "name": "b"}', "name is there twice"),
        ('{"sizes": []}', "name is missing, and should be text"),
        (f'{{"name": "{"x" * 500}", "sizes": 1}}', "sizes is 1"),
        ('{"name": "a", "sizes": [], "share": 1e999}', "share is Infinity, and should be a finite number"),
    ],
)
def test_what_is_no_such_json_is_one_line(text: str, message: str) -> None:
    assert message in fault_of(text)


def test_a_row_is_named_by_its_line(tmp_path: Path) -> None:
    path, holds = tmp_path / "rows.jsonl", Record({"step": Count})
    path.write_text('{"step": 1}\n{"step": NaN}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl, line 2: step is null, and should be a whole number"):
        read_rows(path, holds, remedy=REMEDY)
    path.write_text('{"step": 1}\n{"step"')
    with pytest.raises(UserError, match=r"rows\.jsonl, line 2 is damaged"):
        read_rows(path, holds, remedy=REMEDY)
    with pytest.raises(UserError, match=r"line 1: it is odd; restore it"):
        read_rows(path, holds, remedy=REMEDY, fault=lambda row: "it is odd")
    path.write_bytes(b'{"step": 1}\n\xff')
    with pytest.raises(UserError, match=r"rows\.jsonl cannot be read"):
        read_rows(path, holds, remedy=REMEDY)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*GOOD, "width"]), inner),
    )
)
def test_whatever_stands_there_is_read_or_refused(value: Any) -> None:
    text, wrong, found = json.dumps(value), None, None
    try:
        found = parse_json(text, HOLDS, "a.json", remedy=REMEDY)
    except UserError as error:
        wrong = str(error)
    if wrong is None:
        assert found == without_nan(value)
        assert found is not None
        assert isinstance(found["name"], str)
    else:
        assert len(wrong.splitlines()) == 1
