"""What a comparison did, in the lines that stand under its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from snella.compare.plan import Plan
from snella.compare.results import MethodResult, TaskResult
from snella.compare.tables import with_spread
from snella.runs.folder import read_about, read_config


def at_an_end(row: MethodResult) -> bool:
    """Return whether the chosen rate is the lowest or the highest of several."""
    rates = list(row.grid)
    return len(rates) > 1 and row.lr in (rates[0], rates[-1])


def protocol(plan: Plan, result: TaskResult) -> tuple[str, ...]:
    """Return what was done, in lines to stand under the table; the first `OWN_LINES` are about this task."""
    runs = [run for row in result.methods for run in row.runs]
    shares = [(row.name, result.spread(row, "test_last")) for row in result.methods]
    last = ", ".join(f"{name} {with_spread(result.metric, value)}" for name, value in shares if value)
    grids: dict[tuple[float, ...], list[str]] = {}
    for row in result.methods:
        grids.setdefault(tuple(row.grid), []).append(row.name)
    rates = "; ".join(f"{', '.join(map('{:g}'.format, grid))} ({', '.join(who)})" for grid, who in grids.items())
    seeds = ", ".join(map(str, plan.seeds))
    sizes = {", ".join(f"{count:,} {split}" for split, count in run.images.items()) for run in runs}
    first: dict[str | None, Path] = {}  # backbone -> a run with it
    for row in result.methods:
        if row.runs:
            first.setdefault(row.entrant.backbone, Path(row.runs[0].folder))
    configs = [read_config(folder) for folder in first.values()]
    backbones, config = ", ".join(config.model.backbone for config in configs), configs[0]
    versions = {", ".join(f"{name} {version}" for name, version in run.versions.items()) for run in runs}
    return (
        f"test: the best epoch on val, of equals the last (the last of all: {last}); never the best on test",
        f"images: {' or '.join(sorted(sizes))}, {_inputs(first)}",
        f"{backbones}, {config.loop.epochs} epochs, batches of {config.data.batch_size}, "
        f"r {config.method.r}, {config.precision}",
        f"learning rate: the best of {rates} on val with seed {plan.seeds[0]}, of equals the middle one"
        f"{'' if plan.grid else '; rates were added where it was at an end, and on both sides of it'}",
        f"seeds: {seeds}; ± is the sample standard deviation, [ ] the 95 % t-interval of paired differences; where "
        "the data has no splits of its own, each seed draws them, and test images are shared between seeds",
        "memory: largest peak of a training step; step: median time of one; runs side by side slow each other down",
        f"device: {', '.join(sorted({run.device for run in runs}))}; {' or '.join(sorted(versions))}",
    )


def _inputs(first: Mapping[str | None, Path]) -> str:
    """Return what backbones are shown, of a run with each: once where it is the same for all."""
    about = {backbone: read_about(folder)["preprocessing"] for backbone, folder in first.items()}
    texts = {
        backbone: f"{found['image_size']} pixels; mean {_values(found['mean'])}, std {_values(found['std'])}"
        for backbone, found in about.items()
    }
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{backbone}: {text}" for backbone, text in texts.items())


def _values(values: Sequence[float]) -> str:
    """Return three values, or one where they are the same."""
    texts = [f"{value:.3g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else f"({', '.join(texts)})"
