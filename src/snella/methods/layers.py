"""Which layers a method adapts, and which it cannot."""

from __future__ import annotations

import re
from typing import Any

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from snella.config.method import METHODS, MethodConfig
from snella.errors import UserError
from snella.tuner.targets import adaptable, candidates, default_targets, head_names


def with_convolutions(model: nn.Module) -> str:
    """Return the default targets of a model, and its convolutions that can be adapted but the first and the last.

    In a diffusion model's UNet these are most of its weights; a transformer's only one, of its patches, is its first.
    """
    layers = [name for name, part in model.named_modules() if isinstance(part, nn.Conv2d) and adaptable(part)]
    inner = [name for name in layers if name not in ("conv_in", "conv_out", "pos_embed.proj")]
    return "|".join([f"(?:{default_targets(model)})", *map(re.escape, inner)])


def targets_of(names: tuple[str, ...] | None) -> list[str] | str | None:
    """Return the names as PEFT wants them: a list of ends of names, or one text, a regular expression or all-linear."""
    if names is None:
        return None
    one = len(names) == 1 and (names[0] == "all-linear" or re.search(r"[*+?|\\^$()\[\]]", names[0]))
    return names[0] if one else list(names)


def adapted_layers(model: nn.Module, settings: MethodConfig) -> dict[str, Any]:
    """Return the layers to adapt and the modules to train, as PEFT's configurations take them."""
    heads = head_names(model)
    asked = targets_of(settings.target_modules) or default_targets(model)
    if asked == "all-linear":  # PEFT's own shorthand would take the head of a timm model
        asked = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    layers: dict[str, Any] = {"target_modules": asked, "modules_to_save": heads or None}
    rule = LoraConfig(**layers)  # matches no head
    found = {name: part for name, part in model.named_modules() if check_target_module_exists(rule, name)}
    passed = [name for name, part in found.items() if isinstance(part, nn.Conv2d) and not adaptable(part)]
    if isinstance(asked, str) and passed:  # as snella's tuner does: a pattern passes over those
        layers["target_modules"] = f"(?!(?:{'|'.join(map(re.escape, passed))})$)(?:{asked})"
        found = {name: part for name, part in found.items() if name not in passed}
    if not found:
        raise UserError(
            f"target_modules={targets_of(settings.target_modules)!r} matches no layer of {type(model).__name__} "
            f"that can be adapted; choose from: {', '.join(candidates(model))}"
        )
    for name in found:
        if reason := refusal(settings.name, model, name, settings.r):
            able = [m for m in METHODS if not any(refusal(m, model, other, settings.r) for other in found)]
            raise UserError(f"{settings.name} cannot adapt {name}: {reason}; methods that can: {', '.join(able)}")
    return layers


def refusal(method: str, model: nn.Module, name: str, r: int) -> str | None:
    """Return why the method, as PEFT 0.20 and 0.21 have it, cannot adapt this layer; None if it can."""
    if METHODS[method].build is None:
        return None
    layer: Any = model.get_submodule(name)
    if not adaptable(layer):
        groups = f" in {layer.groups} groups" if isinstance(layer, nn.Conv2d) else ""
        return f"it is a {type(layer).__name__}{groups}, and only plain Linear and Conv2d have one matrix to adapt"
    if method == "shira":
        if isinstance(layer, nn.Conv2d):
            return "it is a Conv2d, and PEFT has SHiRA for Linear only"
        m, n = layer.out_features, layer.in_features
        if r * (m + n) > m * n:
            return f"r={r} asks for more entries than its {m} x {n} weight has; use r={m * n // (m + n)} or less"
    if method == "oft":
        if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
            return "PEFT's OFT adds up overlapping patches, which changes the model before any training"
        if isinstance(layer, nn.Linear) and _channels_last(model, name):
            return "its input has the shape (b, h, w, c), which PEFT's OFT takes for (b, c, h, w)"
    return None


def _channels_last(model: nn.Module, name: str) -> bool:
    """Return whether a Linear stands among convolutions, as in ConvNeXt's blocks, and so works on images."""
    owners = [name.rsplit(".", depth)[0] for depth in (1, 2) if name.count(".") >= depth]
    return any(isinstance(part, nn.Conv2d) for owner in owners for part in model.get_submodule(owner).children())
