"""Heat maps: how much each place of an image speaks for a class.

    images ─ model ─ ... ─ the layer ─ ... ─ logit of the class
                             │   └ gradient of the logit
                             └ activation × gradient, summed over the channels: a number for each place

That is HiResCAM (Draelos and Carin 2020, "Use HiResCAM instead of Grad-CAM for faithful explanations"). With a mean
over the places and one linear layer behind it, the numbers are the places' shares of the logit, and the map is that of
Grad-CAM. The layer is the last one at which the logit still depends on every place: the last feature map of most
networks, and of a ViT that reads its class token the first normalisation in its last block, behind which the other
tokens no longer count.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor, nn

from snella.errors import UserError
from snella.models.backbone import head_widths, logits_of

INSTALL = "pip install 'snella[explain]'"
LEAST = 2  # places of a side below which a map shows nothing
MOST_TOKENS = 8  # before those of the places: class, distillation, registers
REACHED = 0.5  # share of the places that the logit has to depend on: a ReLU shuts some off

Layout = Literal["channels first", "channels last", "tokens"]


@dataclass(frozen=True)
class MapLayer:
    """The layer that maps are made at, and how its output is laid out: (b, c, n, n), (b, n, n, c) or (b, k + n², c)."""

    module: nn.Module
    layout: Layout
    side: int  # n, the places along a side


def check_captum() -> None:
    """Raise UserError where the package is missing that makes heat maps."""
    if find_spec("captum") is None:
        raise UserError(f"heat maps need the package captum; run: {INSTALL}")


def find_layer(model: nn.Module, image_size: int) -> MapLayer:
    """Return the layer at which heat maps of a classifier are made. The model is left in eval mode.

    Args:
        model: images (b, 3, s, s) to logits (b, K).
        image_size: s, pixels.

    Raises:
        UserError: there is no layer whose output has places.
    """
    model.eval()
    image = torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    image = image.to(next(model.parameters()).device).requires_grad_()
    with torch.enable_grad(), _outputs_of(model) as outputs:
        logits = logits_of(model(image)).float()
    widths = head_widths(model)
    layers = [(_laid_out(module, found, widths), found) for module, found in outputs]
    places = [(layer, found) for layer, found in layers if layer is not None]
    if places:
        logit = logits[0, logits[0].argmax()]
        gradients = torch.autograd.grad(logit, [found for _, found in places], allow_unused=True)
        reached = [
            (layer, found)
            for (layer, found), gradient in zip(places, gradients, strict=True)
            if gradient is not None and (_by_place(layer, gradient.abs()) > 0).float().mean() > REACHED
        ]
        wide = [layer for layer, found in reached if found.shape[_channels(layer)] in widths]
        if found := wide or [layer for layer, _ in reached]:
            return found[-1]
    raise UserError(f"no heat maps of this {type(_inside(model)).__name__}: no layer of it has an output with places")


def heat_maps(model: nn.Module, layer: MapLayer, images: Tensor, targets: Tensor, *, mirrored: bool = False) -> Tensor:
    """Return how much each place speaks for a class, (b, n, n) from 0 to 1: 1 is the strongest of its image.

    What speaks against the class is 0, as is all of an image where nothing speaks for it.

    Args:
        images: (b, 3, s, s), as the model takes them.
        targets: (b,) the class of each.
        mirrored: take the mean of an image's and its mirror image's maps, as where logits are the mean of both.
    """
    found = _signed(model, layer, images, targets)
    if mirrored:
        found = (found + _signed(model, layer, images.flip(-1), targets).flip(-1)) / 2
    found = found.clamp(min=0)
    return found / found.amax((1, 2), keepdim=True).clamp(min=torch.finfo(found.dtype).tiny)


def _signed(model: nn.Module, layer: MapLayer, images: Tensor, targets: Tensor) -> Tensor:
    """Return activation × gradient of each place, (b, n, n) in fp32."""
    from captum.attr import LayerGradientXActivation

    method = LayerGradientXActivation(lambda x: logits_of(model(x)).float(), layer.module)
    with torch.enable_grad():
        found = method.attribute(images.detach().requires_grad_(), target=targets.to(images.device))
    assert isinstance(found, Tensor)  # one layer was asked for, and it has one output
    return _by_place(layer, found).detach().float()


def _by_place(layer: MapLayer, found: Tensor) -> Tensor:
    """Return the sums over the channels at each place, (b, n, n)."""
    sums = found.sum(_channels(layer))
    if layer.layout != "tokens":
        return sums
    return sums[:, -(layer.side**2) :].unflatten(1, (layer.side, layer.side))


def _channels(layer: MapLayer) -> int:
    return 1 if layer.layout == "channels first" else -1


def _laid_out(module: nn.Module, found: Tensor, widths: set[int]) -> MapLayer | None:
    """Return the layer that a module of this output would be; None where its output has no places.

    Inside an attention there are outputs of these shapes that are none: its projections, whose tokens are a part of
    what comes of a place, and its matrices, which have no convolution.
    """
    if isinstance(getattr(module, "base_layer", module), nn.Linear):
        return None
    if found.ndim == 4:
        _, first, second, last = found.shape
        if first in widths or any(isinstance(part, nn.Conv2d) for part in module.modules()):
            square = second if second == last else 0
            return MapLayer(module, "channels first", square) if square >= LEAST else None
        if last in widths and first == second >= LEAST:
            return MapLayer(module, "channels last", first)
    if found.ndim == 3 and found.shape[2] in widths:
        side = math.isqrt(found.shape[1])
        if side >= LEAST and found.shape[1] - side**2 <= MOST_TOKENS:
            return MapLayer(module, "tokens", side)
    return None


@contextmanager
def _outputs_of(model: nn.Module) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """Collect the outputs of the modules that are called once, in the order in which they are done."""
    calls = Counter[int]()
    outputs: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, _: object, found: object) -> None:
        calls[id(module)] += 1
        if isinstance(found, Tensor) and found.requires_grad and found.ndim in (3, 4):
            outputs.append((module, found))

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
        outputs[:] = [(module, found) for module, found in outputs if calls[id(module)] == 1]


def _inside(model: nn.Module) -> nn.Module:
    """Return the model that PEFT has wrapped, or itself."""
    get = getattr(model, "get_base_model", None)
    return get() if callable(get) else model  # pyright: ignore[reportReturnType]
