"""What the commands print: tables, lines and progress bars for people, and JSON for scripts.

               standard output            standard error
(nothing)      tables and lines           errors, bars
--quiet        nothing                    errors
--json         one JSON object, last      errors, tables and lines, bars
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.segment import Segment
from rich.text import Text

from snella.errors import one_line, printable
from snella.json_files import without_nan


@dataclass
class _Switches:
    """How this process prints."""

    quiet: bool = False
    json: bool = False


_SWITCHES = _Switches()


@contextmanager
def printing(*, quiet: bool, json: bool) -> Iterator[None]:
    """Let consoles that are made in the body print nothing, or print to standard error, which leaves the other free."""
    before = (_SWITCHES.quiet, _SWITCHES.json)
    _SWITCHES.quiet, _SWITCHES.json = quiet, json
    try:
        yield
    finally:
        _SWITCHES.quiet, _SWITCHES.json = before


def shown(text: str) -> Text:
    """Return text for a table or a report: never markup, and no character that a terminal obeys."""
    return Text(printable(text.replace("\n", "\\n")))


class Terminal(Console):
    """A rich console on which names are shown and not obeyed, those too that come without `shown`.

    What has to be seen, as an image that is left out, goes to one with `stderr`, which --quiet leaves without its bars.
    """

    def __init__(self, *, stderr: bool = False, quiet: bool = False, **options: Any) -> None:
        bars: dict[str, Any] = {"force_terminal": False} if _SWITCHES.quiet else {}
        silent = quiet or (_SWITCHES.quiet and not stderr)
        super().__init__(stderr=stderr or _SWITCHES.json, quiet=silent, **bars | options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def print_text(text: str) -> None:
    """Print JSON or CSV: to a terminal as `Terminal` does, elsewhere to the byte, names of any encoding too."""
    if sys.stdout.isatty():
        text = printable(text)
    if hasattr(sys.stdout, "buffer"):
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
        sys.stdout.flush()
    else:
        sys.stdout.write(text)


def print_json(value: object) -> None:
    """Print a value as JSON; numbers that are not finite are null in it."""
    print_text(json.dumps(without_nan(value), indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def checking_images(console: Console) -> AbstractContextManager[Callable[[int, int], None]]:
    """Show a bar while images are checked; give the function to call with (images done, images in all)."""
    return working(console, "checking images")


@contextmanager
def working(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar while the body runs; give the function to call with (images done, images in all)."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("images", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_line(console: Console, text: str) -> None:
    """Print a line as it is, bounded in length: unwrapped where nobody looks at a terminal, and without markup."""
    console.print(one_line(text), markup=False, highlight=False, soft_wrap=True)
