"""What the updates of two tasks do to each other in one backbone.

    python -m benchmarks.interference RUN RUN              two finished runs of one backbone and method
    python -m benchmarks.interference RUN RUN --out FILE.json

Each run's update is read layer by layer, both are joined and put into the backbone's weights, and each task is tested
with its own head: what joining costs, against the run alone. In the ways of joining a number is what each update is
multiplied by; by sign is `snella.combine(..., by_sign=True)`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft.tuners.tuners_utils import BaseTunerLayer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.run import OneLineParser
from snella.errors import UserError
from snella.files import write_json
from snella.integrations.combine import merge_by_sign
from snella.methods.adapters import merged
from snella.runs.check import read_own_data
from snella.runs.evaluate import accelerator_for
from snella.runs.load import LoadedRun, load_run
from snella.training.evaluation import evaluate

Join = Callable[[Iterable[Tensor]], Tensor]


def add(updates: Iterable[Tensor]) -> Tensor:
    """Return the sum of updates."""
    return reduce(torch.add, updates)


WAYS: dict[str, tuple[float, Join]] = {
    "sum, 1": (1.0, add),
    "sum, 0.5": (0.5, add),
    "by sign, 1": (1.0, merge_by_sign),
    "by sign, 0.5": (0.5, merge_by_sign),
}
BATCH = 64


@dataclass(frozen=True)
class Update:
    """What a run changed in its backbone: the frozen weights and the updates of its adapted layers, by name."""

    weights: dict[str, Tensor]
    deltas: dict[str, Tensor]  # of the weights' shapes


@dataclass(frozen=True)
class Overlap:
    """How two updates lie to each other, over the entries of all layers."""

    kept: tuple[float, float]  # share of the entries that each changes
    both: float  # share that both change
    agreeing: float  # of those, the share where both have one sign
    cosine: float
    sizes: tuple[float, float]  # of each, its norm by that of the weights


def update_of(run: LoadedRun) -> Update:
    """Return a run's update. Raises UserError where its method has none that lies beside the weights."""
    weights, deltas = {}, {}
    for name, layer in run.model.named_modules():
        if isinstance(layer, BaseTunerLayer) and hasattr(layer, "get_delta_weight"):
            adapted: Any = layer
            weight = adapted.get_base_layer().weight.detach()
            name = name.removeprefix("base_model.model.")
            weights[name] = weight.clone()
            deltas[name] = adapted.get_delta_weight(layer.active_adapters[0]).detach().reshape(weight.shape)
    if not deltas:
        raise UserError(f"a run of method {run.config.method.name} has no updates beside its weights to join")
    return Update(weights, deltas)


def overlap(one: Mapping[str, Tensor], other: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Overlap:
    """Return how two updates of the same layers overlap."""
    a, b, w = (torch.cat([part[name].flatten().double() for name in weights]) for part in (one, other, weights))
    both = (a != 0) & (b != 0)
    return Overlap(
        kept=((a != 0).double().mean().item(), (b != 0).double().mean().item()),
        both=both.double().mean().item(),
        agreeing=(a * b > 0)[both].double().mean().item(),
        cosine=(a @ b / (a.norm() * b.norm())).item(),
        sizes=((a.norm() / w.norm()).item(), (b.norm() / w.norm()).item()),
    )


def put(model: nn.Module, weights: Mapping[str, Tensor], deltas: Sequence[Mapping[str, Tensor]], way: str) -> None:
    """Give a plain model the frozen weights with the updates, joined in a way of WAYS."""
    factor, join = WAYS[way]
    for name, weight in weights.items():
        joined = weight + join([factor * delta[name] for delta in deltas])
        model.get_submodule(name).weight.data.copy_(joined)  # type: ignore[union-attr, operator]


def measure(folders: Sequence[Path], console: Console) -> tuple[dict[str, list[float]], Overlap, str]:
    """Return the metric of each task by way of joining, `alone` among them, the overlap, and the metric's name.

    Raises:
        UserError: as `load_run`, or runs of other backbones or layers.
    """
    runs = [load_run(folder) for folder in folders]
    if len({run.saved["fingerprint"] for run in runs}) > 1:
        raise UserError(f"{folders[0]} and {folders[1]} are of two backbones: their updates have no sum")
    updates = [update_of(run) for run in runs]
    weights, deltas = updates[0].weights, [update.deltas for update in updates]
    if deltas[0].keys() != deltas[1].keys():
        raise UserError(f"{folders[0]} and {folders[1]} adapt different layers")
    metric = runs[0].learner.selection
    found: dict[str, list[float]] = {name: [] for name in ("alone", *WAYS)}
    for folder, run in zip(folders, runs, strict=True):
        images = read_own_data(folder, run.config, run.saved, console).splits["test"]
        accelerator = accelerator_for("cpu", "fp32", console)
        found["alone"].append(_tested(run, run.model, images, accelerator, metric))
        plain = merged(run.config.method.name, run.model)
        for way in WAYS:
            put(plain, weights, deltas, way)
            found[way].append(_tested(run, plain, images, accelerator, metric))
    return found, overlap(deltas[0], deltas[1], weights), metric


def _tested(run: LoadedRun, model: nn.Module, images: object, accelerator: Accelerator, metric: str) -> float:
    batches = run.batches(images, BATCH)  # type: ignore[arg-type]
    return evaluate(model.eval(), run.learner, batches, accelerator).metrics[metric]


def table(found: Mapping[str, Sequence[float]], lies: Overlap, metric: str, names: Sequence[str]) -> Table:
    """Make a table with a row for each way of joining, in %."""
    rows = Table(title=f"test {metric} in %, two updates in one backbone")
    rows.add_column("")
    for name in (*names, "mean"):
        rows.add_column(name, justify="right")
    for way, values in found.items():
        rows.add_row(way, *(f"{100 * value:.1f}" for value in (*values, sum(values) / len(values))))
    rows.caption = (
        f"kept {lies.kept[0]:.1%} and {lies.kept[1]:.1%}, by both {lies.both:.1%} (of one sign {lies.agreeing:.1%}); "
        f"cosine {lies.cosine:.3f}; norms by the weights' {lies.sizes[0]:.3f} and {lies.sizes[1]:.3f}"
    )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write a JSON file where asked, and return the exit code."""
    parser = OneLineParser(prog="python -m benchmarks.interference", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN", help="folders of finished runs")
    parser.add_argument("--out", type=Path, help="file for the figures, as JSON")
    args = parser.parse_args(arguments)
    console = Console()
    try:
        found, lies, metric = measure(args.runs, Console(stderr=True))
        console.print(table(found, lies, metric, [folder.name for folder in args.runs]))
        if args.out is not None:
            write_json(args.out, {"runs": list(map(str, args.runs)), metric: found, "overlap": vars(lies)})
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
