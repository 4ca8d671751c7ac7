"""The benchmarks are not part of the package: they are imported from the repository's root."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from support.vits import tiny_vit

sys.path.insert(0, str(Path(__file__).parents[2]))


@pytest.fixture
def base() -> nn.Module:
    return tiny_vit()  # two blocks, fused qkv


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, 32, 32), torch.tensor([0, 3])
