"""The reference of the commands' flags and of SnellaConfig's fields, from their definitions.

Imports nothing heavy: the package stands here without its `__init__` having run, as for `snella --help`.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from html import escape
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

ROOT = Path(__file__).parents[2]
FLAGS, PYTHON = "reference/flags.md", "reference/python.md"
FIELDS = "<!-- fields of SnellaConfig -->"


def on_files(files: Any, config: Any) -> Any:
    """Add the page of the flags."""
    from mkdocs.structure.files import File  # tests read the pages without it

    files.append(File.generated(config, FLAGS, content=flags_page()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put the fields of SnellaConfig where its page has room for them."""
    return markdown.replace(FIELDS, config_table()) if page.file.src_uri == PYTHON else markdown


@dataclass(frozen=True)
class Row:
    """A flag, or an argument without one."""

    anchor: str
    name: str
    values: str
    default: str
    text: str


def flags_page() -> str:
    """Return the page, Markdown with tables in HTML, since texts hold what Markdown would read."""
    if "snella" not in sys.modules:
        sys.path.insert(0, str(ROOT / "src"))
        spec = find_spec("snella")
        assert spec is not None
        sys.modules["snella"] = module_from_spec(spec)
    from snella.cli import commands

    parts = ["# Commands and flags", INTRODUCTION, "## snella train", _about(commands.Train), *_train_tables()]
    for command in (commands.Compare, commands.Evaluate, commands.Predict, commands.Merge, commands.Soup):
        parts += _command(command)
    for command in (commands.Report, commands.App, commands.Push, commands.Check, commands.Data):
        parts += _command(command)
    return "\n\n".join(parts) + "\n"


INTRODUCTION = """\
Made from the definitions that the command line itself is made of; `snella COMMAND --help` prints the same. With any
command `--quiet` prints nothing but errors, `--json` what it came to, as one JSON object, and `--debug` tracebacks.
What `snella train` takes is also a key of a recipe (`batch_size` for `--batch-size`), but for what says how a run is
started. On and off are `--NAME` and `--no-NAME` for `train` and `compare`; other commands have `--NAME` alone. A dash
is no value: the text says what then happens, or that one is needed."""

SECTIONS = {
    "data": "Data",
    "model": "Backbone",
    "method": "Method",
    "loop": "Training",
    "classify": "To classify",
    "multilabel": "To give several labels",
    "regress": "To give numbers",
    "segment": "To segment",
    "generate": "To generate",
    None: "The run",
}


def _train_tables() -> Iterator[str]:
    """Yield a title and a table for each section of the settings."""
    from snella.cli.commands import Train
    from snella.config.fields import descriptions, flag
    from snella.config.schema import TrainConfig, settings

    sections = get_type_hints(TrainConfig)
    for section, title in SECTIONS.items():
        texts = descriptions(sections[section] if section else TrainConfig)
        rows = [
            Row(
                f"train-{flag(name)[2:]}",
                flag(name),
                _values(known.hint, known.reading.interval),
                _default(known.default),
                texts[known.attribute],
            )
            for name, known in settings().items()
            if known.section == section
        ]
        if section is None:
            rows.insert(0, Row("train-recipe", "--recipe", "text", "–", descriptions(Train)["recipe"]))
        yield f"### {title}"
        yield _table(rows)


def _command(command: type) -> list[str]:
    """Return the title, what it does and the table of a command."""
    from snella.config.fields import descriptions, flag

    name, hints, texts = command.__name__.lower(), get_type_hints(command, include_extras=True), descriptions(command)
    assert is_dataclass(command)
    rows = []
    for part in fields(command):
        places = _positional(hints[part.name])
        hint = get_type_hints(command)[part.name]
        default = "–" if places or part.default in (MISSING, "") else _default(part.default)
        shown = places or flag(part.name)
        rows.append(Row(f"{name}-{flag(part.name)[2:]}", shown, _values(hint, None), default, texts[part.name]))
    return [f"## snella {name}", _about(command), _table(rows)]


def _about(command: type) -> str:
    text = inspect.getdoc(command) or ""
    return "\n\n".join(f"<p>{escape(' '.join(part.split()))}</p>" for part in text.split("\n\n"))


def _positional(hint: Any) -> str:
    """Return the name in help of an argument without a flag; '' for a flag."""
    if get_origin(hint) is not Annotated:
        return ""
    return next((note.metavar for note in get_args(hint)[1:] if getattr(note, "metavar", None)), "")


KINDS = {str: "text", int: "whole number", float: "number", bool: "on or off"}


def _values(hint: Any, interval: Any) -> str:
    """Return what a value may be, as HTML."""
    words = []
    for part in [hint] if get_origin(hint) is Literal else get_args(hint) or [hint]:
        if get_origin(part) is Literal:
            words += [f"<code>{escape(str(word))}</code>" for word in get_args(part)]
        elif get_origin(part) is tuple:
            words.append(f"several of {_values(get_args(part)[0], None)}")
        elif part in KINDS:
            words.append(KINDS[part] + (f", {escape(str(interval))}" if interval and part is not str else ""))
    return ", ".join(dict.fromkeys(words)).replace("the numbers ", "")


def _default(value: Any) -> str:
    if value is None:
        return "–"
    return ("on" if value else "off") if isinstance(value, bool) else f"<code>{escape(str(value))}</code>"


def _text(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(" ".join(text.split())))


def _table(rows: list[Row]) -> str:
    lines = [
        f'<tr id="{row.anchor}"><td><code>{escape(row.name)}</code></td><td>{row.values}</td><td>{row.default}</td>'
        f"<td>{_text(row.text)}</td></tr>"
        for row in rows
    ]
    head = "<tr><th>flag</th><th>values</th><th>default</th><th></th></tr>"
    return "\n".join(["<table>", f"<thead>{head}</thead>", "<tbody>", *lines, "</tbody>", "</table>"])


def config_table() -> str:
    """Return a table of the fields of SnellaConfig with a `help`, read without importing it."""
    tree = ast.parse((ROOT / "src" / "snella" / "tuner" / "config.py").read_text(encoding="utf-8"))
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "SnellaConfig")
    lines = ["<table>", "<thead><tr><th>field</th><th>type</th><th>default</th><th></th></tr></thead>", "<tbody>"]
    for part in found.body:
        if not (isinstance(part, ast.AnnAssign) and isinstance(part.value, ast.Call)):
            continue
        given = {word.arg: word.value for word in part.value.keywords}
        if "metadata" not in given:
            continue
        default = given.get("default", given.get("default_factory"))
        cells = (ast.unparse(part.target), ast.unparse(part.annotation), ast.unparse(default) if default else "")
        columns = "".join(f"<td><code>{escape(cell)}</code></td>" for cell in cells)
        lines.append(f"<tr>{columns}<td>{_text(ast.literal_eval(given['metadata'])['help'])}</td></tr>")
    return "\n".join([*lines, "</tbody>", "</table>"])
