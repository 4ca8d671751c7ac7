"""What the commands print besides their results: progress bars and lines of text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.segment import Segment
from rich.text import Text

from snella.errors import one_line, printable


def shown(text: str) -> Text:
    """Return text for a table or a report: never markup, and no character that a terminal obeys."""
    return Text(printable(text.replace("\n", "\\n")))


class Terminal(Console):
    """A rich console on which names are shown and not obeyed, those too that come without `shown`."""

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
