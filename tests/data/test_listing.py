from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snella.data.listing import label_entries, natural_order
from snella.errors import UserError


def test_numbers_are_ordered_by_value() -> None:
    assert sorted(["c10", "C2", "b", "c1"], key=natural_order) == ["b", "c1", "C2", "c10"]
    classes, entries = label_entries(["x", "y", "z"], ["10", "9", "10"])
    assert classes == ("9", "10")
    assert entries == [("x", 1), ("y", 0), ("z", 1)]


@given(st.lists(st.text(max_size=6), unique=True), st.randoms())
def test_the_order_does_not_depend_on_where_names_start(names: list[str], random: Random) -> None:
    shuffled = list(names)
    random.shuffle(shuffled)
    assert sorted(names, key=natural_order) == sorted(shuffled, key=natural_order)


def test_a_class_whose_name_could_not_be_saved_is_named_first() -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")  # as the file system gives it
    with pytest.raises(UserError, match=r"name of class .* is not UTF-8; rename it") as caught:
        label_entries(["x"], [name])
    assert str(caught.value).isascii()
