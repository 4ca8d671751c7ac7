"""The Triton kernels compile for GPUs that are not here: what the interpreter takes, the compiler may refuse."""

from __future__ import annotations

import os
from typing import Any

import pytest

pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from snella.ops import triton_kernels as kernels

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter has no compiler"),
]

FACTORS, BLOCKS = {"H": 2, "W": 16}, {"BLOCK_M": 16, "BLOCK_N": 64}
PWL = {**FACTORS, "MIX": False, "alpha": None, "gamma": None, "beta": None, "lse": None, "chunk_lse": None}
MIXK = {**FACTORS, "MIX": True}
TYPES = {
    **dict.fromkeys(("m", "n", "chunk", "chunks", "size", "P_count", "Q_count", "P_stride", "Q_stride"), "i32"),
    "scale": "fp32",
    "ranks": "*i64",
    "counts": "*i32",
    "G": "*bf16",
    "weight": "*bf16",
    "adapted": "*bf16",
}  # and of all others a pointer to fp32

CASES: list[tuple[Any, dict[str, Any]]] = [
    (kernels.distances_kernel, MIXK | BLOCKS),
    (kernels.distances_kernel, PWL | BLOCKS),
    (kernels.softmax_mix_kernel, {"CHUNKS": 32} | BLOCKS),
    (kernels.add_gated_kernel, {"GATE": "soft", "BLOCK_N": 1024}),
    (kernels.add_gated_kernel, {"GATE": "none", "BLOCK_N": 1024, "t": None, "weight": None}),
    (kernels.gate_backward_kernel, MIXK | BLOCKS | {"GATE": "published"}),
    (kernels.gate_backward_kernel, PWL | BLOCKS | {"GATE": "hard", "mixed_sums": None, "unmixed_sums": None}),
    (kernels.gate_backward_kernel, MIXK | BLOCKS | {"GATE": "none", "t": None, "weight": None, "adapted": None}),
    (kernels.softmax_backward_kernel, {"CHUNKS": 32, "GATE": "published"} | BLOCKS),
    (kernels.distance_backward_kernel, FACTORS | BLOCKS),
    *((kernels.digit_counts_kernel, {"EACH": 2, "ROUND": i, "BLOCK_N": 4096}) for i in range(kernels.ROUNDS)),
    (kernels.selected_kernel, {}),
]


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(("kernel", "constants"), CASES)
def test_compiles(kernel: Any, constants: dict[str, Any], architecture: int) -> None:
    function = getattr(kernel, "fn", kernel) if hasattr(kernel, "configs") else kernel
    names = function.arg_names
    known = {name: value for name, value in constants.items() if name in names}
    source = ASTSource(
        fn=function,
        signature={name: "constexpr" if name in known else TYPES.get(name, "*fp32") for name in names},
        constexprs={(names.index(name),): value for name, value in known.items()},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32))
    assert compiled.asm["cubin"]
