"""The end of a step's backward pass: gradients and losses of the parts summed, and whether somebody asks to stop."""

from __future__ import annotations

import hashlib
import signal
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from snella.distributed import world

BUCKET = 32 * 2**20  # entries that are exchanged at once, beside which there is a copy of them
UNLIKE = "their machines compute differently: use machines of one kind, and go on with --resume"
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def sum_gradients(model: nn.Module, loss: Tensor, asked: int | None) -> tuple[Tensor, int | None]:
    """Sum the trainable parameters' gradients over the processes, in their place.

    A parameter that has a gradient in one of them then has one in all, and one that has none in any of them has none.

    Args:
        model: the same in all processes.
        loss: of this process's part (0-d).
        asked: the signal by which this process is asked to stop, None for none.

    Returns:
        The loss of the batch, and the signal that some process has got, None for none.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    there = [float(p.grad is not None) for p in trained]
    facts = torch.tensor([float(loss), *(float(asked == number) for number in SIGNALS), *there], dtype=torch.float64)
    world.summed(facts)
    total, signals, there = facts[0], facts[1 : 1 + len(SIGNALS)].tolist(), facts[1 + len(SIGNALS) :].tolist()
    reached = [p for p, found in zip(trained, there, strict=True) if found]
    for bucket in _buckets(reached):
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flat = world.summed(torch.cat([part.flatten() for part in parts]))
        for p, part, value in zip(bucket, parts, flat.split([p.numel() for p in bucket]), strict=True):
            p.grad = part.copy_(value.view_as(part))
    return total.to(loss), next((number for number, found in zip(SIGNALS, signals, strict=True) if found), None)


def check_budgets(record: Mapping[str, Any], step: int) -> None:
    """Refuse to go on where the processes have moved budgets differently. Raises UserError in all of them."""
    if world.count() > 1:
        digest = hashlib.sha256(repr(record.get("kept")).encode()).hexdigest()
        world.check_same(f"budgets after step {step}", digest, UNLIKE)


def check_weights(tuned: Mapping[str, Tensor]) -> None:
    """Refuse to go on where the processes' weights are not the same to the bit. Raises UserError in all of them."""
    if world.count() > 1:
        sums = [zlib.crc32(t.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()) for t in tuned.values()]
        world.check_same("weights", sums, UNLIKE)


def agreed_signal(asked: int | None) -> int | None:
    """Return the signal by which some process is asked to stop, the same in all of them."""
    found = [number for number in world.gathered(asked) if number is not None]
    return found[0] if found else None


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield the parameters in groups of one type, of `BUCKET` entries at most, or of one."""
    group: list[nn.Parameter] = []
    for p in parameters:
        if group and (p.dtype != group[0].dtype or sum(q.numel() for q in group) + p.numel() > BUCKET):
            yield group
            group = []
        group.append(p)
    if group:
        yield group
