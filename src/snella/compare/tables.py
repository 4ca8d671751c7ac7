"""Entrants side by side: as a table for the terminal, CSV, JSON and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from snella.compare.plan import Entrant
from snella.compare.results import (
    ALONE,
    COSTS,
    ENSEMBLE,
    KINDS,
    OWN_LINES,
    REFERENCE,
    SOUP,
    Combination,
    MethodResult,
    TaskResult,
    averages,
    cost_ratios,
    entrants_of,
    have_one_metric,
    mean_difference,
    paired_tasks,
)
from snella.compare.statistics import Difference, Spread
from snella.console import shown
from snella.files import write_json, write_text
from snella.report.tables import NOTHING, csv_text, decimal_bytes, duration, is_share

if TYPE_CHECKING:
    from snella.config.suites import Suite

NAME = "compare"  # of the files
LONGEST_NAME = 24  # characters of an entrant that stand in one line


def with_spread(metric: str, value: Spread | None) -> str:
    """Write a mean with its standard deviation."""
    if value is None:
        return NOTHING
    scale, digits, unit = (100, 1, " %") if is_share(metric) else (1, 4, "")
    spread = "" if value.std is None else f" ± {value.std * scale:.{digits}f}"
    return f"{value.mean * scale:.{digits}f}{spread}{unit}"


def difference_text(metric: str, value: Difference | None) -> str:
    """Write a difference (points of a share) with its interval."""
    if value is None:
        return NOTHING
    scale, digits = (100, 1) if is_share(metric) else (1, 4)
    mean, low, high = (
        None if x is None else f"{x * scale:+.{digits}f}".replace("-", "−") for x in (value.mean, value.low, value.high)
    )
    return f"{mean}" if low is None else f"{mean} [{low}, {high}]"


# ---- one task


def task_cells(result: TaskResult) -> tuple[list[str], list[list[str]]]:
    """Return the heads of the columns, and a row of cells for each entrant."""
    better = "" if result.higher_is_better else ", + is lower"
    unit = " (points)" if is_share(result.metric) else better
    heads = [_head(result), "lr", f"test {result.label}", f"against {REFERENCE}{unit}", "val"]
    heads += ["parameters", "adapter", "memory", "time", "step"]
    paired = any(result.difference(row) for row in result.methods)
    rows = []
    for row in result.methods:
        if not row.runs:
            rows.append([row.name, *[NOTHING] * (len(heads) - 1)])
            continue
        cost = averages(row)
        val = result.spread(row, "val")
        rows.append(
            [
                row.name,
                f"{row.lr:g}",
                with_spread(result.metric, result.spread(row, "test")),
                difference_text(result.metric, result.difference(row)),
                with_spread(result.metric, val and Spread(val.mean, None, val.count)),
                f"{cost['trainable_parameters']:,}",
                decimal_bytes(int(cost["adapter_bytes"])),
                decimal_bytes(int(cost["peak_memory_bytes"])),
                duration(cost["seconds"]),
                f"{cost['step_seconds'] * 1000:,.{0 if cost['step_seconds'] >= 0.1 else 1}f} ms",
            ]
        )
    if not paired:
        heads, rows = heads[:3] + heads[4:], [row[:3] + row[4:] for row in rows]
    return heads, rows


def task_report(result: TaskResult) -> Group:
    """Make tables that fit a terminal, of scores, of costs and of rates together, with protocol and notes."""
    heads, rows = task_cells(result)
    cut = heads.index("parameters")
    reached = _table(heads[:cut], [row[:cut] for row in rows], title=result.name or None)
    cost = _table([heads[0], *heads[cut:]], [[row[0], *row[cut:]] for row in rows])
    together = [_table(*table) for table in (combined_cells([result]),) if table[1]]
    return Group(reached, cost, *together, *_lines(result.protocol, result.notes))


def write_task(result: TaskResult, folder: Path) -> None:
    """Write compare.csv (values as they are), compare.json (each seed) and compare.md to a folder."""
    write_text(folder / f"{NAME}.csv", csv_text([csv_row(result, row) for row in result.methods]))
    write_json(folder / f"{NAME}.json", as_json(result))
    tables = [_markdown(*table) for table in (task_cells(result), combined_cells([result])) if table[1]]
    lines = [*tables, *(f"- {line}" for line in (*result.protocol, *result.notes, *combined_commands(result)))]
    write_text(folder / f"{NAME}.md", "\n".join(lines) + "\n")


def csv_row(result: TaskResult, row: MethodResult) -> dict[str, Any]:
    """Return column -> value: shares from 0 to 1, bytes, seconds; None where there is no value."""
    test, last, val = (result.spread(row, split) for split in ("test", "test_last", "val"))
    difference = result.difference(row)
    return {
        "task": result.name,
        **({} if row.entrant.backbone is None else {"backbone": row.entrant.backbone}),
        "method": row.entrant.method,
        "lr": row.lr,
        "metric": result.metric,
        "seeds": len(row.runs),
        "test_mean": test and test.mean,
        "test_std": test and test.std,
        "last_epoch_mean": last and last.mean,
        "last_epoch_std": last and last.std,
        "difference_mean": difference and difference.mean,
        "difference_low": difference and difference.low,
        "difference_high": difference and difference.high,
        "val_mean": val and val.mean,
        **(averages(row) if row.runs else {}),
    }


def as_json(result: TaskResult) -> dict[str, Any]:
    """Return all that is known of a task, each seed's run with it, as JSON holds it."""
    report = asdict(result)
    report["methods"] = [{**entry.pop("entrant"), **entry} for entry in report["methods"]]
    for row, entry in zip(result.methods, report["methods"], strict=True):
        entry["grid"] = [{"lr": lr, "val": value} for lr, value in entry["grid"].items()]
        entry["summary"] = csv_row(result, row)
    return report


# ---- the rates of a search together


def combined_cells(results: Sequence[TaskResult]) -> tuple[list[str], list[list[str]]]:
    """Return heads, and a row for each entrant whose rates were tried together: scores, or means over several tasks.

    An entrant needs it on all tasks, and those need one metric.
    """
    rows, seeds = [], set()
    for entrant in entrants_of(results) if have_one_metric(results) else ():
        own = [row for found in results for row in found.methods if row.entrant == entrant and row.combined]
        if len(own) == len(results):
            seeds |= {row.runs[0].seed for row in own}
            made = [[each for row in own for each in row.combined if each.kind == kind] for kind in KINDS]
            rows.append([entrant.name, *(_test_and_val(results[0].metric, same) for same in made)])
    mean = f"mean of {len(results)} tasks, " if len(results) > 1 else ""
    first = f"{mean}seed {', '.join(map(str, sorted(seeds)))}: test (val)"
    return [first, ALONE, f"{SOUP} of rates", f"{ENSEMBLE} of rates"], rows


def _test_and_val(metric: str, same: Sequence[Combination]) -> str:
    """Return the mean scores of one kind of combination over the tasks; a dash where it is not possible."""
    if not same:
        return NOTHING
    means = (fmean(getattr(each, split)[metric] for each in same) for split in ("test", "val"))
    test, val = (with_spread(metric, Spread(mean, None, 1)) for mean in means)
    return f"{test} ({val.removesuffix(' %')})"


def combined_commands(result: TaskResult, *, best: bool = False) -> list[str]:
    """Return how to use the soups and ensembles of several rates, a line each; only the best of both on val if asked.

    Those of one rate are that run.
    """
    lines = []
    for kind in KINDS[1:]:
        found = [(row, each) for row in result.methods for each in row.combined if each.kind == kind]
        found = [(row, each) for row, each in found if len(each.runs) > 1]
        if best and found:
            sign = 1 if result.higher_is_better else -1
            found = [max(found, key=lambda pair: sign * pair[1].val[result.metric])]
        lines += [f"{row.name}, {kind} of {len(each.runs)} rates: {each.command}" for row, each in found]
    return lines


# ---- a suite of tasks


def suite_cells(suite: Suite, results: Sequence[TaskResult]) -> tuple[list[str], list[list[str]]]:
    """Return heads, and a row for each task, the groups' means and both averages, with a column for each entrant.

    Rows and columns change places where there are more entrants than tasks. Tasks of several metrics have no means.
    """
    names = [entrant.name for entrant in entrants_of(results)]
    scores = {(r.name, row.name): with_spread(r.metric, r.spread(row, "test")) for r in results for row in r.methods}
    rows = [
        [task.name, task.group, *(scores.get((task.name, name), NOTHING) for name in names)] for task in suite.tasks
    ]
    if have_one_metric(results):
        rows += [*_mean_rows(suite, results), *_difference_rows(suite, results)]
    groups = any(task.group for task in suite.tasks)
    heads = ["task", "group", *names]
    if groups:
        return heads, rows
    table = [[row[0], *row[2:]] for row in [heads, *rows]]
    if len(names) > len(suite.tasks):
        table[0][0] = _head(results[0])
        table = [list(column) for column in zip(*table, strict=True)]
    return table[0], table[1:]


def _mean_rows(suite: Suite, results: Sequence[TaskResult]) -> list[list[str]]:
    """Make a row of means, each with a cell for each entrant, for each group, all groups and all tasks."""
    from snella.config.suites import group_mean, group_means, task_mean

    values: dict[Entrant, dict[str, float]] = {entrant: {} for entrant in entrants_of(results)}  # -> task -> mean
    for result in results:
        for row in result.methods:
            if (score := result.spread(row, "test")) is not None:
                values[row.entrant][result.name] = score.mean
    groups = dict.fromkeys(task.group for task in suite.tasks if task.group)
    by_group = {method: group_means(suite, scores) for method, scores in values.items()}
    means = {f"mean of {group}": [found.get(group) for found in by_group.values()] for group in groups}
    if groups:
        means[f"mean of the {len(groups)} groups"] = [group_mean(suite, scores) for scores in values.values()]
    means[f"mean of the {len(suite.tasks)} tasks"] = [task_mean(suite, scores) for scores in values.values()]
    metric = results[0].metric
    return [
        [name, "", *(with_spread(metric, None if mean is None else Spread(mean, None, 1)) for mean in row)]
        for name, row in means.items()
    ]


def _difference_rows(suite: Suite, results: Sequence[TaskResult]) -> list[list[str]]:
    """Make the row of differences from LoRA in the mean over the tasks; none where nothing can be paired."""
    metric, entrants = results[0].metric, entrants_of(results)
    differences = [mean_difference(results, entrant) for entrant in entrants]
    if not any(differences):
        return []
    counts = [len(paired_tasks(results, entrant)) for entrant in entrants]
    partly = [f" ({count} of {len(suite.tasks)} tasks)" if 0 < count < len(suite.tasks) else "" for count in counts]
    unit = " (points)" if is_share(metric) else "" if results[0].higher_is_better else ", + is lower"
    texts = (difference_text(metric, found) + part for found, part in zip(differences, partly, strict=True))
    return [[f"against {REFERENCE}{unit}", "", *texts]]


def cost_cells(results: Sequence[TaskResult]) -> tuple[list[str], list[list[str]]]:
    """Return heads, and a row for each entrant that shares tasks with LoRA: its costs, as multiples of LoRA's."""
    ratios = {entrant.name: cost_ratios(results, entrant) for entrant in entrants_of(results)}
    rows = [[name, *(f"{ratio[cost]:.2f}" for cost in COSTS)] for name, ratio in ratios.items() if ratio]
    return [f"costs, {REFERENCE} = 1", "parameters", "adapter", "memory", "step", "time"], rows


def published_cells(suite: Suite) -> tuple[list[str], list[list[str]]]:
    """Return heads, and a row for each published mark."""
    rows = []
    for mark in suite.published:
        means = (NOTHING if m is None else f"{m:g} %" for m in (mark.group_mean, mark.task_mean))
        rows.append([mark.method, *means, mark.source])
    return ["published", "mean of the groups", "mean of the tasks", "remark"], rows


def suite_tables(suite: Suite, results: Sequence[TaskResult]) -> list[tuple[list[str], list[list[str]]]]:
    """Return heads and rows of tasks x entrants, and where there are some of costs, rates together, published marks."""
    others = (cost_cells(results), combined_cells(results), published_cells(suite))
    return [suite_cells(suite, results), *(table for table in others if table[1])]


def suite_lines(suite: Suite, results: Sequence[TaskResult]) -> list[str]:
    """Return protocol and notes: the suite's, and each task's own."""
    lines = [*suite.notes]
    lines += [f"{task.name}: {task.note}" for task in suite.tasks if task.note]
    for result in results:
        rates = ", ".join(f"{row.name} {row.lr:g}" for row in result.methods if row.lr is not None)
        lines += [f"{result.name}: {line}" for line in (f"rates: {rates}", *result.protocol[:OWN_LINES], *result.notes)]
    shared = dict.fromkeys(line for result in results for line in result.protocol[OWN_LINES:])
    return [*lines, *shared]


def suite_report(suite: Suite, results: Sequence[TaskResult]) -> Group:
    """Make the tables of tasks x entrants, costs and published marks, with protocol and notes."""
    first, *others = suite_tables(suite, results)
    tables = [_table(*first, title=suite.title), *(_table(*other) for other in others)]
    return Group(*tables, *_lines(suite_lines(suite, results), ()))


def write_suite(suite: Suite, results: Sequence[TaskResult], folder: Path) -> None:
    """Write compare.csv, compare.json and compare.md of all tasks to a folder."""
    rows = [csv_row(result, row) for result in results for row in result.methods]
    write_text(folder / f"{NAME}.csv", csv_text(rows))
    published = [asdict(mark) for mark in suite.published]
    tasks = [as_json(result) for result in results]
    alike = have_one_metric(results)
    means = {
        entrant.name: {
            "against_lora": asdict(found) if alike and (found := mean_difference(results, entrant)) else None,
            "tasks": len(paired_tasks(results, entrant)),
            "costs_beside_lora": cost_ratios(results, entrant),
        }
        for entrant in entrants_of(results)
    }
    report = {"suite": suite.name, "published": published, "means": means, "tasks": tasks}
    write_json(folder / f"{NAME}.json", report)
    parts = [f"# {suite.title}", "", *(_markdown(*table) for table in suite_tables(suite, results))]
    lines = [f"- {line}" for line in suite_lines(suite, results)]
    write_text(folder / f"{NAME}.md", "\n".join([*parts, *lines]) + "\n")


# ---- forms


def _head(result: TaskResult) -> str:
    """Return the head of the column that names the entrants."""
    return "backbone, method" if any(row.entrant.backbone for row in result.methods) else "method"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> Table:
    table = Table(title=shown(title) if title else None, title_justify="left")
    broken = any(len(row[0]) > LONGEST_NAME for row in rows)  # rather than that numbers lose digits
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", no_wrap=not i and not broken, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _lines(protocol: Sequence[str], notes: Sequence[str]) -> list[Text]:
    return [shown(f"  {line}") for line in (*protocol, *notes)]


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown, with an empty line behind it."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    lines = ("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (heads, rule, *rows))
    return "\n".join(lines) + "\n"
