"""Average the weights of several runs of one backbone into one model, a soup, which is a run folder too.

    runs ─ same data, splits, classes, backbone? ─ best on val first ─ average while val gains ─ RUN of method full

Wortsman et al. 2022, arXiv 2203.05482. The average costs no more than one model to keep and to use.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from snella.config.method import MethodConfig
from snella.config.schema import TrainConfig
from snella.console import Terminal, print_line
from snella.data.dataset import ImageData
from snella.data.kept_images import keep_images
from snella.errors import UserError
from snella.files import writing
from snella.machine import free_memory
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
from snella.runs.prepare import KEPT_SHARE, tell
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

    def judged(self, model: nn.Module) -> Judged:
        """Return what is found of a model on val, by which the learner settles what it has to, and then on test."""
        val = self.found(model, "val")
        settled = self.run.learner.settle(val)
        tested = self.found(model, "test") if len(self.data.splits["test"]) else None
        found = {"val": val} if tested is None else {"val": val, "test": tested}
        names = self.run.task.metrics
        metrics = {split: {name: seen.metrics[name] for name in names} for split, seen in found.items()}
        return Judged(metrics, settled, tested)

    def best_first(self, members: Sequence[Member]) -> list[Member]:
        """Return members in the order of their scores on val; equals stay in theirs."""
        return sorted(members, key=lambda member: self.score(member.summary["val"]), reverse=True)

    def score(self, metrics: Mapping[str, float | None]) -> float:
        """Return the number by which the best of several models is chosen; higher is better."""
        value = metrics[self.run.learner.selection]
        if value is None or not math.isfinite(value):
            return -math.inf
        return value if self.run.learner.higher_is_better else -value


@dataclass(frozen=True)
class Judged:
    """What is found of a model in the end."""

    metrics: dict[str, dict[str, float]]  # split -> metric -> value, of val and, where there is one, of test
    settled: Mapping[str, Any]  # what val decides
    tested: Evaluation | None


class Mixture(Protocol):
    """A model that several runs make."""

    def tried(self, folder: Path, /) -> nn.Module:
        """Return the model of the runs that are taken and this one. Raises UserError where it cannot be one of them."""
        ...

    def take(self) -> None:
        """Take the run that was tried last."""
        ...

    def whole(self) -> nn.Module:
        """Return the model of the runs that are taken, at least one."""
        ...


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
    members = members_of(folders)
    first = load_run(members[0].folder)
    data = read_data(members[0].folder, console)
    tell(data, console)
    tester = Tester(first, data, make_accelerator(device, "fp32"), batch_size)
    members = tester.best_first(members)
    average, chosen = Average(members[0].folder), []
    for member in choose(average, members, tester, take_all=take_all):
        chosen.append(member)
        print_line(console, f"{member.folder}: {'taken' if member.taken else 'left out, val would be lower'}")
    model = average.whole()
    judged = tester.judged(model)
    claim(out, first.config.changed(method="full", base_precision="fp32", out=str(out)))
    with alone_in(out, "training"):
        summary = _written(out, members[0].folder, model.to("cpu"), judged, tester, chosen)
    if judged.tested is not None:
        for kind, draw in first.learner.figures(judged.tested).items():
            draw(out / f"{kind}.png")
    console.print(_table(chosen, judged.metrics, tester))
    taken = sum(member.taken for member in chosen)
    single = "; no other made it better" if taken == 1 else ""
    print_line(console, f"the average of {taken} of {len(chosen)} runs{single}; it is a run folder: {out}")
    return summary


def read_data(folder: Path, console: Console) -> ImageData[Any]:
    """Return a run's own data; images of val, which are looked at many times, are kept in memory where they fit."""
    data = read_own_data(folder, read_config(folder), read_about(folder), console)
    kept = keep_images({"val": data.splits["val"]}, workers=0, limit=round(KEPT_SHARE * free_memory()))
    return replace(data, splits={**data.splits, **kept})


def members_of(folders: Sequence[Path]) -> list[Member]:
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


class Average:
    """The mean of the weights of runs, in a model of their backbone."""

    def __init__(self, first: Path) -> None:
        self._model = wrap(untuned(first), MethodConfig(name="full"))
        self._total: dict[str, Tensor] = {}  # of the runs that are taken
        self._count = 0
        self._tried: dict[str, Tensor] = {}

    def tried(self, folder: Path) -> nn.Module:
        state = _merged_state(folder)
        if state.keys() != self._model.state_dict().keys():
            raise UserError(f"{folder}: its merged weights are not those of its backbone alone")
        self._tried = {name: _sum(self._total[name], value) for name, value in state.items()} if self._count else state
        _put_mean(self._model, self._tried, self._count + 1)
        return self._model

    def take(self) -> None:
        self._total, self._count = self._tried, self._count + 1

    def whole(self) -> nn.Module:
        _put_mean(self._model, self._total, self._count)
        return self._model


def choose(mixture: Mixture, members: Sequence[Member], tester: Tester, *, take_all: bool = False) -> Iterator[Member]:
    """Yield the members in their order, marked whether they are taken: where val is not worse by them."""
    best = -math.inf
    for member in members:
        model = mixture.tried(member.folder)
        score = best if take_all else tester.score(tester.found(model, "val").metrics)
        taken = score >= best
        if taken:
            mixture.take()
            best = score
        yield replace(member, taken=taken)


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
    out: Path, member: Path, model: nn.Module, judged: Judged, tester: Tester, chosen: Sequence[Member]
) -> dict[str, Any]:
    """Write the run folder, its summary last, and return that."""
    run = tester.run
    for name in (BASE, START, SPLITS_TABLE):
        if (member / name).is_file():
            with writing(out / name) as partial:
                shutil.copyfile(member / name, partial)
    write_adapter(out, model, {**run.saved, **judged.settled, "method": "full", "versions": versions()})
    summary = {**judged.metrics, "soup": [_row(member) for member in chosen]} | summary_of(
        *(out, model, run.learner, tester.data, judged.tested),
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
