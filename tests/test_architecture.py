"""The order of the house: who may import whom, nothing upwards, no circle, nothing too long, nothing named twice."""

from __future__ import annotations

import ast
from collections import defaultdict

import pytest

from support.architecture import SOURCE, arrows, circles, files, floors, folders, functions, imported_by, modules

GROUND = {"errors", "console", "delta", "machine", "version"}
LOW = GROUND | {"json_files", "files", "config", "allocation", "distributed", "ops", "report"}
DATA = LOW | {"data", "data.masks", "data.transforms"}
MODELS = DATA | {"data.bundled", "models"}
TASKS = MODELS | {"tasks", "training", "data.folders", "data.readers"}
RUNS = TASKS | {"methods", "tasks", "runs"}
# room -> what it may import; a room that is not here may import nothing
ALLOWED: dict[str, set[str]] = {
    "": {"delta", "integrations", "tuner", "version"},  # the package's face
    "__main__": {"cli"},
    "allocation": {"delta"},
    "travel": {"delta"},
    "console": {"errors", "json_files"},
    "json_files": {"errors"},
    "yaml_text": {"errors"},
    "files": {"errors", "json_files"},
    "config": {"errors", "yaml_text"},
    "report": {"config", "console", "errors", "files", "json_files"},
    "distributed": {"errors", "machine"},
    "ops": {"delta", "distributed", "errors", "files"},
    "tuner": {"allocation", "delta", "distributed", "errors", "files", "ops", "travel"},
    "integrations": {"errors", "files", "ops", "tuner"},
    "training": {"config", "distributed", "errors", "files", "json_files", "report"},
    "data": {"distributed", "errors", "files", "machine"},
    "data.masks": {"data", "errors", "json_files"},
    "data.transforms": {"data", "data.masks", "errors"},
    "data.bundled": {"data", "data.folders", "data.masks", "errors", "machine"},
    "data.folders": {"data", "errors", "json_files", "yaml_text"},
    "data.layouts": {"data", "data.bundled", "data.folders", "data.masks", "errors", "json_files", "yaml_text"},
    "data.readers": {"console", "data", "data.bundled", "data.folders", "data.layouts", "data.masks", "errors"},
    "models": DATA - {"report"} | {"data.bundled"},
    "segmenter": MODELS - {"report"},
    "diffusion": MODELS - {"report"},
    "explain": {"data", "data.transforms", "errors", "models"},
    "methods": {"config", "errors", "files", "json_files", "training", "tuner"},
    "tasks": {
        "config",
        "console",
        "data",
        "data.folders",
        "data.readers",
        "data.transforms",
        "distributed",
        "errors",
        "models",
        "training",
    },
    "tasks.classification": TASKS,
    "tasks.multilabel": TASKS | {"data.layouts"},
    "tasks.regression": TASKS | {"data.layouts"},
    "tasks.segmentation": TASKS | {"segmenter"},
    "tasks.generation": TASKS | {"diffusion"},
    "runs": RUNS - {"runs"} | {"explain", "integrations", "tuner"},
    "compare": {
        "config",
        "console",
        "data",
        "errors",
        "files",
        "json_files",
        "machine",
        "methods",
        "models",
        "report",
        "runs",
        "tasks",
        "training",
    },
    "pages": {"compare", "config", "console", "data", "errors", "files", "json_files", "report", "runs", "tasks"}
    | {"explain", "tasks.classification", "tasks.multilabel", "tasks.segmentation"},
    "app": {"console", "data", "errors", "explain", "pages", "report", "runs", "tasks"},
    "sharing": {"config", "console", "errors", "files", "methods", "models", "pages", "report", "runs", "tasks"},
    "cli": {"compare", "config", "console", "distributed", "errors", "machine", "runs", "tasks", "training", "version"}
    | {"app", "pages", "report", "sharing"},
}


def test_imports_are_those_of_the_table():
    wrong = [
        f"{file} imports {other}"
        for room, others in arrows().items()
        for other, importers in others.items()
        if other not in ALLOWED.get(room, set())
        for file in sorted(importers)
    ]
    assert wrong == []


def test_the_table_itself_runs_downwards():
    graph = {room: ALLOWED.get(room, set()) for room in {*ALLOWED, *set().union(*ALLOWED.values())}}
    assert circles(graph) == []
    assert floors(graph)["delta"] == floors(graph)["errors"] == 1


def test_no_two_files_import_each_other():
    known = modules()
    graph = {
        path.relative_to(SOURCE).as_posix(): {
            other.relative_to(SOURCE).as_posix() for other in imported_by(path, known) if other != path
        }
        for path in known.values()
    }
    assert circles(graph) == []


def test_the_house_stays_small_enough_to_be_seen():
    packages = [path for path in (SOURCE, *SOURCE.rglob("*")) if (path / "__init__.py").exists()]
    # 25; a folder each for multi-label classification and regression, as a task is one; the pages for people; what
    # several processes exchange; what goes to the hub and comes from there; heat maps, which know no files; the page to
    # try runs on, which Gradio serves
    assert len(packages) <= 32
    assert folders()[0].lines <= 12, folders()[:3]
    assert files()[0].lines <= 350, files()[:5]
    assert functions()[0].lines <= 50, functions()[:5]


def test_no_class_is_named_twice():
    places = defaultdict(list)
    for path in modules().values():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(path.relative_to(SOURCE).as_posix())
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_value_is_written_twice_under_one_name():
    """Names of files, metrics and the like have one home."""
    places = defaultdict(list)
    for path in modules().values():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)):
                continue
            name, value = node.targets[0].id, ast.unparse(node.value)
            if name.isupper() and not value.isdecimal() and "TypeVar" not in value:
                places[name, value].append(path.relative_to(SOURCE).as_posix())
    assert {key: found for key, found in places.items() if len(found) > 1} == {}


def test_the_definition_and_the_allocator_import_torch_and_nothing_of_ours_but_each_other():
    assert arrows()["delta"] == {}
    assert arrows()["allocation"].keys() == {"delta"}


@pytest.mark.parametrize("module", ["snella.config.schema", "snella.cli.commands", "snella.compare.plan"])
def test_what_help_needs_imports_nothing_heavy(module):
    """By itself and by what it imports at its top; `tests/test_snella_cli.py` runs it without torch."""
    heavy, known = {"torch", "timm", "peft", "transformers", "diffusers", "accelerate"}, modules()
    waiting, seen = [known[module]], set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            assert not {name.split(".")[0] for name in names} & heavy, path
            waiting += [known[name] for name in names if name in known and name != "snella"]
