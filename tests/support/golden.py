"""Golden values of the published method, and how far from them a result is."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

REFERENCE = Path(__file__).parents[1] / "reference"
DEVICE = os.environ.get("SNELLA_TEST_DEVICE", "cpu")  # of what the tests make, see conftest.py


def reference(name: str) -> tuple[dict[str, Tensor], dict]:
    """The tensors and the meta data of one golden file."""
    with safe_open(REFERENCE / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key).to(DEVICE) for key in file.keys()}, json.loads(file.metadata()["meta"])  # noqa: SIM118


def relative_error(actual: Tensor | None, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖; `actual` has to be there."""
    assert actual is not None
    return ((actual - expected).norm() / expected.norm()).item()
