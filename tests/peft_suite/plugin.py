"""A pytest plugin that runs PEFT's test matrices with SNELLA's rows, and with no others.

The matrices are lists that PEFT's modules hand to `pytest.mark.parametrize`; their rows are replaced when a module is
collected. Tests that name another method's classes are left out. What is in `expected` may fail.
"""

from __future__ import annotations

import re
from inspect import isfunction
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from peft_suite.expected import EXPECTED
from peft_suite.models import local_models
from peft_suite.rows import ROWS, SuiteConfig

_failed: set[str] = set()


def pytest_pycollect_makeitem(collector: pytest.Collector, name: str, obj: object) -> None:
    module: Any = getattr(collector, "module", None)
    if isinstance(module, ModuleType) and not hasattr(module, "_snella_rows"):
        module._snella_rows = True  # type: ignore[attr-defined]
        _replace_rows(module)


def _replace_rows(module: ModuleType) -> None:
    file = Path(str(module.__file__)).stem
    path_of = local_models(Path(str(module.__file__)).parent / "models")
    for name, rows in vars(module).items():
        if not isinstance(rows, list) or not name.isupper():
            continue
        if name.endswith("MODELS_TO_TEST") or name == "SMALL_GRID_MODELS":
            rows[:] = [path_of(model) for model in rows]
        elif (file, name) in ROWS:
            rows[:] = ROWS[file, name]

    for part in vars(module).values():
        for test in filter(isfunction, vars(part).values() if isinstance(part, type) else [part]):
            for mark in getattr(test, "pytestmark", []):
                if mark.name == "parametrize" and mark.args[0] == "config_cls" and isinstance(mark.args[1], list):
                    mark.args[1][:] = [SuiteConfig]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept, left_out = [], []
    for item in items:
        (kept if _is_ours(item) else left_out).append(item)
        for pattern, reason in EXPECTED.items():
            if re.search(pattern, item.nodeid):
                item.add_marker(pytest.mark.xfail(reason=reason))
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


def _is_ours(item: pytest.Item) -> bool:
    parameters = getattr(getattr(item, "callspec", None), "params", {}).values()
    return any(value is SuiteConfig for value in parameters)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.outcome == "skipped" and hasattr(report, "wasxfail"):
        _failed.update(pattern for pattern in EXPECTED if re.search(pattern, report.nodeid))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for pattern in EXPECTED.keys() - _failed:
        terminalreporter.write_line(f"expected to fail, and none did: {pattern}")
