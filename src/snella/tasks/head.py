"""The head fitted to frozen features before anything is tuned: a linear model whose L2 penalty is chosen on val.

    images ─ frozen backbone ─ features (n, d) ─ for each penalty, from the strongest: L-BFGS ─ the best on val ─ head

A head that starts from zero or from noise changes the features while it learns to read them. Kumar et al. 2022,
"Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", call this start LP-FT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from snella.data.dataset import Transform
from snella.data.images import Progress
from snella.data.loading import Examples, ImageBatches
from snella.errors import UserError
from snella.models.backbone import head_layer
from snella.training.evaluation import on_device

# of the sum of squared weights, of features with a mean square of 1, beside the mean loss: half decades
PENALTIES = tuple(10 ** (-half / 2) for half in range(-2, 10))
MOST = 8192  # images whose features are fitted; more move a linear head little
ITERATIONS = 100  # of L-BFGS, a penalty

Loss = Callable[[Tensor, Mapping[str, Tensor]], Tensor]  # of logits (n, K) and targets, a mean (0-d)


@dataclass(frozen=True)
class Features:
    """What a frozen backbone gives its head, (n, d) float64 on the CPU, and the targets of the same images."""

    values: Tensor
    targets: dict[str, Tensor]


def fit_head(
    model: nn.Module,
    splits: Mapping[str, Examples],
    transform: Transform,
    loss: Loss,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    progress: Progress,
) -> float:
    """Put the head that reads the frozen features best into the model, and return the penalty that val has chosen.

    Args:
        splits: train, which is fitted, and val, whose loss chooses; MOST images of each at most.
        transform: that of evaluation.
        loss: of logits and the targets of a split, the mean over its images.
        progress: is called with (images seen, images in all).

    Raises:
        UserError: the head is not one linear layer.
    """
    head = head_layer(model)
    parts = {name: _spread(len(splits[name])) for name in ("train", "val")}
    total, before, found = sum(map(len, parts.values())), 0, []
    for name, chosen in parts.items():
        examples: Any = Subset(cast(Any, splits[name]), chosen)  # it asks for no more than Examples have
        batches = ImageBatches(examples, transform, batch_size=batch_size, shuffle=False, seed=0, workers=workers)
        found.append(_features(model, head, batches, device, lambda done, start=before: progress(start + done, total)))
        before += len(chosen)
    train, val = found
    weight, bias, penalty = _fitted(train, val, loss, head)
    with torch.no_grad():
        head.weight.copy_(weight)
        if head.bias is not None:
            head.bias.copy_(bias)
    return penalty


def _spread(count: int) -> range:
    """Return indices below `count`, MOST at most, as far from each other as one distance allows."""
    return range(0, count, -(-count // MOST))


@torch.no_grad()
def _features(
    model: nn.Module, head: nn.Linear, batches: ImageBatches, device: torch.device, seen: Callable[[int], None]
) -> Features:
    """Return what reaches the head. The model is left in eval mode, on the device."""
    caught: list[Tensor] = []
    targets: dict[str, list[Tensor]] = {}
    hook = head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].double().cpu()))
    model.to(device).eval()
    done = 0
    try:
        for batch in batches.epoch(1):
            model(on_device({"image": batch["image"]}, device)["image"])
            if caught[-1].ndim != 2:
                raise UserError("--head-first: the head does not read one vector of each image; leave it out")
            for name in batch.keys() - {"image"}:
                targets.setdefault(name, []).append(batch[name])
            done += len(batch["image"])
            seen(done)
    finally:
        hook.remove()
    return Features(torch.cat(caught), {name: torch.cat(parts) for name, parts in targets.items()})


def _fitted(train: Features, val: Features, loss: Loss, head: nn.Linear) -> tuple[Tensor, Tensor, float]:
    """Return weight (K, d), bias (K,) and penalty of the linear model whose loss on val is the lowest."""
    mean = train.values.mean(0)
    # one scale for all: features that hardly vary would get large weights, and tuning moves them by more than that
    scale = (train.values - mean).square().mean().sqrt().clamp_min(1e-30)
    inputs = (train.values - mean) / scale
    weight = torch.zeros(head.out_features, head.in_features, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(head.out_features, dtype=torch.float64, requires_grad=head.bias is not None)
    best: tuple[float, Tensor, Tensor, float] | None = None
    for penalty in PENALTIES:  # each starts where the stronger one before it has ended
        _minimise(
            weight, bias, lambda p=penalty: loss(inputs @ weight.T + bias, train.targets) + p * weight.square().sum()
        )
        with torch.no_grad():
            plain = weight / scale
            shift = bias - plain @ mean
            score = loss(val.values @ plain.T + shift, val.targets).item()
            if best is None or score < best[0]:
                best = score, plain, shift, penalty
    assert best is not None
    return best[1:]


def _penalised(
    weight: Tensor, bias: Tensor, inputs: Tensor, targets: Mapping[str, Tensor], loss: Loss, penalty: float
) -> Tensor:
    return loss(inputs @ weight.T + bias, targets) + penalty * weight.square().sum()


def _minimise(weight: Tensor, bias: Tensor, objective: Callable[[], Tensor]) -> None:
    """Move weight and bias to the least of a convex objective."""
    tuned = [tensor for tensor in (weight, bias) if tensor.requires_grad]
    optimiser = torch.optim.LBFGS(tuned, max_iter=ITERATIONS, line_search_fn="strong_wolfe", tolerance_change=1e-9)

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = objective()
        value.backward()
        return value

    optimiser.step(closure)
