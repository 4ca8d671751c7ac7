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
from typing import Any

from snella.cli.commands import (
    App,
    Check,
    Evaluate,
    Merge,
    Predict,
    Push,
    Report,
    Soup,
)
from snella.cli.data import show_data
from snella.cli.exit import Found, end_with_parent, explain, ready_output, terminable
from snella.cli.flags import parse_command, switched
from snella.cli.threads import wait_asleep_if_busy
from snella.cli.training import compare_runs, train_run
from snella.config.fields import flag, nearest
from snella.console import print_json, printing
from snella.distributed.environment import check_alone
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
  snella push RUN OWNER/NAME      upload it to the Hugging Face hub, with a model card; never the data
  snella check RUN                verify a run folder: what is wrong with it, and what to do
  snella data PATH                show what is found in a data set

snella alone shows the runs in runs/. snella COMMAND --help lists a command's flags with their defaults. With any
command --quiet prints nothing but errors, --json what it came to, as one JSON object, and --debug tracebacks. evaluate,
predict, merge and app take a run of the hub as well, OWNER/NAME. snella --completion bash|zsh|fish completes flags in a
shell: eval "$(snella --completion bash)".
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (without the program's name) and return its exit code, one of `snella.cli.exit`."""
    args = list(sys.argv[1:] if argv is None else argv)
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")  # Pillow's; such images are refused in a line
    args = args[1:] if args[:1] == ["--"] else args  # torchrun ... -m snella -- train: see docs/cluster.md
    args, given = switched(args)
    debug, as_json = "--debug" in given, "--json" in given
    ready_output()
    with terminable(args), printing(quiet="--quiet" in given, json=as_json):
        end_with_parent()
        try:
            done = _dispatch(args, given)
            if as_json and isinstance(done, Found):
                print_json(done.values)
            return done.code if isinstance(done, Found) else done
        except BaseException as error:
            if debug:
                traceback.print_exc()
            return explain(error, args, debug=debug)


def _dispatch(args: list[str], given: set[str]) -> int | Found:
    if not args and show_runs(Path("runs")):
        return 0
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if args else 2
    if args[0] == "--version":
        print(f"snella {__version__}")
        return 0
    if args[0] == "--completion":
        from snella.cli.completion import script

        print(script(args[1] if args[1:] else "", COMMANDS), end="")
        return 0
    if args[0] not in COMMANDS:
        near = nearest(args[0], COMMANDS)
        raise UserError(f"unknown command {args[0]}{near} (commands: {', '.join(COMMANDS)}; see snella --help)")
    os.environ["MPLBACKEND"] = "agg"  # figures go to files, whatever the terminal or a notebook asks for
    if "torch" not in sys.modules:
        wait_asleep_if_busy()
    if args[0] != "train":
        check_alone(f"snella {args[0]}")
    if args[0] == "train":
        return train_run(args[1:], given)
    return COMMANDS[args[0]](args[1:])


def _evaluate(args: list[str]) -> Found:
    command = parse_command(Evaluate, args)
    folder = _run(command.run, "evaluate")
    from snella.runs.evaluate import evaluate

    return Found({"run": command.run, **evaluate(folder, **_options(command))})


def _predict(args: list[str]) -> int:
    command = parse_command(Predict, args)
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


def _merge(args: list[str]) -> Found:
    command = parse_command(Merge, args)
    folder = _run(command.run, "merge")
    if not command.out:
        raise UserError("no folder for the checkpoint: snella merge RUN --out FOLDER")
    if command.lora is not None:
        if command.onnx:
            raise UserError("--onnx: a LoRA is not a model to export; leave --onnx or --lora out")
        from snella.runs.lora import merge_as_lora

        return Found({"run": command.run, **merge_as_lora(folder, out=command.out, lora=command.lora)})
    from snella.runs.load import merge

    return Found({"run": command.run, **merge(folder, out=command.out, onnx=command.onnx)})


def _soup(args: list[str]) -> Found:
    command = parse_command(Soup, args)
    if not command.out:
        raise UserError("no folder for the soup: snella soup RUN RUN... --out FOLDER")
    from snella.compare.soup import soup

    options = {name: value for name, value in _options(command).items() if name not in ("runs", "out")}
    return Found({"run": command.out, **soup([Path(run) for run in command.runs], out=Path(command.out), **options)})


def _check(args: list[str]) -> Found:
    command = parse_command(Check, args)
    if not command.run:
        raise UserError(NO_RUN.format("check"))
    from snella.runs.check import check

    seen: list[dict[str, str]] = []
    wrong = check(Path(command.run), seen=seen)
    return Found({"run": command.run, "wrong": wrong, "parts": seen}, 1 if wrong else 0)


def _report(args: list[str]) -> Found:
    command = parse_command(Report, args)
    if not command.run:
        raise UserError("no folder: snella report RUN, or COMPARISON, with what snella train or compare wrote")
    from snella.pages.page import report

    return Found({"report": str(report(Path(command.run), out=command.out, explain=command.explain))})


def _app(args: list[str]) -> int:
    command = parse_command(App, args)
    if not command.runs:
        raise UserError(NO_RUN.format("app"))
    from snella.app.serve import serve
    from snella.sharing.fetch import run_folder_of

    options = {name: value for name, value in _options(command).items() if name != "runs"}
    serve([str(run_folder_of(run)) for run in command.runs], **options)
    return 0


def _push(args: list[str]) -> Found:
    command = parse_command(Push, args)
    if not command.run or not command.name:
        raise UserError("a run and a name are needed: snella push RUN OWNER/NAME")
    from snella.sharing.push import push

    own = {name: value for name, value in _options(command).items() if name != "name"}
    return Found({"run": command.run, "pushed": push(Path(command.run), command.name, **own)})


COMMANDS: dict[str, Callable[[list[str]], int | Found]] = {
    "train": train_run,
    "compare": compare_runs,
    "evaluate": _evaluate,
    "predict": _predict,
    "merge": _merge,
    "soup": _soup,
    "report": _report,
    "push": _push,
    "app": _app,
    "check": _check,
    "data": show_data,
}


def _options(command: Any) -> dict[str, Any]:
    return {f.name: getattr(command, f.name) for f in dataclasses.fields(command) if f.name != "run"}


def _run(run: str, command: str) -> Path:
    """Return the folder of a run that is given as a folder or as OWNER/NAME."""
    if not run:
        raise UserError(NO_RUN.format(command))
    from snella.sharing.fetch import run_folder_of

    return run_folder_of(run)


NO_RUN = "no run folder: snella {} RUN, with the folder that snella train wrote"
