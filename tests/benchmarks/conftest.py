"""The benchmarks are no part of the package: they are imported from the repository's root."""

import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))


@pytest.fixture
def base() -> nn.Module:
    return timm.create_model("test_vit", num_classes=5)  # fused qkv, six blocks, images 160 x 160


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, 160, 160), torch.tensor([0, 3])
