"""The command line: flags to a typed config, one function per command, errors in a line or two.

What loads torch is imported inside the command that needs it, so that help and wrong flags are instant.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from snella.cli.commands import (
    App,
    Check,
    Compare,
    Data,
    Evaluate,
    Merge,
    Predict,
    Report,
    Soup,
    Train,
    parse_train,
    train_hints,
)
from snella.cli.compare_flags import make_plan
from snella.cli.exit import Stopped, again, end_with_parent, exit_code, explain, ready_output, terminable
from snella.cli.flags import check_flags, divided, parse, value_of
from snella.cli.threads import wait_asleep_if_busy
from snella.config.fields import flag, nearest
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
from snella.errors import UserError
from snella.report.state import show_runs
from snella.version import __version__

HELP = f"""\
snella {__version__}: fine-tune pre-trained vision backbones by a sparse update that fits its budget.

  snella train --data FOLDER      fine-tune; --recipe NAME_OR_FILE gives defaults (snella train --recipe demo)
  snella compare --data FOLDER    run methods side by side: rates chosen on val, seeds, a table, a chart
  snella evaluate RUN             test a run: metrics, per-class table, figures
  snella predict RUN [IMAGE...]   predict images, or the images of a folder
  snella merge RUN --out FOLDER   write a checkpoint that loads without snella, ONNX with --onnx, a LoRA with --lora
  snella soup RUN... --out FOLDER average the weights of runs into one model that is a run too
  snella report RUN               write its page, one HTML file; of a comparison too (train and compare write it)
  snella app RUN [RUN...]         serve a page on this machine to try runs on: drop images, see what they say
  snella check RUN                verify a run folder: what is wrong with it, and what to do
  snella data PATH                show what is found in a data set

snella alone shows the runs in runs/. snella COMMAND --help lists a command's flags with their defaults. --debug, with
any command, shows tracebacks.
"""

C = TypeVar("C")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (without the program's name) and return its exit code, one of `snella.cli.exit`."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")  # Pillow's; such images are refused in a line
    args = [a for a in args if a != "--debug"]
    args = args[1:] if args[:1] == ["--"] else args  # torchrun ... -m snella -- train: see docs/cluster.md
    ready_output()
    with terminable(args):
        end_with_parent()
        try:
            return _dispatch(args)
        except BaseException as error:
            if debug:
                traceback.print_exc()
            return explain(error, args, debug=debug)


def _dispatch(args: list[str]) -> int:
    if not args and show_runs(Path("runs")):
        return 0
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if args else 2
    if args[0] == "--version":
        print(f"snella {__version__}")
        return 0
    if args[0] not in COMMANDS:
        near = nearest(args[0], COMMANDS)
        raise UserError(f"unknown command {args[0]}{near} (commands: {', '.join(COMMANDS)}; see snella --help)")
    os.environ["MPLBACKEND"] = "agg"  # figures go to files, whatever the terminal or a notebook asks for
    if "torch" not in sys.modules:
        wait_asleep_if_busy()
    if args[0] != "train":
        check_alone(f"snella {args[0]}")
    return COMMANDS[args[0]](args[1:])


def _train(args: list[str]) -> int:
    config = _in_benchmark(parse_train(args, "train", _defaults(args)), args)
    validate(config)
    processes = config.devices if config.devices > 1 else asked_of_accelerate()
    if processes > 1 and not is_one_of_several():
        from snella.distributed.launch import start_processes

        return start_processes(processes, ["train", *divided(args, ["devices"])[1]])
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
    try:
        train(config, finished=_report_trained)
    except Interrupted as stop:
        raise Stopped(exit_code(stop), resume_command(folder)) from None
    except ProcessLost:
        raise Stopped(1, resume_command(folder), LOST) from None
    except KeyboardInterrupt as stop:
        started = _written(folder / "config.yaml") != before  # it is written when the folder is claimed
        raise Stopped(exit_code(stop), resume_command(folder) if started else again(["train", *args])) from None
    return 0


def _report_trained(folder: Path, data: Any) -> None:
    from snella.pages.page import report_trained  # what draws pages would keep the first step waiting

    report_trained(folder, data)


def _written(path: Path) -> int | None:
    """Return when a file was written, in ns; None where there is none."""
    return path.stat().st_mtime_ns if path.exists() else None


def _compare(args: list[str]) -> int:
    names = [f.name for f in dataclasses.fields(Compare)]
    own, shared = divided(args, [*names, "no_combine"])
    check_flags(args, train_hints() | get_type_hints(Compare), "compare", negatable=True)
    command = parse(Compare, ["--help"] if {"-h", "--help"} & set(args) else own, "compare", negatable=True)

    def settings(flags: Sequence[str], defaults: TrainConfig | None) -> TrainConfig:
        default = _defaults(flags) if defaults is None else Train(config=defaults)
        return _in_benchmark(parse_train(flags, "compare", default), flags)

    plan = make_plan(command, shared, settings)
    from snella.compare.search import compare
    from snella.pages.page import report_compared

    try:
        failed = compare(plan, workers=command.workers)
        report_compared(plan.folder)
        return 1 if failed else 0
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


def _evaluate(args: list[str]) -> int:
    command = _parse(Evaluate, args)
    folder = _run(command.run, "evaluate")
    from snella.runs.evaluate import evaluate

    evaluate(folder, **_options(command))
    return 0


def _predict(args: list[str]) -> int:
    command = _parse(Predict, args)
    folder = _run(command.run, "predict")
    if command.json and command.csv:
        raise UserError("--json and --csv contradict each other: pass one of them")
    from snella.runs.folder import read_about, state_of
    from snella.tasks.registry import task_named

    options = _options(command)
    if task_named(read_about(folder)["task"]).generates:
        from snella.runs.generate import generate

        _refuse(command, _IMAGE_FLAGS, "makes images and takes none")
        generate(folder, **{name: value for name, value in options.items() if name not in _IMAGE_FLAGS})
        return 0
    from snella.runs.predict import predict

    _refuse(command, _GENERATION_FLAGS, "generates no images")
    others = [Path(path) for path in command.images if state_of(Path(path)) in ("started", "finished")]
    options |= {"images": [path for path in command.images if Path(path) not in others], "others": others}
    unread = predict(folder, **{name: value for name, value in options.items() if name not in _GENERATION_FLAGS})
    return 1 if unread else 0


_IMAGE_FLAGS = ("images", "csv", "out", "explain", "batch_size")  # of predict, for runs that look at images
_GENERATION_FLAGS = ("prompt", "n", "seed", "steps", "guidance")  # for those that make some


def _refuse(command: Predict, names: tuple[str, ...], why: str) -> None:
    """Refuse flags that this run does not read."""
    for name in names:
        if getattr(command, name) != getattr(Predict, name):
            what = "IMAGE..." if name == "images" else flag(name)
            raise UserError(f"{what}: {command.run} {why}; leave it out")


def _merge(args: list[str]) -> int:
    command = _parse(Merge, args)
    folder = _run(command.run, "merge")
    if not command.out:
        raise UserError("no folder for the checkpoint: snella merge RUN --out FOLDER")
    if command.lora is not None:
        if command.onnx:
            raise UserError("--onnx: a LoRA is not a model to export; leave --onnx or --lora out")
        from snella.runs.lora import merge_as_lora

        merge_as_lora(folder, out=command.out, lora=command.lora)
        return 0
    from snella.runs.load import merge

    merge(folder, out=command.out, onnx=command.onnx)
    return 0


def _soup(args: list[str]) -> int:
    command = _parse(Soup, args)
    if not command.out:
        raise UserError("no folder for the soup: snella soup RUN RUN... --out FOLDER")
    from snella.compare.soup import soup

    options = {name: value for name, value in _options(command).items() if name not in ("runs", "out")}
    soup([Path(run) for run in command.runs], out=Path(command.out), **options)
    return 0


def _check(args: list[str]) -> int:
    command = _parse(Check, args)
    folder = _run(command.run, "check")
    from snella.runs.check import check

    return 1 if check(folder) else 0


def _report(args: list[str]) -> int:
    command = _parse(Report, args)
    if not command.run:
        raise UserError("no folder: snella report RUN, or COMPARISON, with what snella train or compare wrote")
    from snella.pages.page import report

    report(Path(command.run), out=command.out, explain=command.explain)
    return 0


def _app(args: list[str]) -> int:
    command = _parse(App, args)
    _run(next(iter(command.runs), ""), "app")
    from snella.app.serve import serve

    serve(**_options(command))
    return 0


def _data(args: list[str]) -> int:
    command = _parse(Data, args)
    if not command.data:
        raise UserError("no data: snella data PATH names a folder, a manifest or a known data set")

    from snella.console import Terminal, print_line
    from snella.report.sheet import check_sheet, contact_sheet
    from snella.runs.prepare import SHEET, doubts, pictures_by_name, read_run_data
    from snella.tasks.registry import task_for, task_named

    if command.sheet is not None:
        check_sheet(Path(command.sheet))
    given = {name: value for name, value in dataclasses.asdict(command).items() if name not in ("strict", "sheet")}
    name = command.task or ("classify" if command.crops else task_for(command.data))
    config = TrainConfig.of(**given | {"task": name})
    validate(config)
    found = read_run_data(config, Terminal(stderr=True))
    Terminal().print(task_named(name).describe(found), soft_wrap=True)  # a path broken over lines cannot be copied
    if command.sheet is not None:
        title = f"{found.root}: {found.layout}"
        contact_sheet(pictures_by_name(found), Path(command.sheet), title=title, line=SHEET)
        print_line(Terminal(), f"contact sheet in {command.sheet}")
    suspected = doubts(config, found)
    for line in suspected:
        print_line(Terminal(), line)
    return 1 if command.strict and suspected else 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "compare": _compare,
    "evaluate": _evaluate,
    "predict": _predict,
    "merge": _merge,
    "soup": _soup,
    "report": _report,
    "app": _app,
    "check": _check,
    "data": _data,
}


def _options(command: Any) -> dict[str, Any]:
    return {f.name: getattr(command, f.name) for f in dataclasses.fields(command) if f.name != "run"}


def _run(run: str, command: str) -> Path:
    if not run:
        raise UserError(f"no run folder: snella {command} RUN, with the folder that snella train wrote")
    return Path(run)


def _parse(command: type[C], args: Sequence[str]) -> C:
    """Return the command that the flags describe, with its name and fields in the messages."""
    name = command.__name__.lower()
    check_flags(args, get_type_hints(command), name)
    return parse(command, args, name)
