"""Suites: benchmarks of several tasks, a YAML file each, with the published figures to stand beside.

    suite: VTAB-1k                  # the title
    published: [{method: SNELL-32, group_mean: 76.9, task_mean: 74.6}]
    notes: [...]                    # the protocol, printed with a table
    common: {epochs: 100}           # a recipe's keys, for all tasks
    settings: {dense: {gate: none, note: ...}}       # sets of keys that some tasks share
    tasks: {cifar: {group: natural, setting: dense, batch_size: 8}}

A task takes what `common`, its setting and its own line say, the later over the earlier. Its `data` is a folder in the
benchmark's, named as the task unless said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from snella.config.fields import nearest
from snella.config.recipe import config_values, is_suite, mapping, recipe_text
from snella.config.schema import TrainConfig
from snella.config.validation import typed
from snella.errors import UserError, brief, named

__all__ = [
    "Published",
    "Suite",
    "SuiteTask",
    "group_mean",
    "group_means",
    "is_suite",
    "is_suite_task",
    "read_suite",
    "read_suite_task",
    "task_mean",
]

_KEYS = ("suite", "published", "notes", "common", "settings", "tasks")
_MARK = {"method": str, "group_mean": float | None, "task_mean": float | None, "source": str}


@dataclass(frozen=True)
class SuiteTask:
    """One task of a suite."""

    name: str
    group: str  # "" where a suite has no groups
    config: TrainConfig  # `data` is relative, or joined below the folder given
    note: str  # where its settings come from


@dataclass(frozen=True)
class Published:
    """A published result of a whole suite, %."""

    method: str
    group_mean: float | None  # mean of the groups' means
    task_mean: float | None  # mean of the tasks
    source: str = ""  # a remark, such as "val-tuned study"


@dataclass(frozen=True)
class Suite:
    """A benchmark: its tasks in the order of the file, what is published on it, and the protocol, a note a line."""

    name: str
    title: str
    tasks: tuple[SuiteTask, ...]
    published: tuple[Published, ...]
    notes: tuple[str, ...]
    needs_folder: bool = False  # a task does not name its data: all are below a folder, which --data has to name


def read_suite(recipe: str, data: str | None = None) -> Suite:
    """Return the suite of that name, or in that YAML file; `data` is the folder that holds the benchmark.

    Raises:
        UserError: no such suite, no YAML, an unknown key or a value of the wrong type.
    """
    text = recipe_text(recipe)
    if not is_suite(recipe):
        raise UserError(f"recipe {recipe} is not a suite of tasks: it has no `suite:`")
    try:
        suite = _suite(Path(recipe).stem, mapping(text))
    except ValueError as error:  # also of Python itself, for numbers of thousands of digits
        raise UserError(f"suite {recipe}: {error}") from None
    if data is None:
        return suite
    tasks = tuple(replace(task, config=_below(data, task.config)) for task in suite.tasks)
    return replace(suite, tasks=tasks, needs_folder=False)


def is_suite_task(recipe: str) -> bool:
    """Return whether this is SUITE/TASK, of a suite that exists, and no file (as vtab1k/config.yaml of a run)."""
    suite, slash, _ = recipe.rpartition("/")
    return bool(slash) and not Path(recipe).is_file() and is_suite(suite)


def read_suite_task(recipe: str, data: str | None = None) -> TrainConfig:
    """Return the config of one task, SUITE/TASK; `data` is the folder that holds the benchmark, or the task's own.

    It is taken for the task's own where it holds no folder of any task of the suite.

    Raises:
        UserError: as `read_suite`, or no such task.
    """
    suite_name, _, name = recipe.rpartition("/")
    suite = read_suite(suite_name)
    tasks = {task.name: task for task in suite.tasks}
    if name not in tasks:
        raise UserError(f"suite {suite_name} has no task {name}{nearest(name, tasks)} (there are {', '.join(tasks)})")
    config = tasks[name].config
    if data is None:
        return config
    root = Path(data).expanduser()
    if root.is_dir() and not any((root / (task.config.data.source or "")).is_dir() for task in suite.tasks):
        return config.changed(data=data)
    return _below(data, config)


def group_means(suite: Suite, values: Mapping[str, float]) -> dict[str, float]:
    """Return group -> mean of its tasks' values, in the suite's order, for the groups whose tasks all have one."""
    groups: dict[str, list[str]] = {}
    for task in suite.tasks:
        if task.group:
            groups.setdefault(task.group, []).append(task.name)
    return {
        group: fmean(values[name] for name in names) for group, names in groups.items() if values.keys() >= set(names)
    }


def group_mean(suite: Suite, values: Mapping[str, float]) -> float | None:
    """Return the mean of the groups' means; None where a task has no value, or there are no groups."""
    means = group_means(suite, values)
    return fmean(means.values()) if means and task_mean(suite, values) is not None else None


def task_mean(suite: Suite, values: Mapping[str, float]) -> float | None:
    """Return the mean over the tasks; None where one has no value."""
    names = [task.name for task in suite.tasks]
    return fmean(values[name] for name in names) if values.keys() >= set(names) else None


def _below(data: str, config: TrainConfig) -> TrainConfig:
    return config.changed(data=str(Path(data) / (config.data.source or "")))


def _suite(name: str, values: dict[Any, Any]) -> Suite:
    for key in values:
        if key not in _KEYS:
            raise UserError(f"unknown key {named(key)}{nearest(named(key), _KEYS)} (there are {', '.join(_KEYS)})")
    common = _table("common", values.get("common"))
    settings = {
        str(key): _table(f"setting {key}", value) for key, value in _table("settings", values.get("settings")).items()
    }
    tasks = {
        str(key): _merged(str(key), _table(f"task {key}", own), common, settings)
        for key, own in _table("tasks", values.get("tasks")).items()
    }
    if not tasks:
        raise UserError("tasks: there is none; name at least one")
    return Suite(
        name=name,
        title=typed("suite", values["suite"], str),
        tasks=tuple(_task(*item) for item in tasks.items()),
        published=tuple(map(_published, _list("published", values.get("published")))),
        notes=typed("notes", _list("notes", values.get("notes")), tuple[str, ...], parse=True),
        needs_folder=not all("data" in task for task in tasks.values()),
    )


def _merged(
    name: str, own: dict[Any, Any], common: dict[Any, Any], settings: dict[str, dict[Any, Any]]
) -> dict[Any, Any]:
    """Return what a task, its setting and the suite say, the nearest first."""
    setting = own.get("setting")
    if setting is not None and setting not in settings:
        raise UserError(
            f"task {name}: no setting {setting}{nearest(str(setting), settings)} (settings: {', '.join(settings)})"
        )
    merged = {**common, **settings.get(str(setting), {}), **own}
    merged.pop("setting", None)
    return merged


def _task(name: str, values: dict[Any, Any]) -> SuiteTask:
    values = {"data": name, **values}
    try:
        texts = {key: typed(key, values.pop(key, ""), str) for key in ("group", "note")}
        return SuiteTask(name=name, config=TrainConfig.of(**config_values(values)), **texts)
    except UserError as error:
        raise UserError(f"task {name}: {error}") from None


def _published(value: Any) -> Published:
    mark = _table("published", value)
    for key in mark:
        if key not in _MARK:
            raise UserError(
                f"published: unknown key {named(key)}{nearest(named(key), _MARK)} (there are {', '.join(_MARK)})"
            )
    if "method" not in mark:
        raise UserError("published: a mark has no method; name it")
    found = {key: typed(key, mark.get(key), hint, parse=True) for key, hint in _MARK.items() if key in mark}
    return Published(**{"group_mean": None, "task_mean": None, **found})


def _table(name: str, value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict | None):
        raise UserError(f"{name}: {brief(value)} is not a table of `key: value`")
    return value or {}


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list | None):
        raise UserError(f"{name}: {brief(value)} is not a list")
    return value or []
