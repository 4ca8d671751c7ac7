"""An MLP behind a trained layer, with an adapter, and what its graph keeps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import peft
import torch
from torch import Tensor, nn

from snella import SnellaConfig
from snella.ops import source_of
from snella.tuner import SnellaLayer
from support.tuned import Settings, layers, merged_settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

Level = bool | Literal["mlp"]
LEVELS: tuple[Level, ...] = (False, True, "mlp")
Run = Callable[[nn.Module, Tensor], Tensor]
X = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(0))


class Mlp(nn.Module):
    """x -> norm -> fc1 -> act -> drop -> fc2, behind a trained layer so that the norm's input has a gradient."""

    def __init__(self, norm: nn.Module | None = None, act: nn.Module | None = None, p: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Linear(16, 16)
        self.norm = norm or nn.LayerNorm(16)
        for parameter in self.norm.parameters():  # at its initial weights a norm of a norm is hardly another
            nn.init.normal_(parameter, 1.5)
        self.fc1 = nn.Linear(16, 64)
        self.act = act or nn.GELU()
        self.drop = nn.Sequential(nn.Dropout(p), nn.Identity())
        self.fc2 = nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.fc2(self.drop(self.act(self.fc1(self.norm(x)))))


def tuned(model: nn.Module, level: Level, **changes: Unpack[Settings]) -> peft.PeftModel:
    """A copy of the model with an adapter, in training mode."""
    defaults: Settings = {"r": 8, "target_modules": ["fc1", "fc2"], "modules_to_save": ["stem"], "rematerialize": level}
    torch.manual_seed(1)
    wrapped = peft.get_peft_model(copy.deepcopy(model), SnellaConfig(**merged_settings(defaults, changes))).train()
    assert isinstance(wrapped, peft.PeftModel)
    return wrapped


def gradients(model: nn.Module, x: Tensor, run: Run | None = None) -> list[Tensor]:
    torch.manual_seed(2)
    model.zero_grad()
    out = model(x) if run is None else run(model, x)
    out.square().mean().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that the graph of a forward pass keeps: every saved tensor of every node, by storage."""
    storages: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen, queue = set(), [model(x).sum().grad_fn]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        queue += [parent for parent, _ in node.next_functions]
        saved = list(getattr(node, "saved_tensors", ()))
        for name in dir(node):
            # `raw` tells without unpacking whether a tensor is there: hooks would make it again
            if name.startswith("_raw_saved_") and "hook" not in repr(raw := getattr(node, name)):
                tensors = raw if isinstance(raw, tuple) else (raw,)
                saved += [t.data for t in tensors if isinstance(getattr(t, "data", None), Tensor)]
        for tensor in saved:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in own:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def assert_bits_equal(model: nn.Module, x: Tensor, run: Run | None = None, **changes: Unpack[Settings]) -> None:
    expected = gradients(tuned(model, False, **changes), x, run)
    assert len(expected) > 4
    for level in LEVELS[1:]:
        actual = gradients(tuned(model, level, **changes), x, run)
        assert len(actual) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True)), level


def sources(model: nn.Module, x: Tensor) -> dict[str, bool]:
    """Whether each adapted layer's input comes with a note."""
    seen: dict[str, bool] = {}

    def look(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, SnellaLayer)
        seen[layer.name] = source_of(args[0]) is not None

    hooks = [layer.register_forward_pre_hook(look) for layer in layers(model)]
    model(x)
    for hook in hooks:
        hook.remove()
    return seen
