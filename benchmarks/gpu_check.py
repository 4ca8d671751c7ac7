"""Check and measure this package on a CUDA device: correctness, speed and memory, accuracy. A JSON file each.

    python -m benchmarks.gpu_check                                        all three, in twelve minutes at most
    python -m benchmarks.gpu_check --sections correct,speed               six minutes, and the other six:
    python -m benchmarks.gpu_check --sections accuracy --checkpoint vit_small_focus.safetensors --data elpv-mono.npz
    python -m benchmarks.gpu_check --dry                                  all of the script, tiny, on the CPU

Each section has its seconds, and writes what it has when they are over; a method or a run that fails is noted, and the
rest goes on. Nothing is downloaded. Files for a machine without packages of data and weights: benchmarks.gpu.pack.
Exit code 0; 1 where a test or a section failed; 2 without CUDA or with wrong flags.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))  # a bare machine has the tree alone

import numpy as np
import torch

from benchmarks.compare import machine
from benchmarks.gpu import correct, speed
from benchmarks.gpu.accuracy import METHODS, SEEDS, measure_accuracy
from benchmarks.gpu.tasks import Given, find_tasks, pack
from benchmarks.run import OneLineParser, positive_int
from snella.errors import UserError
from snella.files import check_writable, write_json
from snella.machine import usable_cores
from snella.runs.folder import versions

SECONDS = {"correct": 110, "speed": 235, "accuracy": 350}
DRY_SECONDS = {"correct": 60, "speed": 60, "accuracy": 60}
DRY_TESTS = ("tests/ops/test_sampling.py",)


@dataclass(frozen=True)
class Check:
    """A call of this script, as its sections need it."""

    device: str
    dry: bool
    out: Path
    runs: Path
    workers: int
    seconds: dict[str, int]
    given: Given
    start: float

    def save(self, section: str, result: dict[str, Any]) -> None:
        """Write a section's file, whole or in part."""
        write_json(self.out / f"{section}.json", {**about(self.device), **result})

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.start:6.1f} s  {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections that are asked for and return the exit code."""
    args = _parser().parse_args(arguments)
    if not args.dry and not torch.cuda.is_available():
        print("error: there is no CUDA device here; --dry runs the script, tiny, on the CPU", file=sys.stderr)
        return 2
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory())) if args.dry else None
        check = _check(args, temporary)
        try:
            check_writable(check.out)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        good = [run_section(name, check) for name in args.sections]
        print(f"results in {check.out}")
        return 0 if all(good) else 1


def run_section(name: str, check: Check) -> bool:
    """Run a section, write its file, and return whether all is well; what it breaks on is noted in the file."""
    begin = time.monotonic()
    sections = {"correct": _correct, "speed": _speed, "accuracy": _accuracy}
    try:
        result = sections[name](check)
        good = result.get("passed", True)
    except Exception as error:  # the other sections still count
        result, good = {"error": f"{type(error).__name__}: {error}"}, False
        check.say(f"{name} broke: {result['error']}")
    check.save(name, {"seconds": round(time.monotonic() - begin, 1), **result})
    check.say(f"{name}: {'done' if good else 'failed'}")
    return good


def about(device: str) -> dict[str, Any]:
    """Return the card and the versions of what results depend on."""
    found: dict[str, Any] = {"machine": machine(device), "versions": versions()}
    try:
        found["versions"]["triton"] = version("triton")
    except PackageNotFoundError:
        found["versions"]["triton"] = None
    if device.startswith("cuda"):
        card = torch.cuda.get_device_properties(device)
        found["card"] = {
            "name": card.name,
            "memory_bytes": card.total_memory,
            "capability": f"{card.major}.{card.minor}",
            "multiprocessors": card.multi_processor_count,
            "cuda": torch.version.cuda,
        }
    return found


def _correct(check: Check) -> dict[str, Any]:
    options = ("-k", "zeros") if check.dry else ()
    files = DRY_TESTS if check.dry else None
    seconds = check.seconds["correct"]
    return correct.check_correctness(
        check.device, seconds, check.say, files=files, options=options, workers=check.workers
    )


def _speed(check: Check) -> dict[str, Any]:
    plan = speed.DRY if check.dry else speed.GPU
    return speed.measure_speed(
        check.device, check.seconds["speed"], check.say, lambda found: check.save("speed", found), plan
    )


def _accuracy(check: Check) -> dict[str, Any]:
    tasks = find_tasks(check.given, check.runs / "data")
    for name, reason in tasks.skipped.items():
        check.say(f"{name} skipped: {reason}")
    result = measure_accuracy(
        tasks.configs,
        check.runs,
        check.seconds["accuracy"],
        check.say,
        lambda found: check.save("accuracy", {"skipped": tasks.skipped, **found}),
        workers=check.workers,
        methods=METHODS[:2] if check.dry else METHODS,
        rates=(1e-3,) if check.dry else None,
        seeds=SEEDS[:2] if check.dry else SEEDS,
    )
    return {"skipped": tasks.skipped, **result}


def _check(args: argparse.Namespace, temporary: Path | None) -> Check:
    """Return the call's settings; `temporary` is a folder for a dry run."""
    settings: dict[str, Any] = {"device": "cuda", "workers": 0}
    data, backbone = tuple(args.data), args.backbone
    if temporary is not None:
        settings = {"device": "cpu", "workers": 0, "image_size": 32, "epochs": 1, "batch_size": 8, "r": 4}
        settings |= {"pretrained": False, "val_fraction": 0.3, "test_fraction": 0.3}
        data, backbone = (*data, str(_few_images(temporary / "few.npz"))), backbone or "test_vit"
    return Check(
        device="cpu" if args.dry else "cuda",
        dry=args.dry,
        out=args.out or (temporary or Path("runs/gpu")),
        runs=args.runs or ((temporary or Path("runs/gpu")) / "accuracy"),
        workers=args.workers or (1 if args.dry else max(2, min(12, usable_cores() - 2))),
        seconds={name: getattr(args, name) or (DRY_SECONDS if args.dry else SECONDS)[name] for name in SECONDS},
        given=Given(data, args.checkpoint, backbone, settings),
        start=time.monotonic(),
    )


def _few_images(file: Path) -> Path:
    """Write an array file of two kinds of noise, dark and bright."""
    drawn = np.random.default_rng(0).integers(0, 128, (24, 32, 32, 1), np.uint8)
    labels = [i % 2 for i in range(len(drawn))]
    images = [np.repeat(image + np.uint8(127 * label), 3, -1) for image, label in zip(drawn, labels, strict=True)]
    pack(file, images, labels, ("dark", "bright"), [i // 2 % 3 for i in range(len(drawn))])
    return file


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m benchmarks.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sections", type=_sections, default=tuple(SECONDS), help=f"of {','.join(SECONDS)}")
    for name, seconds in SECONDS.items():
        parser.add_argument(f"--{name}", type=positive_int, metavar="SECONDS", help=f"its time (default: {seconds})")
    parser.add_argument("--data", nargs="+", default=[], help="folders, .npz files or packaged sets to train on")
    parser.add_argument("--checkpoint", help="file with the weights of --backbone, instead of a packaged one's")
    parser.add_argument("--backbone", help="timm's name of the network (default: the packaged ViT's)")
    parser.add_argument("--workers", type=positive_int, help="processes at once (default: by the cores, 12 at most)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: runs/gpu)")
    parser.add_argument("--runs", type=Path, help="run folders, gone on with (default: runs/gpu/accuracy)")
    parser.add_argument("--dry", action="store_true", help="tiny, on the CPU; into a temporary folder or --out")
    return parser


def _sections(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in SECONDS:
            raise argparse.ArgumentTypeError(f"{name!r} is unknown; choose from {', '.join(SECONDS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
