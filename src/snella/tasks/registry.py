"""The tasks by name."""

from __future__ import annotations

from snella.tasks.classification import task as classify
from snella.tasks.generation import task as generate
from snella.tasks.interface import TaskModule
from snella.tasks.segmentation import task as segment

# in this order asked whether they recognise data; the last one takes any
TASKS: dict[str, TaskModule] = {"generate": generate, "segment": segment, "classify": classify}
