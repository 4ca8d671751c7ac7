"""The published formulation of the update, as a module that takes a Linear's place.

A plain re-statement of the papers' formulas (arXiv 2411.01800 and 2510.24037) on PyTorch's own operations, to compare
with; none of snella's operations are used:

    D = scale · Σ_h (-1)^h ‖A[h,i] − B[h,j]‖₂,   K = D + alpha · softmax_j(D / gamma) + beta      (n, m)
    t = s-quantile of |K|,   update = K · stopgrad(|K|) · 1[|K| > t],   y = base(x) + x update

Every matrix has its own update and its own product: a fused qkv counts as three. Dropout and drop-path, which the
published training adds, are left out here as in the other methods.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from snella.errors import UserError
from snella.tuner.targets import default_targets, head_names


def published_update(
    A: Tensor, B: Tensor, alpha: Tensor, gamma: Tensor, beta: Tensor, *, sparsity: float, scale: float
) -> Tensor:
    """Compute the update (n, m) of one matrix from factors A (H, n, r/H), B (H, m, r/H) and three scalars (0-d).

    torch.quantile refuses more than 16,777,216 entries up to torch 2.13.
    """
    A, B, alpha, gamma, beta = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (A, B, alpha, gamma, beta))
    signs = torch.tensor([(-1.0) ** head for head in range(len(A))], dtype=A.dtype, device=A.device)
    D = (scale * signs.view(-1, 1, 1) * torch.cdist(A, B)).sum(0)
    K = D + alpha * torch.softmax(D / gamma, dim=1) + beta
    magnitude = K.detach().abs()
    t = float(torch.quantile(magnitude.flatten(), sparsity))  # waits for the device, as published
    return K * torch.where(magnitude > t, magnitude, 0)


class PublishedLinear(nn.Module):
    """A frozen Linear and the update beside it, x (..., n) -> (..., m).

    Args:
        base: the layer whose place this takes.
        matrices: number of matrices of equal height that its weight stacks.
        r, heads, sparsity, scale: of each update.
        recompute: keep of the update only the input, and compute it a second time in the backward pass.
    """

    def __init__(
        self,
        base: nn.Linear,
        *,
        matrices: int,
        r: int,
        heads: int = 2,
        sparsity: float = 0.7,
        scale: float = 0.1,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.base = base
        self.sparsity, self.scale, self.recompute = sparsity, scale, recompute
        n, m, width = base.in_features, base.out_features // matrices, r // heads
        self.A = nn.ParameterList(torch.empty(heads, n, width) for _ in range(matrices))
        self.B = nn.ParameterList(torch.empty(heads, m, width) for _ in range(matrices))
        self.scalars = nn.ParameterList(torch.tensor([1.0, 1.0, 0.0]) for _ in range(matrices))  # alpha, gamma, beta
        for factor in (*self.A, *self.B):
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self.A, self.B, self.scalars, strict=True)
        if self.recompute:
            outputs = [checkpoint(self._output, x, *part, use_reentrant=False) for part in parts]
        else:
            outputs = [self._output(x, *part) for part in parts]
        return self.base(x) + torch.cat(outputs, dim=-1)

    def _output(self, x: Tensor, A: Tensor, B: Tensor, scalars: Tensor) -> Tensor:
        alpha, gamma, beta = scalars
        update = published_update(A, B, alpha, gamma, beta, sparsity=self.sparsity, scale=self.scale)
        return x @ update.to(x.dtype)


def wrap_published(model: nn.Module, *, r: int, sparsity: float, recompute: bool = False) -> nn.Module:
    """Put the published formulation into snella's default layers; it and the head train. The model is changed.

    Raises:
        UserError: one of these layers is not a Linear, or the model is of no known family.
    """
    targets = re.compile(default_targets(model))
    names = [name for name, _ in model.named_modules() if targets.fullmatch(name)]
    model.requires_grad_(False)
    for name in head_names(model):
        model.get_submodule(name).requires_grad_(True)
    for name in names:
        layer = model.get_submodule(name)
        if not isinstance(layer, nn.Linear):
            raise UserError(f"the published formulation adapts Linear layers, and {name} is a {type(layer).__name__}")
        parent, _, last = name.rpartition(".")
        matrices = 3 if last == "qkv" else 1
        new = PublishedLinear(layer, matrices=matrices, r=r, sparsity=sparsity, recompute=recompute)
        setattr(model.get_submodule(parent), last, new)
    return model
