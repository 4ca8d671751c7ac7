"""Figures of runs that are drawn once a process: most tests of runs look at everything but them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

FIGURES = (  # where they are called
    "snella.report.figures:allocation_figure",
    "snella.report.figures:training_curves_figure",
    "snella.tasks.classification.learner:confusion_figure",
    "snella.tasks.segmentation.learner:confusion_figure",
    "snella.tasks.segmentation.learner:overlays_figure",
    "snella.tasks.generation.learner:before_after_figure",
    "snella.tasks.generation.learner:noise_levels_figure",
)


@contextmanager
def drawn_once() -> Iterator[None]:
    """Let each kind of figure be a copy of the first one of its kind."""
    with pytest.MonkeyPatch.context() as patch:
        for name in FIGURES:
            module, _, function = name.partition(":")
            draw = resolve_name(name)
            patch.setattr(f"{module}.{function}", partial(_draw_once, draw, []))
        yield


def _draw_once(draw: Callable[..., Path], first: list[bytes], *args: Any, **kwargs: Any) -> Path:
    (path,) = (value for value in (*args, *kwargs.values()) if isinstance(value, Path))
    if first:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(first[0])
    else:
        draw(*args, **kwargs)
        first.append(path.read_bytes())
    return path
