"""`snella report`: the page of a run folder, or of a comparison's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from snella.compare.tables import NAME
from snella.console import Terminal, print_line
from snella.data.dataset import ImageData
from snella.errors import UserError, short_reason
from snella.explain.maps import check_captum
from snella.files import MAKE_ROOM, refuse_existing, refuse_link, writing
from snella.pages.comparison import comparison_page
from snella.pages.kept import PAGE, read_kept
from snella.pages.parts import Page, render
from snella.pages.run_page import TASK_PAGES, run_page
from snella.runs.check import read_own_data
from snella.runs.folder import read_about, read_config, state_of
from snella.runs.load import load_run


def report(folder: Path, *, out: str | None = None, explain: bool = False, console: Console | None = None) -> Path:
    """Write the page of a finished run or comparison, and return its path.

    Args:
        folder: of the run or the comparison.
        out: a new file; None: report.html in the folder, which is replaced.
        explain: show heat maps of the most confident errors, for which the model is loaded.

    Raises:
        UserError: the folder is neither, it is not finished, there are no heat maps of it, or the page cannot be
            written.
    """
    console = console or Terminal()
    if out is not None:
        refuse_existing(Path(out))
        if Path(out).suffix.lower() not in (".html", ".htm"):
            raise UserError(f"--out {out}: a report is HTML; name a file that ends in .html")
    if (folder / f"{NAME}.json").is_file():
        if explain:
            raise UserError(f"--explain: {folder} is a comparison; ask for the page of one of its runs")
        place = folder if out is None else Path(out).absolute().parent
        return _write(folder, out, comparison_page(folder, place), console)
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; name the folder of a run or of a comparison")
    if state_of(folder) not in ("started", "finished"):
        raise UserError(f"{folder} is neither a run nor a comparison: it has no config.yaml and no {NAME}.json")
    about = read_about(folder)
    if explain:
        _check_explained(folder, about["task"])
    data, notes = None, list[str]()
    if about["task"] in TASK_PAGES:
        try:
            data = read_own_data(folder, read_config(folder), about, Console(quiet=True))
        except UserError as error:
            notes.append(f"Pictures of the images are left out: {error}")
            print_line(console, notes[0])
    kept = read_kept(folder, data)
    if explain:
        kept = replace(kept, explain=load_run(folder).explainer())
    return _write(folder, out, run_page(kept, notes), console)


def _check_explained(folder: Path, task: str) -> None:
    """Refuse heat maps of the errors of what has none. Raises UserError."""
    if task != "classify":
        raise UserError(
            f"--explain: heat maps are of classifications, and the task of {folder} is {task}; leave it out"
        )
    check_captum()


def report_trained(folder: Path, data: ImageData[Any], console: Console | None = None) -> None:
    """Write the page of a run that was trained just now; where that cannot be, say so: the run is finished anyhow.

    Args:
        data: what it was trained on.
    """
    console = console or Terminal()
    with _faults_told(folder, console):
        _write(folder, None, run_page(read_kept(folder, data), []), console)


def report_compared(folder: Path, console: Console | None = None) -> None:
    """Write the page of a comparison that was made just now, as `report_trained` does."""
    console = console or Terminal()
    with _faults_told(folder, console):
        if (folder / f"{NAME}.json").is_file():  # some run has finished
            _write(folder, None, comparison_page(folder, folder), console)


@contextmanager
def _faults_told(folder: Path, console: Console) -> Iterator[None]:
    """Say in a line why there is no page: what was trained is there all the same, whatever is wrong with the page."""
    try:
        yield
    except UserError as error:
        print_line(console, f"no report: {error}")
    except Exception as error:
        fault = f"{type(error).__name__}: {short_reason(error)}"
        print_line(console, f"no report, by a fault in snella ({fault}); snella report {folder} --debug shows where")


def _write(folder: Path, out: str | None, page: Page, console: Console) -> Path:
    path = folder / PAGE if out is None else Path(out)
    refuse_link(path)
    text = render(page)
    with writing(path, remedy=MAKE_ROOM if out else "make room, or write elsewhere by --out FILE.html") as partial:
        partial.write_text(text, encoding="utf-8")
    print_line(console, f"report in {path}")
    return path
