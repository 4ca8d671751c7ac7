"""What the runs below a folder have come to, as a table for the terminal; nothing that loads torch is needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from snella.config.recipe import read_recipe
from snella.console import Terminal, print_line, shown
from snella.errors import UserError
from snella.json_files import Record, read_json
from snella.report.rows import read_metrics
from snella.report.tables import NOTHING, format_metric, is_share, new_table

_SUMMARY = Record({}, {"selection": Record({"metric": str, "higher_is_better": bool})})


@dataclass(frozen=True)
class RunState:
    """A run in a line."""

    folder: Path
    data: str
    method: str
    epoch: str
    best: str  # on val
    state: str  # done, running, stopped, or what is wrong


def show_runs(folder: Path) -> bool:
    """Print the state of the runs in a folder, and return whether there are any runs or comparisons."""
    places = sorted(place for place in folder.iterdir() if place.is_dir()) if folder.is_dir() else []
    found = [run_state(place) for place in places if (place / "config.yaml").is_file()]
    compared = [place for place in places if (place / "compare.json").is_file()]
    console = Terminal()
    if found:
        heads = ("run", "data", "method")
        table = new_table(None, left=heads, right=("epoch", "best on val", "state"))
        for run in found:
            cells = (str(run.folder), run.data, run.method, run.epoch, run.best, run.state)
            table.add_row(*map(shown, cells))
        console.print(table)
    for place in compared:
        print_line(console, f"{place}: a comparison; snella report {place} writes its page")
    if found or compared:
        print_line(console, "snella --help lists the commands")
    return bool(found or compared)


def run_state(folder: Path) -> RunState:
    """Return the state of a run folder, one that is damaged included."""
    try:
        config = read_recipe(str(folder / "config.yaml"))
        val = [row for row in read_metrics(folder) if row["kind"] == "val"]
        best = _best(folder, val)
    except UserError:
        return RunState(folder, NOTHING, NOTHING, NOTHING, NOTHING, f"damaged: snella check {folder}")
    finished = (folder / "summary.json").is_file()
    state = "done" if finished else "running" if _is_locked(folder) else "stopped"
    epoch = f"{val[-1]['epoch'] if val else 0}/{config.loop.epochs}"
    return RunState(folder, str(config.data.source), config.method.name, epoch, best, state)


def _best(folder: Path, val: list[dict[str, float]]) -> str:
    """Return the best value on val of the metric that chooses, which is the first of a row where no summary says it."""
    if not val:
        return NOTHING
    path, chosen = folder / "summary.json", None
    if path.is_file():
        chosen = read_json(path, _SUMMARY, remedy="delete it, and --resume writes it again").get("selection")
    metric = chosen["metric"] if chosen else next(name for name in val[0] if name not in ("kind", "step", "epoch"))
    higher = chosen["higher_is_better"] if chosen else is_share(metric)
    values = [row[metric] for row in val if metric in row and row[metric] == row[metric]]
    return format_metric(metric, (max if higher else min)(values)) if values else NOTHING


def _is_locked(folder: Path) -> bool:
    """Return whether a training is at work in a folder."""
    path = folder / ".lock"
    if not path.exists():
        return False
    try:
        with FileLock(path).acquire(timeout=0):
            return False
    except (Timeout, OSError, NotImplementedError):
        return True
