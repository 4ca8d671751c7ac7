"""Backbones small enough for tests, and what they say of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snella.models.backbone import BackboneSpec, build_backbone, logits_of

VIT = "test_vit"  # timm's own miniature: 16-pixel patches at 160


def spec(
    name: str = VIT,
    *,
    pretrained: bool = False,
    checkpoint: Path | str | None = None,
    image_size: int | None = None,
    num_classes: int = 3,
    **options: Any,
) -> BackboneSpec:
    file = None if checkpoint is None else str(checkpoint)
    return BackboneSpec(name, pretrained, file, image_size, num_classes, **options)


def build(asked: BackboneSpec) -> Any:  # models have more than a Module says
    return build_backbone(asked)


def images(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: nn.Module, batch: Tensor) -> Tensor:
    return logits_of(model.eval()(batch))
