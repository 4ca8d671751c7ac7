"""Methods side by side: what is run, the runs, their results, the tables and the chart."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snella.compare.plan import Plan, PlannedTask
    from snella.compare.search import compare

__all__ = ["Plan", "PlannedTask", "compare"]


def __getattr__(name: str) -> Any:
    """Load torch only for who asks for what needs it: the command line checks a plan's flags without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{'search' if name == 'compare' else 'plan'}"), name)
