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
from rich.table import Column, Table
from torch import Tensor, nn

from snella.config.method import MethodConfig
from snella.config.schema import TrainConfig
from snella.console import Terminal, print_line
from snella.data.dataset import ImageData
from snella.data.images import WHITE
from snella.data.loading import ImageBatches
from snella.errors import UserError
from snella.files import size_of, write_checksums, write_json, writing
from snella.methods.adapters import merged, save_adapter, wrap
from snella.report.tables import format_metric
from snella.runs.check import check_data, read_start
from snella.runs.devices import device_name, make_accelerator
from snella.runs.folder import (
    ABOUT,
    ADAPTER,
    BASE,
    START,
    alone_in,
    claim,
    read_about,
    read_config,
    read_summary,
    state_of,
    versions,
    with_own_splits,
    write_summary,
)
from snella.runs.load import LoadedRun, check_options, load_run
from snella.runs.prepare import read_run_data, tell
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
        transform = self.run.task.eval_transform(self.run.preprocessing)
        images = self.data.splits[split]
        batches = ImageBatches(images, transform, batch_size=self.batch_size, shuffle=False, seed=0)
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
    config = with_own_splits(members[0].folder, first.config).changed(white=first.saved.get("white", WHITE))
    data = read_run_data(config, console)
    check_data(members[0].folder, read_start(members[0].folder), data)
    tell(data, console)
    tester = Tester(first, data, make_accelerator(device, "fp32"), batch_size)
    members.sort(key=lambda member: tester.score(member.summary["val"]), reverse=True)
    model = wrap(_base(first), MethodConfig(name="full"))
    chosen = _averaged(model, members, tester, take_all, console)
    val = tester.found(model, "val")
    settled = first.learner.settle(val)
    tested = tester.found(model, "test") if len(data.splits["test"]) else None
    found = {"val": val} if tested is None else {"val": val, "test": tested}
    names = first.task.metrics
    metrics = {split: {name: seen.metrics[name] for name in names} for split, seen in found.items()}
    with_soup = {**metrics, "soup": [_row(member) for member in chosen]}
    claim(out, first.config.changed(method="full", base_precision="fp32", out=str(out)))
    with alone_in(out, "training"):
        summary = _written(out, members[0].folder, model.to("cpu"), settled, with_soup, tester)
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
    places = list(dict.fromkeys(folder.resolve() for folder in folders))
    if len(places) < 2:
        raise UserError("a soup is made of two runs or more: snella soup RUN RUN... --out FOLDER")
    members, abouts = [], []
    for folder in folders:
        abouts.append(read_about(folder))
        if state_of(folder) != "finished":
            raise UserError(f"{folder} is not finished, or is no longer: it has no summary.json")
        members.append(Member(folder, read_config(folder), read_summary(folder)))
    starts = [read_start(member.folder) for member in members]
    for member, about, start in zip(members, abouts, starts, strict=True):
        first, other = _comparable(abouts[0]), _comparable(about)
        for key in sorted(first.keys() | other.keys()):
            if first.get(key) != other.get(key):
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
    """Return what must be the same in the snella.json of all runs."""
    backbone = {f"backbone.{name}": value for name, value in about["backbone"].items() if name not in OF_A_PLACE}
    return {name: value for name, value in about.items() if name not in (*OF_A_RUN, "backbone")} | backbone


def _base(run: LoadedRun) -> nn.Module:
    """Return the runs' backbone, as it was built before tuning; its weights do not matter."""
    return run.task.build(run.task.spec_from(run.saved))


def _averaged(
    model: nn.Module, members: Sequence[Member], tester: Tester, take_all: bool, console: Console
) -> list[Member]:
    """Put the average into the model, and return the members with those taken marked."""
    total: dict[str, Tensor] = {}
    count, best, chosen = 0, -math.inf, []
    for member in members:
        state = _merged_state(member.folder)
        if state.keys() != model.state_dict().keys():
            raise UserError(f"{member.folder}: its merged weights are not those of its backbone alone")
        summed = {name: total[name] + value if total else value for name, value in state.items()}
        model.load_state_dict({name: _mean(value, count + 1, state[name]) for name, value in summed.items()})
        score = 0.0 if take_all else tester.score(tester.found(model, "val").metrics)
        taken = take_all or score >= best
        if taken:
            total, count, best = summed, count + 1, score
        chosen.append(replace(member, taken=taken))
        print_line(console, f"{member.folder}: {'taken' if taken else 'left out, val would be lower'}")
    first = _merged_state(chosen[0].folder)
    model.load_state_dict({name: _mean(value, count, first[name]) for name, value in total.items()})
    return chosen


def _merged_state(folder: Path) -> dict[str, Tensor]:
    """Return the plain weights of a tuned model, sums of them in fp64."""
    run = load_run(folder)
    state = merged(run.config.method.name, run.model).state_dict()
    return {name: value.double() if value.is_floating_point() else value for name, value in state.items()}


def _mean(total: Tensor, count: int, one: Tensor) -> Tensor:
    """Return the mean of floating numbers; of a counter, one of the values."""
    return (total / count).float() if total.is_floating_point() else one


def _written(
    out: Path,
    member: Path,
    model: nn.Module,
    settled: Mapping[str, Any],
    found: Mapping[str, Any],
    tester: Tester,
) -> dict[str, Any]:
    """Write the run folder, its summary last, and return that."""
    run = tester.run
    for name in (BASE, START):
        if (member / name).is_file():
            with writing(out / name) as partial:
                shutil.copyfile(member / name, partial)
    with writing(out / ADAPTER) as partial:
        save_adapter("full", model, partial)
        write_json(partial / ABOUT, {**run.saved, **settled, "method": "full", "versions": versions()})
        write_checksums(partial)
    summary = {
        **found,
        "selection": {"metric": run.learner.selection, "higher_is_better": run.learner.higher_is_better},
        "trainable_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "adapter_bytes": size_of(out / ADAPTER),
        "peak_memory_bytes": 0,  # nothing was trained
        "seconds": 0.0,
        "images": {split: len(images) for split, images in tester.data.splits.items()},
        "device": device_name(tester.accelerator.device),
        "seed": run.config.seed,
        "versions": versions(),
    }
    write_summary(out, summary)
    return summary


def _row(member: Member) -> dict[str, Any]:
    config = member.config
    scores = {split: member.summary[split] for split in ("val", "test") if split in member.summary}
    about = {"run": str(member.folder), "method": config.method.name, "lr": config.loop.lr, "seed": config.seed}
    return {**about, "taken": member.taken, **scores}


def _table(members: Sequence[Member], metrics: Mapping[str, Mapping[str, float]], tester: Tester) -> Table:
    name = tester.run.learner.selection
    label = tester.run.task.metrics[name]
    table = Table(Column("run", overflow="fold"), "method", "rate", f"val {label}", f"test {label}", "in the soup")

    def cell(scores: Mapping[str, Any], split: str) -> str:
        value = scores.get(split, {}).get(name)
        return "" if value is None else format_metric(name, value)

    for member in members:
        about = (str(member.folder), member.config.method.name, f"{member.config.loop.lr:g}")
        table.add_row(*about, cell(member.summary, "val"), cell(member.summary, "test"), "yes" if member.taken else "")
    table.add_section()
    table.add_row("soup", "", "", cell(metrics, "val"), cell(metrics, "test"), "")
    return table
