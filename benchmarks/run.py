"""Compare ways of fine-tuning: time and memory of a training step, and time of evaluation.

    python -m benchmarks.run                                              ViT-B/16, batch 8, all methods, CPU
    python -m benchmarks.run --methods full,snella --batches 1,2,4,8,16,32
    python -m benchmarks.run --device cuda --precision bf16 --rounds 30 --chart docs/benchmark.png
    python -m benchmarks.run --result FILE.json [FILE.json ...] --chart docs/benchmark.png

A chart of several results has each method where the first of them that has it says, relative to LoRA in the same one.
Weights and images are random. All models stay in memory, so that each round can run every method once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.console import Console

from benchmarks.chart import draw_chart
from benchmarks.compare import DTYPES, Settings, compare
from benchmarks.methods import METHODS
from benchmarks.tables import tables
from snella.errors import UserError
from snella.runs.devices import check_device

MODELS = (
    "vit_small_patch16_224",
    "vit_base_patch16_224",
    "vit_large_patch16_224",
    "swin_base_patch4_window7_224",
    "convnext_base",
)


class OneLineParser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; --help lists the flags\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or read an earlier result; print tables, write what the flags ask for and return the exit code."""
    args = _parser().parse_args(arguments)
    console = Console()
    try:
        if args.chart is not None and args.result is None and "lora" not in args.methods:
            raise UserError("the chart is relative to LoRA: add lora to --methods")
        results = [_measured(args)] if args.result is None else [_read(path) for path in args.result]
        for table in (table for result in results for table in tables(result)):
            console.print(table)
        if args.result is None:
            console.print(f"results: {_write(results[0], args.out)}", soft_wrap=True, highlight=False)
        if args.chart is not None:
            console.print(f"chart: {draw_chart(results, args.chart)}", soft_wrap=True, highlight=False)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(". ")[0]
        print(f"error: {reason}; take fewer --methods or a smaller batch", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _measured(args: argparse.Namespace) -> dict[str, Any]:
    check_device(args.device, args.precision)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    fields = {name: value for name, value in vars(args).items() if name in Settings.__dataclass_fields__}
    console = Console(stderr=True)
    with console.status("") as status:
        return compare(Settings(**fields), status.update if console.is_terminal else console.print)


def _read(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text())
        result["results"][0]["methods"]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is not a result of a comparison ({error})") from error
    return result


def _write(result: dict[str, Any], folder: Path) -> Path:
    """Write the result to a file named after its settings, in the place of an earlier one, and return the path."""
    settings = result["settings"]
    batches = "-".join(map(str, settings["batches"]))
    path = folder / f"{settings['model']}-b{batches}-{settings['device']}-{settings['precision']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(unfinished, path)
    return path


def _parser() -> OneLineParser:
    defaults = Settings()
    parser = OneLineParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="methods:\n" + "\n".join(f"  {name:13}{method.summary}" for name, method in METHODS.items()),
    )

    def flag(name: str, help: str, **options: Any) -> None:
        default = options.get("default")
        text = ",".join(map(str, default)) if isinstance(default, tuple) else default
        parser.add_argument(f"--{name}", help=help if default is None else f"{help} (default: {text})", **options)

    flag("model", f"timm's name of a model: {', '.join(MODELS)}, or another", default=defaults.model)
    flag("methods", "comma-separated; see below", type=_methods, default=defaults.methods, metavar="NAMES")
    flag("batches", "batch sizes, comma-separated", type=_batches, default=defaults.batches, metavar="SIZES")
    flag("r", "rank of the updates", type=positive_int, default=defaults.r)
    flag("classes", "outputs of the head", type=positive_int, default=defaults.classes)
    flag("device", "cpu, cuda or cuda:N", default=defaults.device)
    flag("precision", "of weights and images", choices=tuple(DTYPES), default=defaults.precision)
    flag("threads", "CPU threads (default: torch's choice)", type=positive_int)
    flag("warmup", "rounds before those that count", type=positive_int, default=defaults.warmup)
    flag("rounds", "rounds that count", type=positive_int, default=defaults.rounds)
    flag("minutes", "after these no round begins; two are run in any case", type=float, default=defaults.minutes)
    flag("seed", "of weights and images", type=int, default=defaults.seed)
    flag("out", "folder of the results", type=Path, default=Path("runs/bench"))
    flag("result", "do not measure: show these earlier results", type=Path, metavar="FILE", nargs="+")
    flag("chart", "draw time against memory into this file", type=Path, metavar="PATH")
    return parser


def _methods(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in METHODS:
            raise argparse.ArgumentTypeError(f"{name!r} is unknown; choose from {', '.join(METHODS)}")
    return names


def _batches(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(map(positive_int, text.split(","))))


def positive_int(text: str) -> int:
    """Read a flag's value."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
