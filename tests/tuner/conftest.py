"""A model and a batch for every test of the tuner."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vits import tiny_vit


@pytest.fixture
def vit() -> nn.Module:
    return tiny_vit()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
