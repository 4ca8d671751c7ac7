"""What an error says in one line."""

from __future__ import annotations

import pytest

from snella.errors import LONGEST, UserError, short_reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError(2, "No such file or directory", "/some/path"), "no such file or directory"),
        (OSError("the hub cannot be reached."), "the hub cannot be reached"),
        (RuntimeError("size mismatch:\n\tcopying a  parameter\n"), "size mismatch: copying a parameter"),
        (KeyError("blocks.0"), "'blocks.0'"),
        (ValueError(), "ValueError"),
        (UserError("..."), "UserError"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_a_reason_is_one_line_in_the_words_of_its_source(error: BaseException, reason: str) -> None:
    assert short_reason(error) == reason


def test_a_long_reason_is_cut() -> None:
    assert short_reason(ValueError("x" * LONGEST)) == "x" * LONGEST
    cut = short_reason(ValueError("x" * (LONGEST + 1)))
    assert len(cut) == LONGEST
    assert cut.endswith("x…")


def test_a_user_error_is_a_value_error() -> None:
    assert issubclass(UserError, ValueError)
