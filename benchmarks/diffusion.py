"""Memory of a training step on the UNet of Stable Diffusion 1.5, method by method.

    OMP_NUM_THREADS=1 python -m benchmarks.diffusion                  512 px, batch 1, all methods: a few minutes
    python -m benchmarks.diffusion --methods lora,snella --size 32
    python -m benchmarks.diffusion --device cuda --backward           also seconds, and the peak of CUDA's allocator

The weights are random (memory does not depend on them) and in fp32, the adapted layers are the default ones: q, k, v
and output of all attention, both layers of all feed-forwards. The input is noisy latents, times and a text's
embedding, the loss the squared error of the predicted noise. One model is in memory at a time.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.memory import Memory, kept_bytes, step_memory
from benchmarks.run import OneLineParser, positive_int
from benchmarks.timing import synchronize
from snella.config.method import MethodConfig, Rematerialize
from snella.errors import UserError
from snella.files import write_json
from snella.methods.adapters import wrap
from snella.runs.devices import check_device

SHAPES: dict[str, Any] = {  # unet/config.json of Stable Diffusion 1.5, where it differs from the class's defaults
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,  # by the name's history the count of heads
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
}
PARAMETERS = 859_520_964  # of that UNet
TOKENS = 77  # of a text


@dataclass(frozen=True)
class Method:
    """A method of `snella.methods.adapters` with its `rematerialize`, under gradient checkpointing or not."""

    name: str
    rematerialize: Rematerialize = "inputs"
    checkpointing: bool = False


METHODS = {
    "full": Method("full"),
    "full-gc": Method("full", checkpointing=True),
    "lora": Method("lora"),
    "lora-gc": Method("lora", checkpointing=True),
    "snella-off": Method("snella", rematerialize="none"),
    "snella": Method("snella"),
    "snella-mlp": Method("snella", rematerialize="mlp"),
    "snella-gc": Method("snella", checkpointing=True),
}


@dataclass(frozen=True)
class StepCost:
    """Memory and time of a method's step."""

    method: str
    memory: Memory
    seconds: float | None  # of a forward and a backward pass, after one that is not counted; None: not asked for


def build_unet(shapes: dict[str, Any]) -> nn.Module:
    """Build the UNet and draw its weights at once (as the layers do it, one by one, takes ten times as long)."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        model: Any = UNet2DConditionModel(**shapes)
    model = model.to_empty(device="cpu")
    draw_weights(model)
    return model


def draw_weights(model: nn.Module) -> None:
    """Draw all weights anew: matrices by the width of their input, norms 1, biases 0."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            nn.init.constant_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0)


def measure(name: str, batch: int, size: int, r: int, device: torch.device, backward: bool) -> StepCost:
    """Build the UNet, wrap it and count what one forward pass keeps; `backward` also times steps."""
    method = METHODS[name]
    torch.manual_seed(0)
    base: Any = build_unet(SHAPES)
    if method.checkpointing:
        base.enable_gradient_checkpointing()
    settings = MethodConfig(name=method.name, r=r, rematerialize=method.rematerialize)
    model = wrap(base, settings, total_step=1000).to(device).train()
    inputs = (
        torch.randn(batch, 4, size, size, device=device),
        torch.randint(1000, (batch,), device=device),
        torch.randn(batch, TOKENS, SHAPES["cross_attention_dim"], device=device),
    )
    noise = torch.randn_like(inputs[0])

    def loss() -> Tensor:
        return F.mse_loss(model(*inputs).sample, noise)

    saved = kept_bytes(loss, model, (*inputs, noise))
    seconds, peak = _time(model, loss, device) if backward else (None, None)
    return StepCost(name, step_memory(model, saved, peak), seconds)


def _time(model: nn.Module, loss: Callable[[], Tensor], device: torch.device) -> tuple[float, int | None]:
    """Run a forward and a backward pass twice; return the second's seconds and, on CUDA, the allocator's peak."""
    start = 0.0
    for _ in range(2):
        model.zero_grad()
        synchronize(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        loss().backward()
        synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return time.perf_counter() - start, peak


def cost_table(rows: Sequence[StepCost], title: str) -> Table:
    """Make a table with a row for each method; MB are 10^6 bytes."""
    table = Table(title=title)
    table.add_column("method")
    titles = ["trainable", "kept, MB", "by LoRA's", "step, MB", "by LoRA's"]
    titles += ["step, s"] if any(row.seconds for row in rows) else []
    titles += ["allocator's peak, MB"] if any(row.memory.peak_bytes for row in rows) else []
    for name in titles:
        table.add_column(name, justify="right")
    lora = next((row.memory for row in rows if row.method == "lora"), None)
    for row in rows:
        memory = row.memory
        cells = [f"{memory.trainable:,}", f"{memory.saved_bytes / 1e6:,.0f}"]
        cells.append(f"{memory.saved_bytes / lora.saved_bytes:.3f}" if lora else "")
        cells += [f"{memory.total_bytes / 1e6:,.0f}", f"{memory.total_bytes / lora.total_bytes:.3f}" if lora else ""]
        if row.seconds is not None:
            cells.append(f"{row.seconds:.2f}")
        if memory.peak_bytes is not None:
            cells.append(f"{memory.peak_bytes / 1e6:,.0f}")
        table.add_row(row.method, *cells)
    table.caption = (
        "kept: by a forward pass; step: with weights, gradients, AdamW's two moments; not in it: "
        "what gradient checkpointing (-gc) computes again in the backward pass, a block at a time"
    )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the methods, print a table, write a JSON file and return the exit code."""
    args = _parser().parse_args(arguments)
    console, progress = Console(), Console(stderr=True)
    try:
        check_device(args.device, "fp32")
        device = torch.device(args.device)
        rows = []
        for name in args.methods:
            start = time.perf_counter()
            rows.append(measure(name, args.batch, args.size, args.r, device, args.backward))
            gc.collect()  # a wrapped model is a cycle; two of them would not fit everywhere
            kept = rows[-1].memory.saved_bytes
            progress.print(f"{name}: {kept / 1e6:,.0f} MB kept ({time.perf_counter() - start:.0f} s)")
        title = f"UNet of Stable Diffusion 1.5, {8 * args.size} px, batch {args.batch}, r {args.r}, fp32, {device.type}"
        console.print(cost_table(rows, title))
        settings = {name: getattr(args, name) for name in ("batch", "size", "r", "device")}
        result = {"settings": settings, "torch": torch.__version__, "methods": [asdict(row) for row in rows]}
        path = args.out / f"diffusion-b{args.batch}-{8 * args.size}px-{device.type}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result)
        console.print(f"results: {path}", soft_wrap=True, highlight=False)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(f"error: {error}; run: pip install 'snella[diffusers]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="python -m benchmarks.diffusion", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--methods", type=_methods, default=tuple(METHODS), help=f"of {', '.join(METHODS)}")
    parser.add_argument("--batch", type=positive_int, default=1, help="images in a batch (default: 1)")
    parser.add_argument("--size", type=positive_int, default=64, help="side of the latents, 1/8 of the image's (64)")
    parser.add_argument("--r", type=positive_int, default=32, help="rank of the updates (default: 32)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--backward", action="store_true", help="also time forward and backward passes")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of the result (runs/bench)")
    return parser


def _methods(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    if unknown := [name for name in names if name not in METHODS]:
        raise argparse.ArgumentTypeError(f"unknown method {unknown[0]} (methods: {', '.join(METHODS)})")
    return names


if __name__ == "__main__":
    sys.exit(main())
