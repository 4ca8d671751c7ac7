"""The same maths as `snella.delta`, made fast: every function here equals its definition."""

from snella.ops.selection import budget_threshold

__all__ = ["budget_threshold"]
