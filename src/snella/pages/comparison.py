"""The page of a comparison: its tables, differences with their intervals, the best, and links to the runs' pages."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from snella.compare.plan import Entrant
from snella.compare.results import (
    REFERENCE,
    Combination,
    MethodResult,
    RunResult,
    TaskResult,
    averages,
    entrants_of,
    numbers,
)
from snella.compare.tables import NAME, combined_cells, combined_commands, task_cells, with_spread
from snella.errors import UserError, counted, listed
from snella.json_files import read_json
from snella.pages.charts import costs_chart, interval_chart
from snella.pages.kept import PAGE
from snella.pages.parts import Cell, Chart, Grid, Page, Part, Section, Words
from snella.report.tables import NOTHING, format_metric, is_share

REMEDY = "the same snella compare writes it again"


def comparison_page(folder: Path, place: Path) -> Page:
    """Return the page of a comparison, from its compare.json; it will be in the folder `place`.

    Raises:
        UserError: the file is damaged, or no run had finished when it was written.
    """
    results, name = read_results(folder)
    several = len(results) > 1
    sections = [_all_tasks(results)] if several else []
    for result in results:
        own = folder / result.name if several else folder
        sections += _task_sections(result, own, place, result.name if several else "")
    entrants = entrants_of(results)
    seeds = sorted({run.seed for result in results for row in result.methods for run in row.runs})
    facts = [
        ("metric", listed(list(dict.fromkeys(result.label for result in results)))),
        ("seeds", ", ".join(map(str, seeds))),
        ("runs in the tables", str(sum(len(row.runs) for result in results for row in result.methods))),
        ("device", listed(sorted({run.device for result in results for row in result.methods for run in row.runs}))),
    ]
    names = listed([entrant.name for entrant in entrants], 8)
    lead = f"{counted(len(entrants), 'entrant')} on {counted(len(results), 'task')}: {names}."
    return Page(f"Methods side by side: {name}", lead, facts, sections)


def read_results(folder: Path) -> tuple[list[TaskResult], str]:
    """Return the results of the tasks of a comparison, and what it is called. Raises UserError."""
    path = folder / f"{NAME}.json"
    written = read_json(path, dict, remedy=REMEDY)
    try:
        results = [_result(task) for task in written.get("tasks", [written])]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is damaged or of another version ({error!r}); {REMEDY}") from None
    if not any(row.runs for result in results for row in result.methods):
        raise UserError(f"{folder}: no run of the comparison has finished; {REMEDY} when some have")
    return results, written.get("suite") or written.get("name") or folder.resolve().name


def _result(task: Mapping[str, Any]) -> TaskResult:
    methods = []
    for entry in task["methods"]:
        runs = tuple(_run(run) for run in entry["runs"])
        combined = tuple(
            Combination(c["kind"], tuple(c["runs"]), numbers(c["val"]), numbers(c["test"])) for c in entry["combined"]
        )
        entrant = Entrant(entry["method"], entry.get("backbone"))
        grid = {tried["lr"]: tried["val"] for tried in entry["grid"]}
        methods.append(MethodResult(entrant, entry["lr"], grid, runs, combined))
    same = {name: task[name] for name in ("name", "metric", "label", "higher_is_better")}
    return TaskResult(**same, methods=tuple(methods), protocol=tuple(task["protocol"]), notes=tuple(task["notes"]))


def _run(run: Mapping[str, Any]) -> RunResult:
    metrics = {split: numbers(run[split]) for split in ("test", "test_last", "val")}
    step = math.nan if run["step_seconds"] is None else run["step_seconds"]
    return RunResult(**{**run, **metrics, "step_seconds": step})


def _all_tasks(results: Sequence[TaskResult]) -> Section:
    """Return the scores of all tasks, with the best of each."""
    entrants = entrants_of(results)
    rows: list[list[Cell | str]] = []
    for result in results:
        known = {row.entrant: result.spread(row, "test") for row in result.methods}
        cells = [
            Cell(with_spread(result.metric, known.get(e)), found.mean if (found := known.get(e)) else None)
            for e in entrants
        ]
        rows.append([result.name, _best(result), *cells])
    return Section("All tasks", [Grid(["task", "best", *(entrant.name for entrant in entrants)], rows, left=2)])


def _best(result: TaskResult) -> str:
    """Return the entrant of the best mean on test."""
    known = [(row.name, score.mean) for row in result.methods if (score := result.spread(row, "test")) is not None]
    sign = 1 if result.higher_is_better else -1
    return max(known, key=lambda pair: sign * pair[1])[0] if known else NOTHING


def _task_sections(result: TaskResult, folder: Path, place: Path, name: str) -> list[Section]:
    """Return the table, the charts, the differences, the runs and how it was done."""

    def titled(text: str) -> str:
        return f"{name}: {text}" if name else text.capitalize()

    rows = [row for row in result.methods if row.runs]
    if not rows:
        return [Section(titled("no run has finished"), [])]
    parts: list[Part] = [
        Words([f"Best on test: {_best(result)}. Rates were chosen on val."]),
        Grid(*task_cells(result)),
        Chart(_scores(result, rows), f"Test {result.label} by peak memory"),
        _runs(rows, folder, place),
    ]
    differences = _differences(result, rows)
    sections = [Section(titled("which method for this data"), parts)]
    if differences:
        sections.append(Section(titled(f"differences from {REFERENCE}"), differences))
    heads, cells = combined_cells([result])
    if cells:
        commands = Words(combined_commands(result), code=True, title="Commands")
        sections.append(Section(titled("the rates of a search together"), [Grid(heads, cells), commands]))
    sections.append(Section(titled("how it was done"), [Words([*result.protocol, *result.notes])]))
    return sections


def _runs(rows: Sequence[MethodResult], folder: Path, place: Path) -> Grid:
    """Return the scores of each run, with links to the pages of those that have one."""
    seeds = sorted({run.seed for row in rows for run in row.runs})
    cells: list[list[Cell | str]] = []
    for row in rows:
        by_seed = {run.seed: run for run in row.runs}
        cells.append([row.name, *(_link(by_seed.get(seed), row, folder, place) for seed in seeds)])
    return Grid(["each run", *(f"seed {seed}" for seed in seeds)], cells)


def _link(run: RunResult | None, row: MethodResult, folder: Path, place: Path) -> Cell:
    if run is None:
        return Cell(NOTHING)
    page = folder / row.entrant.folder / f"lr-{run.lr:g}" / f"seed-{run.seed}" / PAGE
    address = quote(os.path.relpath(page, place).replace(os.sep, "/")) if page.is_file() else ""
    return Cell(format_metric(run.metric, run.test[run.metric]), run.test[run.metric], link=address)


def _scores(result: TaskResult, rows: Sequence[MethodResult]) -> dict[str, Any]:
    values = []
    for row in rows:
        score = result.spread(row, "test")
        assert score is not None
        half, memory = score.std or 0.0, averages(row)["peak_memory_bytes"] / 1e6
        ends = {"low": score.mean - half, "high": score.mean + half}
        values.append({"name": row.name, "value": score.mean, **ends, "megabytes": memory})
    return costs_chart(values, f"test {result.label}", share=is_share(result.metric))


def _differences(result: TaskResult, rows: Sequence[MethodResult]) -> list[Part]:
    """Return the paired differences from LoRA, with the intervals where there are several seeds."""
    known = [(row.name, found) for row in rows if (found := result.difference(row)) is not None]
    drawn = [
        {"name": name, "value": found.mean, "low": found.low, "high": found.high}
        for name, found in known
        if found.low is not None
    ]
    if not drawn:
        return []
    text = (
        f"How much better than {REFERENCE} with the same seed, in the mean over the seeds, with its 95 % t-interval. "
        "An interval that holds 0 decides nothing."
    )
    spec = interval_chart(drawn, f"difference in {result.label}", share=is_share(result.metric), zero=True)
    return [Words([text]), Chart(spec, f"Differences from {REFERENCE} with their intervals")]
