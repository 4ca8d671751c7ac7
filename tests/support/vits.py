"""A small timm ViT, quick to make and to run."""

from __future__ import annotations

import timm
import torch
from torch import nn


def tiny_vit(**overrides: object) -> nn.Module:
    """A ViT of two blocks, width 24, images 32 x 32, five classes; not pre-trained."""
    options = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5) | overrides
    torch.manual_seed(3)
    return timm.create_model("vit_tiny_patch16_224", pretrained=False, **options)
