"""An evaluation whose images are divided over the processes, in blocks: each image is seen once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from snella.distributed import world
from snella.errors import UserError

T = TypeVar("T")


class EvaluationStopped(Exception):  # noqa: N818 (not an error)
    """An evaluation was left in the middle."""


class _Divided:
    def __init__(self, start: int) -> None:
        self.start = start
        self.exchanged = False


_current: _Divided | None = None


@contextmanager
def divided_evaluation(start: int) -> Iterator[None]:
    """Let `all_parts` inside exchange what each process has found. Its block begins at `start` of the split.

    What ends it in one process before that, a UserError or EvaluationStopped, ends it in all of them.
    """
    global _current
    before, _current = _current, _Divided(start)
    try:
        yield
    except (UserError, EvaluationStopped) as error:
        if not _current.exchanged:
            world.gathered((None, error))
        raise
    finally:
        _current = before


def first_place() -> int:
    """Return the place in the split of the first image that this process evaluates."""
    return 0 if _current is None else _current.start


def all_parts(found: T) -> list[T]:
    """Return what each process has found, in the order of their images; what was given alone, where all are here.

    A learner's evaluation calls it once, when it has seen its images. Tensors are on the CPU.
    """
    if _current is None:
        return [found]
    _current.exchanged = True
    parts = world.gathered((found, None))
    for _, error in parts:
        if error is not None:
            raise error
    return [part for part, _ in parts]
