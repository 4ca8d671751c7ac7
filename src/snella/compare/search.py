"""Methods side by side: the same data, splits, seeds and loop for all.

    plan ─ checks ─ runs of the grid, first seed ─ best rate of each method on val ─ its test, runs of the other seeds
                                                       │                              └─ table, chart, OUT/compare.*
                                                       └─ all rates of the first seed together: soup, ensemble

Each run is `snella train` in a process of its own, in OUT/[TASK/][BACKBONE/]METHOD/lr-RATE/seed-SEED; its settings
(.yaml) and what it printed (.log) stand beside that folder.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from snella.compare.chart import comparison_figure
from snella.compare.combinations import with_combinations
from snella.compare.jobs import Job, run_jobs
from snella.compare.plan import Entrant, Plan, PlannedTask, backbone_folder
from snella.compare.protocol import at_an_end, protocol
from snella.compare.results import (
    MethodResult,
    RunResult,
    TaskResult,
    have_one_metric,
    mean_result,
    read_result,
)
from snella.compare.tables import NAME, combined_commands, suite_report, task_report, write_suite, write_task
from snella.config.method import METHODS
from snella.config.recipe import differences, to_yaml
from snella.config.schema import TrainConfig
from snella.console import Terminal, print_line
from snella.errors import UserError
from snella.files import check_writable, write_text
from snella.runs.folder import (
    alone_in,
    is_tested,
    is_worked_on,
    other_settings,
    read_config,
    read_summary,
    state_of,
)
from snella.runs.prepare import read_run_data
from snella.tasks.registry import task_named
from snella.training.interrupt import DIVERGED
from snella.training.loop import is_better

if TYPE_CHECKING:
    from snella.config.suites import Suite

WAIT = 60  # seconds for a training that another comparison has started
Failures = dict[Path, str]  # run folder -> why it failed, in a line
Grid = dict[float, RunResult | None]  # learning rate -> the run with the first seed; None: it did not finish


def compare(plan: Plan, *, workers: int = 1, console: Console | None = None) -> Failures:
    """Run what has not been run, print and write the tables and the chart, and return what failed.

    A rate that the search tried beside others may diverge: it is reported only.

    Raises:
        UserError: data that cannot be read (in a suite, of all tasks), or a folder that holds another run or cannot be
            written to, or in which another comparison is at work.
        KeyboardInterrupt: Ctrl-C; the runs under way have written checkpoints, and the same call goes on with them.
    """
    console = console or Terminal()
    _check_plan(plan)
    failed: Failures = {}
    tasks = _with_data(plan, failed, console)
    _check_backbones(plan, tasks)
    check_writable(plan.folder)
    plan.folder.mkdir(parents=True, exist_ok=True)
    with alone_in(plan.folder, "comparison"):
        return _compare(plan, tasks, failed, workers, console)


def _compare(plan: Plan, tasks: Sequence[PlannedTask], failed: Failures, workers: int, console: Console) -> Failures:
    """Return all but the checks; `failed` has the tasks that cannot be read."""
    grids = _search(plan, tasks, workers, failed, console)
    chosen = [
        plan.config(task, entrant, lr, seed)
        for (task, entrant), grid in grids.items()
        if (lr := best_rate(grid.values())) is not None
        for seed in plan.seeds
    ]
    failed |= _run(plan, chosen, workers, console)

    results = []
    for task in tasks:
        result = _result(plan, task, {entrant: grids[task, entrant] for entrant in plan.entrants}, failed)
        if result is None:
            continue
        if plan.combine:
            result = with_combinations(plan, task, result, console)
        results.append(result)
        write_task(result, task.folder)
        comparison_figure(result, task.folder / "compare.png")
    if plan.suite is not None and results:
        suite = _with_failures(plan, plan.suite, failed)
        write_suite(suite, results, plan.folder)
        _draw_means(results, plan.folder / "compare.png")
        console.print(suite_report(suite, results))
    elif results:
        console.print(task_report(results[0]))
        for line in combined_commands(results[0], best=True):
            print_line(console, line)
    for folder, reason in failed.items():
        print_line(console, f"failed: {folder}: {reason}")
    if results:
        print_line(console, f"tables and chart in {plan.folder}")
    tried = _tried_beside(plan, grids)
    return {
        folder: reason for folder, reason in failed.items() if not (folder in tried and reason.startswith(DIVERGED))
    }


def _tried_beside(plan: Plan, grids: Mapping[tuple[PlannedTask, Entrant], Grid]) -> set[Path]:
    """Return the folders of rates that the search chose and that gave nothing, where others did."""
    return {
        Path(plan.config(*key, lr, plan.seeds[0]).out or "")
        for key, grid in grids.items()
        if plan.grid is None and any(grid.values())
        for lr, run in grid.items()
        if run is None
    }


def _with_failures(plan: Plan, suite: Suite, failed: Failures) -> Suite:
    """Return the suite with a note on each task whose data could not be read."""
    folders = {task.folder for task in plan.tasks}
    notes = [f"{folder.relative_to(plan.folder)}: {why}" for folder, why in failed.items() if folder in folders]
    return replace(suite, notes=(*suite.notes, *notes))


def _draw_means(results: Sequence[TaskResult], path: Path) -> None:
    """Return the chart of the tasks' means, where they have one metric and an entrant has them all."""
    if not have_one_metric(results):
        return
    mean = mean_result(results)
    if any(row.runs for row in mean.methods):
        comparison_figure(mean, path)


def _search(
    plan: Plan, tasks: Sequence[PlannedTask], workers: int, failed: Failures, console: Console
) -> dict[tuple[PlannedTask, Entrant], Grid]:
    """Run the first seed at the learning rates of each entrant, until the plan has no more for any.

    Nothing is tested yet.
    """
    first = plan.seeds[0]
    tried: dict[tuple[PlannedTask, Entrant], tuple[float, ...]] = {}
    rates = {(task, entrant): plan.first_rates(task, entrant) for task in tasks for entrant in plan.entrants}
    grids: dict[tuple[PlannedTask, Entrant], Grid] = {key: {} for key in rates}
    while rates != tried:
        new = [
            plan.config(*key, lr, first).changed(test="none")
            for key, wanted in rates.items()
            for lr in wanted
            if lr not in tried.get(key, ())
        ]
        failed |= _run(plan, new, workers, console)
        for key, wanted in rates.items():
            found = {lr: _finished(plan, *key, lr, [first]) for lr in wanted}
            grids[key] = {lr: runs[0] if runs else None for lr, runs in found.items()}
        tried = rates
        rates = {key: plan.more(key[0], wanted, best_rate(grids[key].values())) for key, wanted in tried.items()}
    return grids


def _check_plan(plan: Plan) -> None:
    """Refuse, before anything runs, what no task can do, and what stands where a run belongs and is another one."""
    for task in plan.tasks:
        for backbone in plan.backbones or (task.config.model.backbone,):  # methods, rates and seeds do not matter here
            task_named(task.config.task).check(task.config.changed(backbone=backbone))
    there = {entry.name for entry in plan.folder.iterdir() if entry.name[0] != "."} if plan.folder.is_dir() else set()
    ours = {*METHODS, *map(backbone_folder, plan.backbones), f"{NAME}.json", *(task.folder.name for task in plan.tasks)}
    if state_of(plan.folder) in ("started", "finished") or (there and not there & ours) or plan.folder.is_file():
        raise UserError(f"{plan.folder} exists and is not a comparison; choose another --out")
    for config in plan.possible():
        folder = Path(config.out or "")
        state = state_of(folder)
        if state == "foreign":
            raise UserError(f"{folder} exists and is not a run folder; choose another --out")
        differ = differences(read_config(folder), config) if state != "absent" else []
        if differ:
            raise other_settings(folder, differ, "choose another --out, or delete it")


def _check_backbones(plan: Plan, tasks: Sequence[PlannedTask]) -> None:
    """Build each of several backbones that has runs to come, before any of them begins.

    Raises:
        UserError: it cannot be had, or cannot take the image size or the drop-path of a task.
    """
    built = []
    for task in tasks:
        for backbone in plan.backbones:
            configs = _first_runs(plan, task, [Entrant(method, backbone) for method in plan.methods])
            spec = task_named(task.config.task).make_spec(configs[0], num_classes=2)
            if spec in built or _all_finished(configs):
                continue
            try:
                task_named(task.config.task).build(spec)
            except UserError as error:
                raise UserError(f"{'' if backbone in str(error) else f'{backbone}: '}{error}") from None
            built.append(spec)


def _first_runs(plan: Plan, task: PlannedTask, entrants: Sequence[Entrant]) -> list[TrainConfig]:
    """Return the settings of the runs that a search begins with."""
    return [plan.config(task, who, lr, plan.seeds[0]) for who in entrants for lr in plan.first_rates(task, who)]


def _all_finished(configs: Sequence[TrainConfig]) -> bool:
    return all(state_of(Path(config.out or "")) == "finished" for config in configs)


def _with_data(plan: Plan, failed: Failures, console: Console) -> list[PlannedTask]:
    """Return the tasks whose data can be read; it is not looked at where all runs of the grid are finished."""
    found = []
    for task in plan.tasks:
        configs = _first_runs(plan, task, plan.entrants)
        try:
            if not _all_finished(configs):
                read_run_data(configs[0], console)
        except UserError as error:
            failed[task.folder] = str(error)
            if len(failed) == len(plan.tasks):
                raise
            continue
        found.append(task)
    return found


def _run(plan: Plan, configs: Sequence[TrainConfig], workers: int, console: Console) -> Failures:
    """Run those that are not finished; those that lack a test only make it."""
    folders: dict[Job, Path] = {}
    for config in configs:
        folder = Path(config.out or "")
        finished = state_of(folder) == "finished"
        if finished and is_tested(read_summary(folder), config.test):
            continue
        _wait_for(folder, console)
        recipe = folder.with_name(f"{folder.name}.yaml")
        write_text(recipe, to_yaml(config))
        train = (sys.executable, "-m", "snella", "train", "--recipe", str(recipe), "--out", str(folder), "--resume")
        name = f"{folder.relative_to(plan.folder)}{', test' if finished else ''}"
        folders[Job(name, train, folder.with_name(f"{folder.name}.log"))] = folder
    if len(folders) < len(configs):
        print_line(console, f"{len(configs) - len(folders)} of {len(configs)} runs are finished already")
    failed = run_jobs(list(folders), workers=workers, console=console) if folders else {}
    return {folders[job]: reason for job, reason in failed.items()}


def _wait_for(folder: Path, console: Console) -> None:
    """Wait while a training is at work in a run folder: one of a comparison that was killed ends by itself.

    Raises:
        UserError: it is still at work. A comparison without it would choose among the others.
    """
    for second in range(WAIT):
        if not is_worked_on(folder):
            return
        if not second:
            print_line(console, f"waiting for a training that is at work in {folder}")
        time.sleep(1)
    raise UserError(f"a training is still at work in {folder}; wait for it, then give the same command again")


def _finished(plan: Plan, task: PlannedTask, entrant: Entrant, lr: float, seeds: Sequence[int]) -> list[RunResult]:
    folders = [Path(plan.config(task, entrant, lr, seed).out or "") for seed in seeds]
    runs = [read_result(folder) for folder in folders if state_of(folder) == "finished"]
    return [run for run in runs if _finite(run.val, name=run.metric)]


def _finite(*metrics: Mapping[str, float], name: str) -> bool:
    return all(math.isfinite(of[name]) for of in metrics)


def best_rate(runs: Iterable[RunResult | None]) -> float | None:
    """Return the learning rate of the run with the best score on val, None where there is no run.

    Of several with that score the one in the middle (of two the first): the centre of a plateau, not its edge.
    """
    best: list[RunResult] = []
    for run in filter(None, runs):
        score = best[0].val[run.metric] if best else None
        if is_better(run.val[run.metric], score, run.higher_is_better):
            best = [run]
        elif run.val[run.metric] == score:
            best.append(run)
    return best[(len(best) - 1) // 2].lr if best else None


def _result(plan: Plan, task: PlannedTask, grids: Mapping[Entrant, Grid], failed: Failures) -> TaskResult | None:
    """Return all entrants on a task; None where no run was tested."""
    rows = []
    for entrant, grid in grids.items():
        lr = best_rate(grid.values())
        found = _finished(plan, task, entrant, lr, plan.seeds) if lr is not None else []
        runs = [run for run in found if run.test_last and _finite(run.test, run.test_last, name=run.metric)]
        val = {rate: run.val[run.metric] if run else None for rate, run in grid.items()}
        rows.append(MethodResult(entrant, lr, val, tuple(runs)))
    run = next((row.runs[0] for row in rows if row.runs), None)
    if run is None:
        return None
    notes = [f"{row.name}: its best rate, {row.lr:g}, is at an end of its grid" for row in rows if at_an_end(row)]
    notes += [
        f"{row.name}: {len(row.runs)} of {len(plan.seeds)} seeds finished and tested"
        for row in rows
        if row.lr is not None and len(row.runs) < len(plan.seeds)
    ]
    notes += [f"{f.relative_to(plan.folder)} failed: {why}" for f, why in failed.items() if task.folder in f.parents]
    label = task_named(task.config.task).metrics[run.metric]
    result = TaskResult(task.name, run.metric, label, run.higher_is_better, tuple(rows), (), tuple(notes))
    return replace(result, protocol=protocol(plan, result))
