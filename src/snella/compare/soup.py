"""Average the weights of several runs of one backbone into one model, a soup, which is a run folder too.

    runs ─ same data, splits, classes, backbone? ─ best on val first ─ average while val gains ─ RUN of method full

Wortsman et al. 2022, arXiv 2203.05482. The average costs no more than one model to keep and to use.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from snella.config.method import MethodConfig
from snella.config.schema import TrainConfig
from snella.console import Terminal, print_line
from snella.data.dataset import ImageData
from snella.errors import UserError
from snella.files import writing
from snella.methods.adapters import merged, wrap
from snella.report.tables import format_metric, new_table
from snella.runs.check import read_own_data, read_start
from snella.runs.devices import device_name, make_accelerator
from snella.runs.folder import (
    BASE,
    SPLITS_TABLE,
    START,
    alone_in,
    claim,
    read_about,
    read_config,
    read_summary,
    state_of,
    summary_of,
    versions,
    write_adapter,
    write_summary,
)
from snella.runs.load import LoadedRun, check_options, first_difference, load_run, untuned
from snella.runs.prepare import tell
from snella.training.evaluation import evaluate
from snella.training.interfaces import Evaluation

# what may differ in the snella.json of runs that are averaged
OF_A_RUN = ("method", "versions", "arithmetic", "thresholds")
OF_A_PLACE = ("checkpoint", "pretrained", "seed")  # and of the backbone there: its fingerprint is the same


@dataclass(frozen=True)
class Member:
    """A run that may be averaged."""

    folder: Path
    config: TrainConfig
    summary: Mapping[str, Any]  # of its training
    taken: bool = False


@dataclass(frozen=True)
class Tester:
    """What gives a model's score on a split of the runs' data."""

    run: LoadedRun
    data: ImageData[Any]
    accelerator: Accelerator
    batch_size: int

    def found(self, model: nn.Module, split: str) -> Evaluation:
        """Return what the task finds on a split."""
        batches = self.run.batches(self.data.splits[split], self.batch_size)
        return evaluate(model, self.run.learner, batches, self.accelerator, seed=self.run.config.seed)

    def score(self, metrics: Mapping[str, float | None]) -> float:
        """Return the number by which the best of several models is chosen; higher is better."""
        value = metrics[self.run.learner.selection]
        if value is None or not math.isfinite(value):
            return -math.inf
        return value if self.run.learner.higher_is_better else -value


def soup(
    folders: Sequence[Path],
    *,
    out: Path,
    take_all: bool = False,
    batch_size: int = 64,
    device: str = "auto",
    console: Console | None = None,
) -> dict[str, Any]:
    """Write the average of runs as a run folder of method `full`, and return what its summary.json holds.

    The best run on val comes first; each further one, the better first, is taken where the average with it is at least
    as good on val. With `take_all` all are averaged.

    Raises:
        UserError: fewer than two runs, one that is not finished, runs of other data, splits, classes or backbones, or
            a folder `out` that exists.
    """
    console = console or Terminal()
    check_options(batch_size, device)
    if state_of(out) != "absent":
        raise UserError(f"{out} exists; choose another --out")
    members = _members(folders)
    first = load_run(members[0].folder)
    data = read_own_data(members[0].folder, first.config, first.saved, console)
    tell(data, console)
    tester = Tester(first, data, make_accelerator(device, "fp32"), batch_size)
    members.sort(key=lambda member: tester.score(member.summary["val"]), reverse=True)
    model = wrap(untuned(members[0].folder), MethodConfig(name="full"))
    chosen = _averaged(model, members, tester, take_all, console)
    val = tester.found(model, "val")
    settled = first.learner.settle(val)
    tested = tester.found(model, "test") if len(data.splits["test"]) else None
    found = {"val": val} if tested is None else {"val": val, "test": tested}
    names = first.task.metrics
    metrics = {split: {name: seen.metrics[name] for name in names} for split, seen in found.items()}
    claim(out, first.config.changed(method="full", base_precision="fp32", out=str(out)))
    with alone_in(out, "training"):
        summary = _written(out, members[0].folder, model.to("cpu"), settled, metrics, tester, tested, chosen)
    if tested is not None:
        for kind, draw in first.learner.figures(tested).items():
            draw(out / f"{kind}.png")
    console.print(_table(chosen, metrics, tester))
    taken = sum(member.taken for member in chosen)
    single = "; no other made it better" if taken == 1 else ""
    print_line(console, f"the average of {taken} of {len(chosen)} runs{single}; it is a run folder: {out}")
    return summary


def _members(folders: Sequence[Path]) -> list[Member]:
    """Return the runs, which differ in how they were trained alone. Raises UserError."""
    folders = list({folder.resolve(): folder for folder in folders}.values())  # a run counts once
    if len(folders) < 2:
        raise UserError("a soup is made of two runs or more: snella soup RUN RUN... --out FOLDER")
    members, abouts = [], []
    for folder in folders:
        abouts.append(read_about(folder))
        if state_of(folder) != "finished":
            raise UserError(f"{folder} is not finished, or is no longer: it has no summary.json")
        members.append(Member(folder, read_config(folder), read_summary(folder)))
    starts = [read_start(member.folder) for member in members]
    for member, about, start in zip(members, abouts, starts, strict=True):
        if key := first_difference(_comparable(abouts[0]), _comparable(about), but=OF_A_RUN):
            raise UserError(f"{members[0].folder} and {member.folder} differ in {key}: they have no average")
        if start is None:
            raise UserError(f"{member.folder} has no start.json: which images it was trained on is not known")
        if starts[0] is not None and start["data"] != starts[0]["data"]:
            seeds = f"their seeds are {members[0].config.seed} and {member.config.seed}"
            raise UserError(
                f"{members[0].folder} and {member.folder} were trained on other images or splits ({seeds}): a soup of "
                "them would be tested on images that one of them has learnt; train them on the same splits"
            )
    return members


def _comparable(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the snella.json of a run, each setting of its backbone by itself, without where that lies."""
    backbone = {f"backbone.{name}": value for name, value in about["backbone"].items() if name not in OF_A_PLACE}
    return {name: value for name, value in about.items() if name != "backbone"} | backbone


def _averaged(
    model: nn.Module, members: Sequence[Member], tester: Tester, take_all: bool, console: Console
) -> list[Member]:
    """Put the average into the model, and return the members with those taken marked."""
    total: dict[str, Tensor] = {}  # of the runs that are taken
    count, best, chosen = 0, -math.inf, []
    for member in members:
        state = _merged_state(member.folder)
        if state.keys() != model.state_dict().keys():
            raise UserError(f"{member.folder}: its merged weights are not those of its backbone alone")
        summed = {name: _sum(total[name], value) for name, value in state.items()} if total else state
        _put_mean(model, summed, count + 1)
        score = 0.0 if take_all else tester.score(tester.found(model, "val").metrics)
        taken = take_all or score >= best
        if taken:
            total, count, best = summed, count + 1, score
        chosen.append(replace(member, taken=taken))
        print_line(console, f"{member.folder}: {'taken' if taken else 'left out, val would be lower'}")
    _put_mean(model, total, count)
    return chosen


def _merged_state(folder: Path) -> dict[str, Tensor]:
    """Return the plain weights of a tuned model, in fp64."""
    run = load_run(folder)
    state = merged(run.config.method.name, run.model).state_dict()
    return {name: value.double() if value.is_floating_point() else value for name, value in state.items()}


def _sum(total: Tensor, value: Tensor) -> Tensor:
    """Return the sum of floating numbers; a counter stays as it is in the first run."""
    return total + value if total.is_floating_point() else total


def _put_mean(model: nn.Module, total: Mapping[str, Tensor], count: int) -> None:
    model.load_state_dict(
        {name: (value / count).float() if value.is_floating_point() else value for name, value in total.items()}
    )


def _written(
    out: Path, member: Path, model: nn.Module, settled: Mapping[str, Any], metrics: Mapping[str, Any], tester: Tester,
    tested: Evaluation | None, chosen: Sequence[Member],
) -> dict[str, Any]:  # fmt: skip
    """Write the run folder, its summary last, and return that."""
    run = tester.run
    for name in (BASE, START, SPLITS_TABLE):
        if (member / name).is_file():
            with writing(out / name) as partial:
                shutil.copyfile(member / name, partial)
    write_adapter(out, model, {**run.saved, **settled, "method": "full", "versions": versions()})
    summary = {**metrics, "soup": [_row(member) for member in chosen]} | summary_of(
        *(out, model, run.learner, tester.data, tested),
        peak_memory_bytes=0,  # nothing was trained
        seconds=0.0,
        device=device_name(tester.accelerator.device),
        seed=run.config.seed,
    )
    write_summary(out, summary)
    return summary


def _row(member: Member) -> dict[str, Any]:
    config = member.config
    scores = {split: member.summary[split] for split in ("val", "test") if split in member.summary}
    about = {"run": str(member.folder), "method": config.method.name, "lr": config.loop.peak_lr, "seed": config.seed}
    return {**about, "taken": member.taken, **scores}


def _table(members: Sequence[Member], metrics: Mapping[str, Mapping[str, float]], tester: Tester) -> Table:
    name = tester.run.learner.selection
    label = tester.run.task.metrics[name]
    right = ("rate", f"val {label}", f"test {label}", "in the soup")
    table = new_table(None, left=("run", "method"), right=right)

    def cell(scores: Mapping[str, Any], split: str) -> str:
        value = scores.get(split, {}).get(name)
        return "" if value is None else format_metric(name, value)

    for member in members:
        about = (str(member.folder), member.config.method.name, f"{member.config.loop.peak_lr:g}")
        table.add_row(*about, cell(member.summary, "val"), cell(member.summary, "test"), "yes" if member.taken else "")
    table.add_section()
    table.add_row("soup", "", "", cell(metrics, "val"), cell(metrics, "test"), "")
    return table
