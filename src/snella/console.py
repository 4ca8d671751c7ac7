"""What the commands print besides their results: progress bars and lines of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


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
    """Print text as it is: unwrapped where nobody looks at a terminal, and without markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
