"""The pages of docs/: their commands parse, their Python runs, links lead somewhere, the reference has every flag."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import snella.compare.folds
import snella.compare.search
import snella.runs.train
from snella.cli import commands as flags
from snella.cli.flags import parse_command, switched
from snella.cli.main import COMMANDS, main
from snella.compare.plan import Plan
from snella.config.fields import flag
from snella.config.recipe import to_yaml
from snella.config.schema import TrainConfig, run_folder, settings
from snella.tuner import SnellaConfig
from support.snippets import commands, shell_lines, snippets

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def recorded(monkeypatch: pytest.MonkeyPatch) -> tuple[list[TrainConfig], list[Plan]]:
    """Return what would be trained and compared from now on; a training leaves its recipe, as a run does."""
    configs: list[TrainConfig] = []
    plans: list[Plan] = []

    def train(config: TrainConfig, **others: Any) -> dict[str, Any]:
        configs.append(config)
        run_folder(config).mkdir(parents=True, exist_ok=True)
        (run_folder(config) / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        return {}

    monkeypatch.setattr(snella.runs.train, "train", train)
    monkeypatch.setattr(snella.compare.folds, "cross_validate", train)
    monkeypatch.setattr(snella.compare.search, "compare", lambda plan, workers: plans.append(plan) or {})
    return configs, plans


@pytest.mark.parametrize("page", [DOCS / "index.md", *TUTORIALS], ids=name)
def test_commands_of_start_and_tutorials_parse(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings and comparisons up to where data would be read, the others as far as their flags."""
    monkeypatch.chdir(tmp_path)
    configs, plans = recorded(monkeypatch)
    assert {words[0] for words in shell_lines(read(page))} <= {"snella", "pip"}
    found = commands(read(page))
    for words in found:
        if words[0] in ("train", "compare"):
            assert main(words) == 0, words
        elif words != ["--help"]:
            parse_command(getattr(flags, words[0].capitalize()), switched(words)[0][1:])
    names = [words[0] for words in found]
    assert (len(configs), len(plans)) == (names.count("train"), names.count("compare"))


def test_the_quick_comparison_has_as_many_runs_as_its_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plans, text = recorded(monkeypatch)[1], read(DOCS / "tutorials" / "comparing.md")
    assert main(next(words for words in commands(text) if words[-1] == "runs/compare" and words[0] == "compare")) == 0
    grid, seeds = plans[0].grid, plans[0].seeds
    assert grid is not None
    assert f"These are {len(plans[0].methods) * (len(grid) + len(seeds) - 1)} runs" in text


def test_python_of_the_tutorials_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop and what follows it as they stand; others want a run, or are run with generation.md."""
    monkeypatch.chdir(tmp_path)
    loop, after, *others = snippets("python", read(DOCS / "tutorials" / "production.md"))
    names: dict[str, Any] = {}
    exec(compile(loop, "production.md", "exec"), names)
    exec(compile(after, "production.md", "exec"), names)
    assert (names["before"] - names["after"]).abs().max() < 1e-5
    assert not any("snella" in type(module).__module__ for module in names["plain"].modules())
    for code in others:
        compile(code, "production.md", "exec")
    (pipeline,) = snippets("python", read(DOCS / "tutorials" / "diffusion.md"))
    assert pipeline in read(DOCS / "generation.md")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page: Path) -> None:
    """As GitHub reads them; `make docs` looks at anchors, too, and at the pages that it makes itself."""
    text = re.sub(r"```.*?```", "", read(page), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)", text)
    assert [target for target in targets if ":" not in target and not (page.parent / target).exists()] == []


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"([\w/-]+\.md)$", read(ROOT / "mkdocs.yml"), flags=re.MULTILINE))
    assert listed == {page.relative_to(DOCS).as_posix() for page in PAGES} | {"reference/flags.md"}


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_reference", DOCS / "site" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # its dataclass looks there
    spec.loader.exec_module(module)
    return module


def test_reference_has_every_flag(reference: ModuleType) -> None:
    text = reference.flags_page()
    sections = dict(re.findall(r"^## snella (\w+)\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL))
    assert sections.keys() == COMMANDS.keys()
    assert re.findall(r'<tr id="train-([\w-]+)">', sections["train"]).count("lr") == 1
    shown = set(re.findall(r"<td><code>(--[\w-]+)</code>", sections["train"]))
    assert shown == {flag(key) for key in settings()} | {"--recipe"}
    for command, section in sections.items():
        if command != "train":
            own = fields(getattr(flags, command.capitalize()))
            assert re.findall(r'<tr id="([\w-]+)">', section) == [f"{command}-{flag(part.name)[2:]}" for part in own]
    row = re.search(r'<tr id="train-val-fraction">.*', sections["train"])
    assert row is not None
    assert "number, (0.0, 1.0)" in row[0] or "number, (0, 1)" in row[0]


def test_reference_has_every_field_of_the_config(reference: ModuleType) -> None:
    table = reference.config_table()
    own = [key for key in inspect.get_annotations(SnellaConfig) if key != "target_parameters"]  # which is refused
    assert re.findall(r"<tr><td><code>(\w+)</code>", table) == own
