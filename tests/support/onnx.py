"""Tests of the ONNX export: only where the extra `onnx` is installed, with the torch that it needs."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from snella.models.export import ONNX_TORCH

needs_onnx = pytest.mark.skipif(
    torch.__version__ < ONNX_TORCH or find_spec("onnxruntime") is None,
    reason=f"needs the extra onnx and torch {ONNX_TORCH}",
)
