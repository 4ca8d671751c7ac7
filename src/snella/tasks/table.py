"""The tasks by name."""

from __future__ import annotations

from snella.tasks import classify, generate, segment
from snella.tasks.interface import TaskModule

# in this order asked whether they recognise data; the last one takes any
TASKS: dict[str, TaskModule] = {"generate": generate, "segment": segment, "classify": classify}
