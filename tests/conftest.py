"""What every test shares: hypothesis without randomness, and a seed."""

from __future__ import annotations

import signal

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from support.vits import tiny_vit

settings.register_profile("snella", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("snella")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """A shell starts background jobs with SIGINT ignored; the tests of Ctrl-C need Python's own handler."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def vit() -> nn.Module:
    return tiny_vit()  # two blocks, fused qkv


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
