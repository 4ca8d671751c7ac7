"""What the runs of a search come to together: for each entrant the soup and the ensemble of its learning rates.

    rates that finished, first seed ─ best on val first ─ each that val is not worse by ──┬─ mean of the weights
                                                                                          └─ mean of the probabilities

What is taken is chosen on val alone, and what it makes is tested once. It is kept in METHOD/combined.json, for as long
as the runs are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from torch import nn

from snella.compare.plan import Plan, PlannedTask
from snella.compare.results import ALONE, ENSEMBLE, SOUP, Combination, MethodResult, TaskResult, numbers
from snella.compare.soup import Average, Mixture, Tester, choose, members_of, read_data
from snella.console import print_line, working
from snella.data.dataset import ImageData
from snella.errors import UserError
from snella.files import CHECKSUMS, checksum, write_json
from snella.json_files import Record, read_json
from snella.models.backbone import Ensemble
from snella.runs.evaluate import accelerator_for
from snella.runs.folder import ADAPTER, read_config, read_summary
from snella.runs.load import load_run
from snella.tasks.registry import task_named

KEPT = "combined.json"
HOW = (
    "rates together: the best on val first, then each that does not make val worse, so that their val is a little too "
    "good; one test of what they make, and none where the best stays alone"
)
_METRICS = dict[str, float | None]
_MADE = Record({"kind": str, "runs": list[str], "val": _METRICS, "test": _METRICS})
_HOLDS = Record({"members": list[dict[str, Any]], "combined": list[_MADE]})  # type: ignore[valid-type]


class Committee:
    """The mean of the probabilities of runs."""

    def __init__(self) -> None:
        self._models: list[nn.Module] = []  # of the runs that are taken
        self._tried: list[nn.Module] = []

    def tried(self, folder: Path) -> nn.Module:
        self._tried = [*self._models, load_run(folder).model]
        return Ensemble(self._tried)

    def take(self) -> None:
        self._models = self._tried

    def whole(self) -> nn.Module:
        return Ensemble(self._models)


def with_combinations(plan: Plan, task: PlannedTask, result: TaskResult, console: Console) -> TaskResult:
    """Return a task's result with what the rates of each entrant make together, where two or more have finished.

    Where they make nothing, a note says why. Tasks that generate have none.
    """
    if task_named(task.config.task).generates:
        return result
    place: tuple[ImageData[Any], Accelerator] | None = None  # made where there is something to do
    rows, notes = [], list(result.notes)
    for row in result.methods:
        runs = _runs(plan, task, row)
        if len(runs) < 2 or not row.runs or row.runs[0].seed != plan.seeds[0]:
            rows.append(row)
            continue
        file = task.folder / row.entrant.folder / KEPT
        alone = Combination(ALONE, (row.runs[0].folder,), row.runs[0].val, row.runs[0].test)
        try:
            made = _kept(file, runs)
            if made is None:
                place = place or _place(runs[0], console)
                made = _made(f"{task.name} {row.name}".strip(), runs, alone, *place, console)
                _keep(file, runs, made)
        except UserError as error:
            notes.append(f"{row.name}: no soup or ensemble of its rates: {error}")
            rows.append(row)
            continue
        rows.append(replace(row, combined=(alone, *made)))
    lines = (*result.protocol, HOW) if any(row.combined for row in rows) else result.protocol
    return replace(result, methods=tuple(rows), protocol=lines, notes=tuple(notes))


def _runs(plan: Plan, task: PlannedTask, row: MethodResult) -> list[Path]:
    """Return the run folders of the rates that came to something with the first seed, the best rate's first."""
    rates = sorted((rate for rate, val in row.grid.items() if val is not None), key=lambda rate: rate != row.lr)
    return [Path(plan.config(task, row.entrant, rate, plan.seeds[0]).out or "") for rate in rates]


def _place(folder: Path, console: Console) -> tuple[ImageData[Any], Accelerator]:
    """Return the data of a run and all that share them, and where they are evaluated."""
    config = read_config(folder)
    return read_data(folder, console), accelerator_for(config.device, config.precision, console)


def _made(
    name: str, runs: Sequence[Path], alone: Combination, data: ImageData[Any], accelerator: Accelerator,
    console: Console,
) -> list[Combination]:  # fmt: skip
    """Return the soup, and the ensemble where the task has one. Raises UserError."""
    members, first = members_of(runs), load_run(runs[0])
    tester = Tester(first, data, accelerator, first.config.data.images_per_batch)
    members = tester.best_first(members)
    mixtures: dict[str, Mixture] = {SOUP: Average(runs[0])}
    if first.task.ensembles:
        mixtures[ENSEMBLE] = Committee()
    made = []
    for kind, mixture in mixtures.items():
        taken = []
        with working(console, f"{name}: {kind} of {len(members)} rates") as progress:
            for done, member in enumerate(choose(mixture, members, tester), start=1):
                taken += [str(member.folder)] if member.taken else []
                progress(done, len(members))
            single = {"val": alone.val, "test": alone.test}  # nothing new to look at
            metrics = single if len(taken) == 1 else tester.judged(mixture.whole()).metrics
        print_line(console, f"{name}: {kind} of {len(taken)} of {len(members)} rates")
        made.append(Combination(kind, tuple(taken), metrics["val"], metrics["test"]))
    return made


def _members(runs: Sequence[Path], place: Path) -> list[dict[str, Any]]:
    """Return what runs are known by, to see whether they are the same."""
    sums = [folder / ADAPTER / CHECKSUMS for folder in runs]
    return [
        {
            "run": folder.relative_to(place).as_posix(),
            "val": read_summary(folder)["val"],
            "adapter": checksum(file) if file.is_file() else None,
        }
        for folder, file in zip(runs, sums, strict=True)
    ]


def _keep(file: Path, runs: Sequence[Path], made: Sequence[Combination]) -> None:
    combined = [
        {
            "kind": each.kind,
            "runs": [Path(run).relative_to(file.parent).as_posix() for run in each.runs],
            "val": each.val,
            "test": each.test,
        }
        for each in made
    ]
    write_json(file, {"members": _members(runs, file.parent), "combined": combined})


def _kept(file: Path, runs: Sequence[Path]) -> list[Combination] | None:
    """Return what was made of the same runs; None where it has to be made anew. Raises UserError if it is damaged."""
    if not file.is_file():
        return None
    found: Mapping[str, Any] = read_json(file, _HOLDS, remedy="delete it, and it is made again")
    if found["members"] != _members(runs, file.parent):
        return None
    return [
        Combination(
            each["kind"],
            tuple(str(file.parent / run) for run in each["runs"]),
            numbers(each["val"]),
            numbers(each["test"]),
        )
        for each in found["combined"]
    ]
