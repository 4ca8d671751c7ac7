"""One training step looked into: kernels launched, waits of the host, and the update's share of the time."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import Contender, synchronize
from snella.ops import product

TRITON_KERNELS = (  # of `snella.ops.triton_kernels`
    *("distances_kernel", "softmax_mix_kernel", "digit_counts_kernel", "selected_kernel", "add_gated_kernel"),
    *("gate_backward_kernel", "softmax_backward_kernel", "distance_backward_kernel"),
)
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "hipLaunchKernel", "hipModuleLaunchKernel", "hipExtModuleLaunch")
WAITS = ("Synchronize",)  # cudaStreamSynchronize, cudaDeviceSynchronize, cudaEventSynchronize
LISTED = 15  # kernels that are named


class Event(NamedTuple):
    """What the profiler saw: a call of the runtime, or work of the device."""

    name: str
    on_device: bool
    seconds: float


def plain_step(contender: Contender, images: Tensor, labels: Tensor) -> None:
    """Make a step as a training does, without a wait between its parts."""
    contender.loss(images, labels).backward()
    contender.steps += 1
    contender.optimizer.step()
    if contender.after_step is not None:
        contender.after_step(contender.steps)
    contender.optimizer.zero_grad(set_to_none=True)


def profile_step(contender: Contender, images: Tensor, labels: Tensor, *, warm: int) -> dict[str, Any]:
    """Return what a step after `warm` others launches, where the host waits, and how much goes into the updates.

    `update_share` is the time between start and end of each building of an update, forward and backward, on the device
    (on the CPU: of the host), over that of the step; `triton_share` counts this package's own kernels alone, over the
    time of all kernels.
    """
    device = images.device

    def step() -> None:
        plain_step(contender, images, labels)

    for _ in range(warm):
        step()
    synchronize(device)
    found = {"method": contender.name, "batch": len(images), "waits": waits(step, device)}
    synchronize(device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        step()
        synchronize(device)
    found |= summary(_events(profiler))
    return found | update_time(step, device)


def _events(profiler: Any) -> Iterator[Event]:
    for event in profiler.events():
        on_device = event.device_type != DeviceType.CPU
        yield Event(event.name, on_device, (event.device_time_total if on_device else event.cpu_time_total) / 1e6)


def summary(events: Iterable[Event]) -> dict[str, Any]:
    """Count launches and waits of the host, and add up the device's work by kernel; the last wait is the profiler's."""
    events = list(events)
    calls = Counter(event.name for event in events if not event.on_device)
    work = [event for event in events if event.on_device]
    copies = [event for event in work if event.name.startswith(("Memcpy", "Memset"))]
    kernels = [event for event in work if event not in copies]
    seconds: dict[str, float] = {}
    for kernel in kernels:
        seconds[kernel.name] = seconds.get(kernel.name, 0.0) + kernel.seconds
    longest = sorted(seconds.items(), key=lambda entry: -entry[1])[:LISTED]
    counts, total = Counter(kernel.name for kernel in kernels), sum(seconds.values())
    own = sum(time for name, time in seconds.items() if name.startswith(TRITON_KERNELS))
    return {
        "launches": sum(count for name, count in calls.items() if name.startswith(LAUNCHES)),
        "synchronisations": sum(count for name, count in calls.items() if any(wait in name for wait in WAITS)),
        "operators": sum(count for name, count in calls.items() if name.startswith(("aten::", "snella::"))),
        "copies": len(copies),
        "kernels": len(kernels),
        "kernel_seconds": total,
        "triton_seconds": own,
        "triton_share": own / total if total else None,
        "longest": [{"name": n[:120], "count": counts[n], "seconds": s} for n, s in longest],
    }


def waits(step: Callable[[], None], device: torch.device) -> dict[str, int] | None:
    """Return where PyTorch makes the host wait for the device in a step: file and line -> how often. None: no CUDA."""
    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = (
        f"{w.filename.rpartition('site-packages/')[2]}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)
    )
    return dict(Counter(places))


def update_time(step: Callable[[], None], device: torch.device) -> dict[str, Any]:
    """Time a step, and in it each making of an update and of its gradients."""
    synchronize(device)
    with _timed_updates(device) as spans:
        begin = _mark(device)
        step()
        end = _mark(device)
    synchronize(device)
    whole = _between(begin, end)
    updates = sum(_between(*span) for span in spans)
    return {"step_seconds": whole, "update_seconds": updates, "update_share": updates / whole}


@contextmanager
def _timed_updates(device: torch.device) -> Iterator[list[tuple[Any, Any]]]:
    spans: list[tuple[Any, Any]] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begin = _mark(device)
            result = function(*args, **kwargs)
            spans.append((begin, _mark(device)))
            return result

        return call

    build, backward = timed(product.build), timed(product.build_backward)
    with patch.object(product, "build", build), patch.object(product, "build_backward", backward):
        yield spans


def _mark(device: torch.device) -> Any:
    """Return a moment: of the device's stream on CUDA, else of the host."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(begin: Any, end: Any) -> float:
    return end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1000
