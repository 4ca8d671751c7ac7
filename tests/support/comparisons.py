"""Results of comparisons, made up."""

from __future__ import annotations

from dataclasses import replace

from snella.compare.plan import Entrant
from snella.compare.results import MethodResult, RunResult, TaskResult


def run(metric: str, score: float, seed: int = 0) -> RunResult:
    scores = {metric: score}
    return RunResult(
        f"out/seed-{seed}", 1e-3, seed, metric, True, scores, scores, scores, 5000, 20_000, 3_000_000, 61.0, 0.25,
        {"train": 8}, "cpu", {"torch": "2"},
    )  # fmt: skip


def entrant(name: str) -> Entrant:
    """Return METHOD, or BACKBONE/METHOD."""
    backbone, _, method = name.rpartition("/")
    return Entrant(method, backbone or None)


def result(metric: str = "top1", higher_is_better: bool = True, /, **scores: tuple[float, ...]) -> TaskResult:
    methods = []
    for name, values in scores.items():
        runs = tuple(run(metric, score, seed) for seed, score in enumerate(values))
        methods.append(MethodResult(entrant(name), 1e-3, {1e-3: 0.5}, runs))
    return TaskResult("cells", metric, "top-1", higher_is_better, tuple(methods), ("seeds: 0",), ("a note",))


def suite_of(*results: TaskResult) -> list[TaskResult]:
    return [replace(found, name=f"task{i}") for i, found in enumerate(results)]
