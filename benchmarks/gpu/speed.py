"""Speed and memory on a device: the methods on a base, a large and a small model, and one step of each looked into."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config

from benchmarks.compare import DTYPES, Settings, compare
from benchmarks.gpu.step_profile import profile_step
from benchmarks.timing import Failures, make_contender, noting

PROFILES = 0.15  # of a model's time, at its end


@dataclass(frozen=True)
class Measured:
    """A model at a batch size, and its share of the time."""

    model: str
    batch: int
    share: float


@dataclass(frozen=True)
class SpeedPlan:
    """What is measured, and how."""

    models: tuple[Measured, ...]
    methods: tuple[str, ...]
    profiled: tuple[str, ...]  # methods of which a step is looked into
    precision: str
    r: int
    warmup: int  # rounds, and steps before the one that is looked into
    rounds: int


GPU = SpeedPlan(
    models=(
        Measured("vit_base_patch16_224", 32, 0.35),
        Measured("vit_large_patch16_224", 64, 0.45),
        Measured("vit_small_patch16_224", 8, 0.2),  # a GPU waits for its launches
    ),
    methods=(
        *("full", "lora", "lora-gc", "dora"),
        *("snella-off", "snella", "snella-mlp", "snella-gc", "snella-sampled", "published"),
    ),
    profiled=("lora", "snella", "snella-sampled"),
    precision="bf16",
    r=32,
    warmup=2,
    rounds=10,
)
DRY = SpeedPlan(
    models=(Measured("test_vit", 1, 1.0),),
    methods=("full", "lora", "snella", "snella-sampled", "published"),
    profiled=("snella-sampled",),
    precision="fp32",
    r=4,
    warmup=1,
    rounds=2,
)


def measure_speed(
    device: str,
    seconds: float,
    say: Callable[[str], None],
    save: Callable[[dict[str, Any]], None],
    plan: SpeedPlan = GPU,
) -> dict[str, Any]:
    """Measure all models and methods; `save` is given the result after each model. Return the result.

    A method that fails is named in `failed`, with the reason, and so is a model for which no time was left.
    """
    end = time.monotonic() + seconds
    found: dict[str, Any] = {"models": [], "failed": {}}
    for at, measured in enumerate(plan.models):
        left = end - time.monotonic()
        own = left * measured.share / sum(m.share for m in plan.models[at:])
        if left <= 0:
            found["failed"][measured.model] = "no time was left to measure it"
            continue
        try:
            found["models"].append(_measure(measured, device, own, say, plan))
        except Exception as error:  # the other models still count
            found["failed"][measured.model] = f"{type(error).__name__}: {error}"[:500]
        save(found)
    return found


def _measure(
    measured: Measured, device: str, seconds: float, say: Callable[[str], None], plan: SpeedPlan
) -> dict[str, Any]:
    start = time.monotonic()
    failed: Failures = {}
    settings = Settings(
        model=measured.model,
        methods=plan.methods,
        batches=(measured.batch,),
        r=plan.r,
        device=device,
        precision=plan.precision,
        warmup=plan.warmup,
        rounds=plan.rounds,
        minutes=(1 - PROFILES) * seconds / 60,
    )
    result = compare(settings, lambda text: say(f"{measured.model}, {text}"), failed)
    profiles = _profiles(settings, plan.profiled, start + seconds, say, failed)
    return {**result, "failed": failed, "profiles": profiles}


def _profiles(
    settings: Settings, methods: Sequence[str], end: float, say: Callable[[str], None], failed: Failures
) -> dict[str, dict[str, Any]]:
    """Look into a step of each of the methods; those that come after `end` are left out, but the first."""
    device, dtype = torch.device(settings.device), DTYPES[settings.precision]
    torch.manual_seed(settings.seed)
    base = timm.create_model(settings.model, num_classes=settings.classes).to(device)
    size = resolve_model_data_config(base)["input_size"]
    images = torch.randn(settings.batches[0], *size, dtype=dtype, device=device)
    labels = torch.randint(settings.classes, (len(images),), device=device)
    found: dict[str, dict[str, Any]] = {}
    for name in methods:
        if found and time.monotonic() > end:
            failed[f"profile of {name}"] = "no time was left"
            continue
        say(f"{settings.model}, a step of {name} looked into")
        with noting(failed, f"profile of {name}"):
            contender = make_contender(name, base, r=settings.r, device=device, dtype=dtype)
            found[name] = profile_step(contender, images, labels, warm=settings.warmup)
    return found
