"""What every test shares: hypothesis without randomness, and a seed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

settings.register_profile("snella", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("snella")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
