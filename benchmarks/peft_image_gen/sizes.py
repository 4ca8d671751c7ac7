"""Sizes of SNELLA and LoRA in PEFT's method comparisons: parameters, the adapter's file, memory of a training step.

    python -m benchmarks.peft_image_gen.sizes                      both networks, about five minutes of a core
    python -m benchmarks.peft_image_gen.sizes --networks image

The weights are random, in bf16, the factors in fp32, as PEFT's comparisons have them. All of these sizes grow by the
same for each further block of a kind, and what a forward pass keeps also for each further token: so they are counted
for one block of each kind and for one more, for few tokens and for more, and taken from there to the whole.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
from rich.console import Console
from rich.table import Table

from benchmarks.memory import kept_bytes
from benchmarks.peft_image_gen.entries import ENTRIES
from benchmarks.peft_image_gen.networks import NETWORKS, Network, build
from benchmarks.run import OneLineParser
from snella.files import write_json
from snella.training.memory import weight_bytes

TOKENS = (24, 48)  # of a sample, to count with
METHODS = ("lora", "snella")


@dataclass(frozen=True)
class Sizes:
    """Of a method on a network; bytes but for the first two."""

    parameters: int  # how many, with the adapter's
    trainable: int  # how many
    adapter: int  # tensors of the adapter's file
    weights: int  # of the network and the adapter
    trained: int  # gradients and AdamW's two moments
    kept: int  # by a forward pass, for the backward pass
    block: int  # by the largest block when gradient checkpointing makes it again; 0 without

    @property
    def step(self) -> int:
        """Return the bytes of a training step, without what exists only during an operation."""
        return self.weights + self.trained + self.kept + self.block


Counts = dict[str, float]


def measure(network: Network, config: Callable[[], PeftConfig], tokens: tuple[int, int] = TOKENS) -> Sizes:
    """Count with few blocks and tokens, and return the sizes of the whole network and step."""
    one = (1,) * len(network.depth)
    counted = {depth: _count(network, config(), depth, tokens) for depth in (one, *_one_more(one))}

    def whole(name: str, depth: tuple[int, ...] = network.depth) -> int:
        first, more = counted[one][name], [counted[further][name] for further in _one_more(one)]
        steps = zip(depth, more, strict=True)
        return round(first + sum((blocks - 1) * (count - first) for blocks, count in steps))

    def of_all_tokens(few: int, many: int) -> int:
        return round(few + (many - few) / (tokens[1] - tokens[0]) * (network.tokens - tokens[0]))

    def kept(way: str, depth: tuple[int, ...] = network.depth) -> int:
        few, many = (whole(f"{way} {count}", depth) for count in tokens)
        return of_all_tokens(few, many)

    block = 0
    if network.checkpointing:
        block = max(kept("plain", further) for further in _one_more(one)) - kept("plain", one)
    sizes = {name: whole(name) for name in ("parameters", "trainable", "adapter", "weights", "trained")}
    return Sizes(**sizes, kept=kept("checkpointed" if network.checkpointing else "plain"), block=block)


def _one_more(depth: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [tuple(blocks + (i == j) for j, blocks in enumerate(depth)) for i in range(len(depth))]


def _count(network: Network, config: PeftConfig, depth: tuple[int, ...], tokens: Sequence[int]) -> Counts:
    """Count on a network of this depth: its parameters, and what is kept for each number of tokens."""
    gc.collect()  # the model before, which is a cycle
    torch.manual_seed(0)
    base = build(network, depth)
    model = get_peft_model(base, config).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found: Counts = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trainable": sum(parameter.numel() for parameter in trained),
        "adapter": sum(t.nbytes for t in get_peft_model_state_dict(model, save_embedding_layers=False).values()),
        "weights": weight_bytes(model),
        "trained": 3 * sum(parameter.nbytes for parameter in trained),
    }
    for way in ("plain", "checkpointed") if network.checkpointing else ("plain",):
        if way == "checkpointed":
            base.enable_gradient_checkpointing()
        for count in tokens:
            inputs = network.inputs(network.shapes, network.samples, count)
            found[f"{way} {count}"] = kept_bytes(lambda given=inputs: network.loss(model, given), model, inputs)
    return found


def sizes_table(title: str, rows: Mapping[str, Sizes]) -> Table:
    """Make a table with a row for each method; MB are 10^6 bytes."""
    table = Table(title=title)
    table.add_column("method")
    for name in ("trainable", "adapter, MB", "weights, MB", "kept, MB", "block again, MB", "step, MB", "by LoRA's"):
        table.add_column(name, justify="right")
    for method, sizes in rows.items():
        in_mb = (sizes.adapter, sizes.weights, sizes.kept, sizes.block, sizes.step)
        ratio = f"{sizes.step / rows['lora'].step:.3f}" if "lora" in rows else ""
        table.add_row(method, f"{sizes.trainable:,}", *(f"{size / 1e6:,.1f}" for size in in_mb), ratio)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table for each network, write a JSON file and return the exit code."""
    args = _parser().parse_args(arguments)
    console, progress = Console(), Console(stderr=True)
    found: dict[str, dict[str, Sizes]] = {}
    try:
        for name in args.networks:
            found[name] = {}
            for method in METHODS:
                progress.print(f"{NETWORKS[name].name}: {method}")
                found[name][method] = measure(NETWORKS[name], lambda n=name, m=method: getattr(ENTRIES[n](), m))
            network = NETWORKS[name]
            title = f"{network.name}: {network.samples} samples of {network.tokens} tokens, bf16"
            console.print(sizes_table(title, found[name]))
    except ImportError as error:
        print(f"error: {error}; run: pip install 'snella[diffusers]' 'diffusers>=0.37'", file=sys.stderr)
        return 2
    path = args.out / "peft-comparisons.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, Any] = {name: {method: asdict(of) for method, of in rows.items()} for name, rows in found.items()}
    write_json(path, {"torch": torch.__version__, "networks": sizes})
    console.print(f"results: {path}", soft_wrap=True, highlight=False)
    return 0


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m benchmarks.peft_image_gen.sizes", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--networks", type=_names, default=tuple(NETWORKS), help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of the result (runs/bench)")
    return parser


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    if unknown := [name for name in names if name not in NETWORKS]:
        raise argparse.ArgumentTypeError(f"unknown network {unknown[0]} (networks: {', '.join(NETWORKS)})")
    return names


if __name__ == "__main__":
    sys.exit(main())
