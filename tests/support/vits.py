"""A small timm ViT, quick to make and to run."""

from __future__ import annotations

import timm
import torch
from timm.models import VisionTransformer


def tiny_vit(embed_dim: int = 24) -> VisionTransformer:
    """A ViT of two blocks, images 32 x 32, five classes; not pre-trained."""
    torch.manual_seed(3)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=embed_dim, depth=2, num_heads=3, num_classes=5
    )
    assert isinstance(model, VisionTransformer)
    return model
