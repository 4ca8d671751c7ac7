"""One comparison: the methods' memory, each alone, and then their times, all in turn."""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from benchmarks.memory import Memory, kept_bytes, step_memory
from benchmarks.methods import METHODS
from benchmarks.timing import (
    Contender,
    Failures,
    evaluation_time,
    interleaved,
    make_contender,
    noting,
    synchronize,
    train_step,
)
from snella.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
EVALUATION_SHARE = 0.25  # of the time given
MEMORY_SHARE = 0.6  # of the time given, after which no method's memory is begun where methods may be left out


@dataclass(frozen=True)
class Settings:
    """The models, methods and batch sizes of a comparison, and how long it may take."""

    model: str = "vit_base_patch16_224"
    methods: tuple[str, ...] = tuple(METHODS)
    batches: tuple[int, ...] = (8,)
    r: int = 32
    classes: int = 100
    device: str = "cpu"
    precision: str = "fp32"
    warmup: int = 1
    rounds: int = 5
    minutes: float = 6.0
    seed: int = 0


def compare(settings: Settings, say: Callable[[str], None], failed: Failures | None = None) -> dict[str, Any]:
    """Measure all methods at all batch sizes and return settings, machine and results; `say` gets the progress.

    Where `failed` is given, a method that fails or has no time left is noted there and left out.

    Raises:
        UserError: timm has no such model, or a method cannot adapt it.
    """
    start = time.monotonic()
    torch.manual_seed(settings.seed)
    try:
        base = timm.create_model(settings.model, num_classes=settings.classes)
    except RuntimeError as error:
        raise UserError(f"model {settings.model!r} cannot be made: {error}") from error
    if settings.device.startswith("cuda"):
        base.to(settings.device)  # copied and wrapped there, which is quicker
    seconds = 60 * settings.minutes / len(settings.batches)
    results = [
        {"batch": batch, "methods": _measure_batch(settings, base, batch, seconds, say, failed)}
        for batch in settings.batches
    ]
    return {
        "settings": asdict(settings),
        "machine": machine(settings.device),
        "seconds": time.monotonic() - start,
        "results": results,
    }


def machine(device: str) -> dict[str, Any]:
    """Return what the times depend on besides the settings."""
    return {
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(torch.device(device)) if device.startswith("cuda") else None,
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _measure_batch(
    settings: Settings,
    base: nn.Module,
    batch: int,
    seconds: float,
    say: Callable[[str], None],
    failed: Failures | None,
) -> dict[str, dict[str, Any]]:
    """Measure all methods at one batch size: memory one by one, then times in turn. Return a row for each method."""
    start = time.monotonic()
    device, dtype = torch.device(settings.device), DTYPES[settings.precision]
    size = resolve_model_data_config(base)["input_size"]
    images = torch.randn(batch, *size, dtype=dtype, device=device)
    labels = torch.randint(settings.classes, (batch,), device=device)

    def contender(name: str) -> Contender:
        return make_contender(name, base, r=settings.r, device=device, dtype=dtype)

    rows: dict[str, dict[str, Any]] = {}
    for name in settings.methods:
        if failed is not None and time.monotonic() > start + MEMORY_SHARE * seconds:
            failed[name] = "no time was left to measure it"
            continue
        say(f"batch {batch}: memory of {name}")
        with noting(failed, name):
            memory = _memory(contender, name, images, labels)
            rows[name] = {"summary": METHODS[name].summary, **asdict(memory)}

    contenders: list[Contender] = []
    for name in list(rows):
        with noting(failed, name):
            contenders.append(contender(name))
    until = (time.monotonic() if failed is None else start) + (1 - EVALUATION_SHARE) * seconds
    _add_times(settings, rows, contenders, (images, labels), until, EVALUATION_SHARE * seconds, say, failed)
    return rows


def _add_times(
    settings: Settings,
    rows: dict[str, dict[str, Any]],
    contenders: Sequence[Contender],
    batch: tuple[Tensor, Tensor],
    until: float,
    evaluation: float,
    say: Callable[[str], None],
    failed: Failures | None,
) -> None:
    """Time steps until `until`, then evaluations for so many seconds, in turn, and put them into the methods' rows."""
    images, labels = batch
    steps = interleaved(
        {c.name: lambda c=c: train_step(c, images, labels) for c in contenders},
        warmup=settings.warmup,
        rounds=settings.rounds,
        deadline=until,
        say=lambda text: say(f"batch {len(images)}: training steps, {text}"),
        failed=failed,
    )
    for c in contenders:
        c.model.eval()
    evaluated = [c for c in contenders if METHODS[c.name].evaluated and c.name in steps]
    evaluations = interleaved(
        {c.name: lambda c=c: evaluation_time(c.model, images) for c in evaluated},
        warmup=settings.warmup,
        rounds=settings.rounds,
        deadline=(max(until, time.monotonic()) if failed is None else until) + evaluation,
        say=lambda text: say(f"batch {len(images)}: evaluation, {text}"),
        failed=failed,
    )
    for name, times in steps.items():
        rows[name]["forward_backward"] = _summary([sample.forward_backward for sample in times])
        rows[name]["step"] = _summary([sample.step for sample in times])
        rows[name]["evaluation"] = _summary(evaluations[name]) if name in evaluations else None
    for name in rows.keys() - steps.keys():
        del rows[name]


def _memory(contender: Callable[[str], Contender], name: str, images: Tensor, labels: Tensor) -> Memory:
    """Measure a method's memory with nothing else on the device, and leave nothing of it there."""
    device = images.device
    gc.collect()  # the method before
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    alone = contender(name)
    saved = kept_bytes(lambda: alone.loss(images, labels), alone.model, (images, labels))
    peak = None
    if device.type == "cuda":
        train_step(alone, images, labels)  # makes the optimiser's state
        torch.cuda.reset_peak_memory_stats(device)
        train_step(alone, images, labels)
        synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
    return step_memory(alone.model, saved, peak)


def _summary(samples: Sequence[float]) -> dict[str, Any]:
    return {"median": median(samples), "samples": list(samples)}
