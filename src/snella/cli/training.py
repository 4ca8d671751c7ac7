"""`snella train` and `snella compare`, whose flags are the settings of a training."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from snella.cli.commands import Compare, Train, parse_train, train_hints
from snella.cli.compare_flags import make_plan
from snella.cli.exit import Found, Stopped, again, exit_code
from snella.cli.flags import check_flags, divided, parse, value_of
from snella.config.recipe import read_recipe
from snella.config.schema import TrainConfig, run_folder
from snella.config.suites import is_suite_task, read_suite_task
from snella.config.validation import validate
from snella.distributed.environment import (
    asked_of_accelerate,
    check_alone,
    claimed_since_start,
    is_one_of_several,
    is_restarted,
)


def train_run(args: list[str], switches: Collection[str] = ()) -> int | Found:
    """Train as flags say; several processes that this one starts have its `switches` too."""
    config = _in_benchmark(parse_train(args, "train", _defaults(args)), args)
    validate(config)
    processes = config.devices if config.devices > 1 else asked_of_accelerate()
    if processes > 1 and not is_one_of_several():
        from snella.distributed.launch import start_processes

        words = ["train", *divided(args, ["devices"])[1], *sorted(switches)]
        return start_processes(processes, words)
    from snella.distributed.world import LOST, ProcessLost
    from snella.runs.folder import is_cross_validation, resume_command
    from snella.runs.train import train
    from snella.training.interrupt import Interrupted

    folder = run_folder(config)
    if is_restarted() and claimed_since_start(folder / "config.yaml"):
        config = config.changed(resume=True, overwrite=False)
    before = _written(folder / "config.yaml")
    if is_cross_validation(config):
        check_alone("a cross-validation (--folds without --fold)")
        from snella.compare.folds import cross_validate as train
    if config.push is not None:
        from snella.sharing.hub import check_push

        check_push(config.push)
    try:
        summary = train(config, finished=_report_trained)
    except Interrupted as stop:
        raise Stopped(exit_code(stop), resume_command(folder)) from None
    except ProcessLost:
        raise Stopped(1, resume_command(folder), LOST) from None
    except KeyboardInterrupt as stop:
        started = _written(folder / "config.yaml") != before  # it is written when the folder is claimed
        raise Stopped(exit_code(stop), resume_command(folder) if started else again(["train", *args])) from None
    if not summary:  # another process than the first
        return 0
    found = {"run": str(folder), **summary}
    if config.push is not None:
        from snella.sharing.push import push

        found["pushed"] = push(folder, config.push, private=config.private)
    return Found(found)


def _report_trained(folder: Path, data: Any) -> None:
    from snella.pages.page import report_trained  # what draws pages would keep the first step waiting

    report_trained(folder, data)


def _written(path: Path) -> int | None:
    """Return when a file was written, in ns; None where there is none."""
    return path.stat().st_mtime_ns if path.exists() else None


def compare_runs(args: list[str]) -> Found:
    """Compare as flags say."""
    names = [f.name for f in dataclasses.fields(Compare)]
    own, shared = divided(args, [*names, "no_combine"])
    check_flags(args, train_hints() | get_type_hints(Compare), "compare", negatable=True)
    command = parse(Compare, ["--help"] if {"-h", "--help"} & set(args) else own, "compare", negatable=True)

    def settings(flags: Sequence[str], defaults: TrainConfig | None) -> TrainConfig:
        default = _defaults(flags) if defaults is None else Train(config=defaults)
        return _in_benchmark(parse_train(flags, "compare", default), flags)

    plan = make_plan(command, shared, settings)
    from snella.compare.search import compare
    from snella.compare.tables import NAME
    from snella.pages.page import report_compared

    try:
        failed = compare(plan, workers=command.workers)
        report_compared(plan.folder)
        path = plan.folder / f"{NAME}.json"
        results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        values = {"folder": str(plan.folder), "failed": {str(run): why for run, why in failed.items()}, **results}
        return Found(values, 1 if failed else 0)
    except KeyboardInterrupt as stop:
        raise Stopped(exit_code(stop), again(["compare", *args])) from None


def _defaults(args: Sequence[str]) -> Train:
    """Return the recipe's values and its name; `--resume --out RUN` alone takes RUN/config.yaml for the recipe."""
    recipe, out = value_of(args, "recipe"), value_of(args, "out")
    if recipe is None and out and "--resume" in args and (Path(out) / "config.yaml").is_file():
        recipe = str(Path(out) / "config.yaml")
    if not recipe:
        return Train()
    return Train(recipe, read_suite_task(recipe) if is_suite_task(recipe) else read_recipe(recipe))


def _in_benchmark(command: Train, args: Sequence[str]) -> TrainConfig:
    """Return the config; with a suite's task, --data names the folder of the whole benchmark, or the task's own."""
    config = command.config
    if command.recipe and is_suite_task(command.recipe) and value_of(args, "data"):
        return config.changed(data=read_suite_task(command.recipe, config.data.source).data.source)
    return config
