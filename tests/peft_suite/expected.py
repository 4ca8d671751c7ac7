"""Tests of PEFT's that SNELLA does not pass, each with its reason."""

from __future__ import annotations

EXPECTED: dict[str, str] = {}  # regular expression of a test's name -> reason
