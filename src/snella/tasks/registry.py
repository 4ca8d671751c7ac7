"""The tasks by name. Their rows stand in `snella.config.tasks`; a task is imported when it is asked for."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

from snella.config.tasks import TASKS
from snella.tasks.interface import Task


def task_named(name: str) -> Task[Any, Any, Any]:
    """Return the task of a name, a key of `TASKS`."""
    row = TASKS[name]
    found = resolve_name(row) if isinstance(row, str) else row
    assert isinstance(found, Task)
    return found


def task_for(data: str) -> str:
    """Return the name of the task whose data this looks like; the first one takes any, and so is asked last."""
    return next(name for name in reversed(TASKS) if task_named(name).recognises(data))
