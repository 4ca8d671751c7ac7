"""The update on the CPU by native.c, which the machine's own C compiler makes ready at first use.

Its loops go over the matrix once where tensor operations go over it a dozen times. Where there is no compiler,
`library()` is None and `snella.ops.blocks` does the same with tensor operations.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from snella.delta import GATES, Gate, clamped_gamma
from snella.errors import UserError
from snella.files import cache_folder, writing
from snella.ops.blocks import Scalars

# the one includes the other
SOURCES = tuple(Path(__file__).parent / "csrc" / name for name in ("native.c", "native_math.h"))
# as in native_math.h
LANES, ROWS, CHUNKS, MAX_HEADS = 16, 4, 8, 16
_GATE_CODES = {gate: ("none", "hard", "published", "soft").index(gate) for gate in GATES}
_FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-shared", "-fPIC")
# tried in this order: not every compiler knows its own machine or has OpenMP
_VARIANTS = (("-march=native", "-fopenmp"), ("-march=native",), ("-mcpu=native",), ())


class _Shape(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_long) for name in ("m", "rows", "n", "w", "heads")),
        *((name, ctypes.c_float) for name in ("scale", "alpha", "inverse_gamma", "beta")),
        ("mixed", ctypes.c_int),
    )


class _Backward(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("left", "right", "A", "B", "G", "weight", "lse")),
        ("t", ctypes.c_float),
        ("gate", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("adapted", "sums_a", "sums_b", "scalars")),
    )


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Return native.c, compiled and loaded; None where that cannot be done."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    if compiler is None or os.name != "posix":
        return None
    try:
        loaded = _compile_and_load(compiler)
    except OSError:
        return None
    if loaded is not None:
        pointer, integer = ctypes.c_void_p, ctypes.c_int
        loaded.snella_kernel.argtypes = (pointer, pointer, pointer, pointer, pointer, integer)
        loaded.snella_backward.argtypes = (pointer, pointer, integer)
        loaded.snella_add_gated.argtypes = (
            *(pointer, pointer, ctypes.c_float, integer),
            *(pointer, ctypes.c_long, integer),
        )
        loaded.snella_add_gated.restype = None
        loaded.snella_between.argtypes = (
            *(pointer, ctypes.c_long, ctypes.c_float, ctypes.c_float),
            *(pointer, ctypes.c_long, pointer, integer),
        )
        loaded.snella_between.restype = ctypes.c_long
    return loaded


def arithmetic() -> str:
    """Return by what updates are computed on the CPU: the two agree in all but their last bits."""
    return "torch operations" if library() is None else "compiled passes"


def _compile_and_load(compiler: str) -> ctypes.CDLL | None:
    """Return the library from the user's cache folder, or made now and put there; None if the compiler refuses."""
    texts = (source.read_text() for source in SOURCES)
    key = hashlib.sha256("\0".join((*texts, compiler, *_FLAGS, _processor())).encode()).hexdigest()[:16]
    try:
        folder = cache_folder()
    except UserError:  # a user without a home: made again in each process
        folder = None
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / f"native-{key}.so"
        if folder is not None and (content := _cached(folder, key)) is not None:
            made.write_bytes(content)  # a copy that no other process can cut short while it is in use
            return ctypes.CDLL(str(made))  # stays when the file goes
        for variant in _VARIANTS:
            command = [compiler, *_FLAGS, *variant, str(SOURCES[0]), "-o", str(made), "-lm"]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                break
        else:
            return None
        loaded = ctypes.CDLL(str(made))
        if folder is not None:
            content = made.read_bytes()
            try:
                with writing(folder / _cache_name(key, content), shared=True, durable=True) as partial:
                    partial.write_bytes(content)
            except UserError:  # a home that cannot be written: made again in the next process
                pass
        return loaded


def _cache_name(key: str, content: bytes) -> str:
    return f"native-{key}-{hashlib.sha256(content).hexdigest()[:32]}.so"


def _cached(folder: Path, key: str) -> bytes | None:
    """Return the library of that key, whole and nobody else's; None where there is none.

    A file that is not what its name says, is a link, or is another user's or one that others may write to, is not run.
    """
    for file in sorted(folder.glob(f"native-{key}-*.so")):
        try:
            with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW), "rb") as opened:
                status = os.fstat(opened.fileno())
                ours = status.st_uid in (os.getuid(), 0) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
                content = opened.read() if ours and stat.S_ISREG(status.st_mode) else b""
        except OSError:
            continue
        if file.name == _cache_name(key, content):
            return content
    return None


def _processor() -> str:
    """Return what a library made for this very machine depends on: its architecture and its processor's flags."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        flags = platform.processor()
    return f"{platform.machine()} {flags}"


def available(A: Tensor) -> bool:
    """Return whether these factors (H, n, r/H) can be handled here."""
    return A.device.type == "cpu" and A.dtype == torch.float32 and len(A) <= MAX_HEADS and library() is not None


def _padded(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return A, B, left and right as native_math.h describes them."""
    A, B = A.detach(), B.detach()
    columns, rows = -A.shape[-1] % LANES, -B.shape[1] % ROWS
    if columns or rows:
        A, B = F.pad(A, (0, columns)), F.pad(B, (0, columns, 0, rows))
    A, B = A.contiguous(), B.contiguous()
    a2, b2 = (factor.square().sum(-1, keepdim=True) for factor in (A, B))
    left = torch.cat([-2 * B, b2, torch.ones_like(b2)], dim=-1)
    right = torch.cat([A, torch.ones_like(a2), a2], dim=-1).mT.contiguous()
    return A, B, left, right


def _shape(A: Tensor, B: Tensor, m: int, scalars: Scalars | None, scale: float) -> _Shape:
    heads, n, w = A.shape
    alpha, inverse_gamma, beta = 0.0, 1.0, 0.0
    if scalars is not None:
        alpha, inverse_gamma, beta = scalars[0].item(), 1 / clamped_gamma(scalars[1]).item(), scalars[2].item()
    return _Shape(m, B.shape[1], n, w, heads, scale, alpha, inverse_gamma, beta, scalars is not None)


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("not enough memory to build the update of a weight matrix")


def kernel_and_stats(A: Tensor, B: Tensor, scalars: Scalars | None, K: Tensor, *, scale: float) -> Tensor | None:
    """Do as `blocks.kernel_and_stats` does. K is contiguous."""
    m, n = B.shape[1], A.shape[1]
    A, B, left, right = _padded(A, B)
    lse = A.new_empty(n)
    shape = _shape(A, B, m, scalars, scale)
    _check(
        _loaded().snella_kernel(
            ctypes.byref(shape),
            *(tensor.data_ptr() for tensor in (left, right, K, lse)),
            torch.get_num_threads(),
        )
    )
    return None if scalars is None else lse


def magnitudes_between(K: Tensor, low: float, high: float) -> tuple[int, np.ndarray] | None:
    """Return how many magnitudes of K are at most `low`, and those strictly between `low` and `high`.

    None where they are many, which a bracket is not made for, or where this cannot be had.
    """
    if K.dtype != torch.float32 or library() is None:
        return None
    inside, below = np.empty(K.numel() // 16 + 1024, np.float32), ctypes.c_long()
    count = _loaded().snella_between(
        *(K.data_ptr(), K.numel(), low, high, inside.ctypes.data, inside.size),
        *(ctypes.byref(below), torch.get_num_threads()),
    )
    return (below.value, inside[:count]) if count <= inside.size else None


def _are_fp32(out: Tensor, weight: Tensor | None) -> bool:
    """Return whether native.c can add to this weight and write this result itself."""
    return out.dtype == torch.float32 and (weight is None or weight.dtype == torch.float32)


def add_gated(weight: Tensor | None, K: Tensor, t: Tensor | None, out: Tensor, *, gate: Gate) -> None:
    """Do as `blocks.add_gated` does."""
    direct = _are_fp32(out, weight)
    added = weight.detach().contiguous() if weight is not None and direct else None
    into = out if direct else K
    _loaded().snella_add_gated(
        None if added is None else added.data_ptr(),
        K.data_ptr(),
        0.0 if t is None else t.item(),
        _GATE_CODES[gate],
        into.data_ptr(),
        K.numel(),
        torch.get_num_threads(),
    )
    if not direct:
        out.copy_(K if weight is None else K.add_(weight))


def update_backward(
    G: Tensor,
    weight: Tensor | None,
    A: Tensor,
    B: Tensor,
    scalars: Scalars | None,
    t: Tensor | None,
    lse: Tensor | None,
    adapted: Tensor | None,
    *,
    gate: Gate,
    scale: float,
) -> tuple[Tensor, Tensor, Scalars | None]:
    """Do as `blocks.update_backward` does."""
    (heads, n, width), m = A.shape, B.shape[1]
    direct = adapted is None or _are_fp32(adapted, weight)
    into = adapted if direct else A.new_empty(m, n)
    A, B, left, right = _padded(A, B)
    shape = _shape(A, B, m, scalars, scale)
    added = weight.detach().contiguous() if weight is not None and direct and adapted is not None else None
    tensors = {
        **dict(left=left, right=right, A=A, B=B, G=G.float().contiguous(), weight=added, lse=lse, adapted=into),
        "sums_a": A.new_empty(heads, A.shape[2] + 1, n),
        "sums_b": A.new_zeros(CHUNKS, heads, B.shape[1], A.shape[2] + 1),
        "scalars": A.new_zeros(CHUNKS, 3, dtype=torch.float64),
    }
    pointers = {name: None if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()}
    arguments = _Backward(t=0.0 if t is None else t.item(), gate=_GATE_CODES[gate], **pointers)
    _check(_loaded().snella_backward(ctypes.byref(shape), ctypes.byref(arguments), torch.get_num_threads()))
    if adapted is not None and into is not None and not direct:
        adapted.copy_(into if weight is None else into.add_(weight))
    sums_a, sums_b = tensors["sums_a"], tensors["sums_b"].sum(0)
    grad_A = A * sums_a[:, -1, :, None] - sums_a[:, :-1].mT
    grad_B = B * sums_b[..., -1:] - sums_b[..., :-1]
    grad_scalars = None
    if scalars is not None:
        grad_alpha, grad_gamma, grad_beta = tensors["scalars"].sum(0).float()
        gamma = clamped_gamma(scalars[1])
        grad_scalars = grad_alpha, torch.where(gamma == scalars[1], grad_gamma / gamma**2, 0), grad_beta
    return grad_A[..., :width], grad_B[:, :m, :width], grad_scalars


def _loaded() -> ctypes.CDLL:
    loaded = library()
    assert loaded is not None, "callers ask `available` first"
    return loaded
