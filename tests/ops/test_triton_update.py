"""The Triton kernels against the definition and its autograd in float64.

Without a GPU they run in Triton's interpreter, which has to be chosen before triton is first imported: the tests of
this file are then run by a process of their own.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from snella import delta
from snella.ops import Factors, UpdateSpec, adapted_weight, blocks, selection, update
from snella.ops.blocks import Scalars
from support.tuned import grad_of

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
INSTALLED = importlib.util.find_spec("triton") is not None
RUNNABLE = INSTALLED and (INTERPRETED or torch.cuda.is_available())
DEVICE = "cpu" if INTERPRETED else "cuda"

if TYPE_CHECKING or RUNNABLE:
    from snella.ops import triton_update

Inputs = tuple[Tensor, Tensor, Scalars | None]  # A, B and the scalars


def stacked(inputs: Inputs) -> Inputs:
    """The inputs as those of a layer with one matrix."""
    A, B, scalars = inputs
    return A[None], B[None], None if scalars is None else (scalars[0][None], scalars[1][None], scalars[2][None])


def first(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor[None]


def kernel_and_stats(inputs: Inputs) -> tuple[Tensor, Tensor | None]:
    A, B, scalars = stacked(inputs)
    K = torch.full((1, B.shape[2], A.shape[2]), torch.nan, device=A.device)
    lse = triton_update.kernel_and_stats(A, B, scalars, K, scale=0.1)
    return K[0], None if lse is None else lse[0]


def add_gated(
    weight: Tensor | None, K: Tensor, t: Tensor | None, *, gate: delta.Gate, out_dtype: torch.dtype
) -> Tensor:
    out = torch.full_like(K, torch.nan, dtype=out_dtype)
    triton_update.add_gated(first(weight), K[None], first(t), out[None], gate=gate)
    return out


def update_backward(
    G: Tensor,
    weight: Tensor | None,
    inputs: Inputs,
    t: Tensor | None,
    lse: Tensor | None,
    *,
    gate: delta.Gate,
    out_dtype: torch.dtype | None = torch.float32,
) -> tuple[Tensor | None, list[Tensor]]:
    """The adapted weight again, or None where out_dtype is None, and the gradients of A, B and the scalars."""
    A, B, scalars = stacked(inputs)
    adapted = None if out_dtype is None else torch.full_like(G, torch.nan, dtype=out_dtype)
    grad_A, grad_B, grad_scalars = triton_update.update_backward(
        G[None], first(weight), A, B, scalars, first(t), first(lse), first(adapted), gate=gate, scale=0.1
    )
    return adapted, [part[0] for part in (grad_A, grad_B, *(grad_scalars or ()))]


@pytest.mark.skipif(not INSTALLED, reason="triton is not installed")
@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter's process")
def test_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter's process")
def test_ops_import_without_triton(python: str) -> None:
    code = """
import sys
for name in [name for name in sys.modules if name.partition(".")[0] == "triton"]:  # other libraries import it
    del sys.modules[name]
sys.modules["triton"] = None
import snella.ops
"""
    subprocess.run([python, "-c", code], check=True, timeout=300)


@dataclass(frozen=True)
class Case:
    """Inputs on the device, and in float64 what the definition and autograd make of them."""

    kernel: delta.Kernel
    gate: delta.Gate
    inputs: Inputs  # in fp32
    weight: Tensor | None
    G: Tensor
    t: Tensor | None
    K: Tensor
    adapted: Tensor
    gradients: list[Tensor]  # of A, B and the scalars
    size: float  # of what the scalars' gradients are sums of

    def forward(self) -> tuple[Tensor, Tensor | None]:
        return kernel_and_stats(self.inputs)

    def backward(
        self, lse: Tensor | None, out_dtype: torch.dtype | None = torch.float32
    ) -> tuple[Tensor | None, list[Tensor]]:
        return update_backward(self.G, self.weight, self.inputs, self.t, lse, gate=self.gate, out_dtype=out_dtype)


def case(
    *,
    kernel: delta.Kernel = "mixk",
    gate: delta.Gate = "published",
    heads: int = 2,
    width: int = 3,
    n: int = 37,
    m: int = 70,
    gamma: float = 0.7,
    weight_dtype: torch.dtype | None = torch.float32,
    gradient_dtype: torch.dtype = torch.float32,
    factors: tuple[Tensor, Tensor] | None = None,
) -> Case:
    A, B = factors or (torch.randn(heads, n, width), torch.randn(heads, m, width))
    scalars = [torch.tensor(1.3), torch.tensor(gamma), torch.tensor(-0.05)] if kernel == "mixk" else []
    weight = None if weight_dtype is None else torch.randn(m, n).to(weight_dtype)
    G = torch.randn(m, n).to(gradient_dtype)

    exact = [tensor.double().requires_grad_() for tensor in (A, B, *scalars)]
    K = delta.kernel_matrix(*exact, kernel=kernel, scale=0.1)
    t = None if gate == "none" else between_two(K.detach().abs())
    adapted = delta.gated(K, t, gate) + (0 if weight is None else weight.double())
    gradients = torch.autograd.grad((adapted * G.double()).sum(), exact)
    slope = torch.autograd.grad(delta.gated(K, t, gate).sum(), K, retain_graph=True)[0]
    return Case(
        kernel,
        gate,
        on_device(A, B, *scalars),
        None if weight is None else weight.to(DEVICE),
        G.to(DEVICE),
        None if t is None else t.float().to(DEVICE),
        K.detach(),
        adapted.detach(),
        list(gradients),
        size=float((G.double() * slope).abs().sum()),
    )


def on_device(A: Tensor, B: Tensor, *scalars: Tensor) -> Inputs:
    A, B, *rest = (tensor.to(DEVICE) for tensor in (A, B, *scalars))
    return A, B, (rest[0], rest[1], rest[2]) if rest else None


def between_two(magnitude: Tensor) -> Tensor:
    """The middle of the widest gap in the middle half of the magnitudes: rounding moves no entry across."""
    values = magnitude.flatten().sort().values
    quarter = len(values) // 4
    values = values[quarter : max(len(values) - quarter, quarter + 2)]
    if len(values) < 2:
        return values[0] / 2
    gap = int(values.diff().argmax())
    return (values[gap] + values[gap + 1]) / 2


def assert_near(actual: Tensor | None, expected: Tensor, tolerance: float, size: float = 0.0) -> None:
    """Within `tolerance` of the expected tensor's largest entry, or of `size`."""
    assert actual is not None
    assert actual.shape == expected.shape
    error = float((actual.cpu().double() - expected).abs().max())
    assert error <= tolerance * max(float(expected.abs().max()), size), (error, expected.abs().max(), size)


def assert_gradients(made: list[Tensor], expected: Case) -> None:
    for actual, wanted in zip(made[:2], expected.gradients[:2], strict=True):
        assert_near(actual, wanted, 3e-5)
    for actual, wanted in zip(made[2:], expected.gradients[2:], strict=True):
        assert_near(actual, wanted, 1e-5, expected.size)  # sums that cancel


@pytest.fixture
def _fixed_blocks() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # tuning each of these shapes would take minutes
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_fixed_blocks")
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # beyond the matrix
class TestKernels:
    """What runs on a GPU, or in the interpreter's process."""

    __test__ = RUNNABLE

    @settings(max_examples=20, phases=[Phase.generate])  # shrinking takes the interpreter minutes
    @given(
        kernel=st.sampled_from(delta.KERNELS),
        gate=st.sampled_from(delta.GATES),
        heads=st.integers(1, 3),
        width=st.integers(1, 7),
        n=st.integers(1, 70),
        m=st.integers(2, 70),
        gamma=st.sampled_from([0.3, 1.0, -0.8]),
        weight_dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, None]),
        gradient_dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    )
    def test_equal_to_the_definition(self, **drawn: Any) -> None:
        torch.manual_seed(0)
        expected = case(**drawn)
        dtype = drawn["weight_dtype"] or torch.float32

        K, lse = expected.forward()
        adapted = add_gated(expected.weight, K, expected.t, gate=expected.gate, out_dtype=dtype)
        again, gradients = expected.backward(lse, out_dtype=dtype)

        assert_near(K, expected.K, 1e-5)
        # The interpreter cuts where the GPU rounds: a whole unit in the last place.
        assert_near(adapted, expected.adapted, max(1e-5, torch.finfo(dtype).eps))
        assert adapted.dtype == dtype
        assert again is not None
        assert torch.equal(again, adapted)
        assert_gradients(gradients, expected)

    @pytest.mark.parametrize("gate", delta.GATES)
    def test_through_the_layers_function(self, gate: delta.Gate, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(0)
        values = [torch.randn(3, 2, size, 3) for size in (20, 70)] + [torch.rand(3) + 0.5 for _ in range(3)]
        weight, G, results = torch.randn(210, 20), torch.randn(210, 20).to(DEVICE), []
        for backend in (triton_update, blocks):
            monkeypatch.setattr(update, "_backend", lambda A, backend=backend: backend)
            factors = Factors(*(value.clone().to(DEVICE).requires_grad_() for value in values))
            kept = torch.tensor([200, 300, 400]).to(DEVICE)
            made = adapted_weight(weight.to(DEVICE), factors, kept, UpdateSpec("mixk", gate, 0.1), torch.float32)
            (made * G).sum().backward()
            results.append([made.detach(), *(grad_of(tensor) for tensor in factors)])
        for actual, expected in zip(*results, strict=True):
            assert_near(actual, expected.cpu().double(), 1e-4)

    def test_chunks_of_several_blocks(self) -> None:
        """More rows than 32 chunks of 32 rows."""
        expected = case(heads=1, width=2, n=3, m=1100, gate="hard")
        K, lse = expected.forward()
        assert_near(K, expected.K, 1e-5)
        assert_gradients(expected.backward(lse)[1], expected)

    def test_lse_is_the_softmax_normaliser(self) -> None:
        expected = case()
        A, B, scalars = expected.inputs
        assert scalars is not None
        gamma = scalars[1]
        D = delta.kernel_matrix(A.double(), B.double(), kernel="pwl", scale=0.1)
        assert_near(expected.forward()[1], torch.logsumexp(D / gamma.double(), 0).cpu(), 1e-6)

    @pytest.mark.parametrize("gamma", [0.0, -0.0, 4e-4, -4e-4])
    def test_a_clamped_gamma_has_no_gradient(self, gamma: float) -> None:
        expected = case(gamma=gamma, n=5, m=33)
        K, lse = expected.forward()
        _, gradients = expected.backward(lse)
        assert_near(K, expected.K, 1e-3)  # D / gamma is in the hundreds, of which a softmax keeps four digits
        assert float(gradients[3]) == 0.0
        for actual, wanted in zip(gradients, expected.gradients, strict=True):
            assert_near(actual, wanted, 5e-3, size=1e-3 * expected.size)

    def test_what_overflows_beyond_the_last_row_stays_out_of_the_sums(self) -> None:
        """Rows beyond the matrix are points at the origin: next to A here, e^140 times nearer than any of B."""
        A, B = 0.01 * torch.randn(1, 5, 3), torch.randn(1, 33, 3).sign() * (9 + torch.rand(1, 33, 3))
        expected = case(heads=1, gamma=-1e-2, factors=(A, B), n=5, m=33)
        _, lse = expected.forward()
        assert lse is not None
        assert float(lse.max()) < -140
        for actual, wanted in zip(expected.backward(lse)[1], expected.gradients, strict=True):
            assert_near(actual, wanted, 1e-3, size=1e-3 * expected.size)

    @pytest.mark.parametrize("gate", ["published", "hard"])
    def test_a_threshold_taken_from_the_matrix_keeps_the_same_entries_in_the_backward(self, gate: delta.Gate) -> None:
        """The threshold is an entry of K itself: one rounding apart, and the backward would keep another one."""
        expected = case(n=67, m=45, gate=gate, weight_dtype=None)
        K, lse = expected.forward()
        t = delta.threshold(K.abs(), 1000)
        adapted, _ = update_backward(expected.G, None, expected.inputs, t, lse, gate=gate)
        assert adapted is not None
        assert int((adapted != 0).sum()) == 1000
        assert torch.equal(adapted, delta.gated(K, t, gate))

    @pytest.mark.parametrize("kernel", delta.KERNELS)
    def test_points_that_coincide_pull_nowhere(self, kernel: delta.Kernel) -> None:
        A, B = torch.randn(2, 9, 3), torch.randn(2, 12, 3)
        B[:, 4], A[0, 7] = A[:, 2], B[0, 1]
        expected = case(kernel=kernel, gate="none", n=9, m=12, factors=(A, B))
        _, lse = expected.forward()
        gradients = expected.backward(lse)[1]
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)
        assert_gradients(gradients, expected)

    def test_a_common_offset_does_not_cancel(self) -> None:
        """1000 away from the origin, products of coordinates have lost what differences still have."""
        A, B = ((torch.randint(-8, 8, (2, count, 3)) + 1000.0) for count in (20, 31))
        expected = case(gate="none", n=20, m=31, factors=(A, B))
        K, lse = expected.forward()
        near = case(gate="none", n=20, m=31, factors=(A - 1000, B - 1000))
        assert_near(K, near.K, 1e-5)
        _, made = update_backward(near.G, near.weight, expected.inputs, None, lse, gate="none")
        assert_gradients(made, near)

    def test_without_the_weight(self) -> None:
        expected = case(weight_dtype=torch.bfloat16)
        _, lse = expected.forward()
        adapted, gradients = expected.backward(lse, out_dtype=None)
        assert adapted is None
        assert_gradients(gradients, expected)

    def test_half_precision_factors_and_a_transposed_gradient(self) -> None:
        A, B = (torch.randn(2, count, 3).bfloat16() for count in (20, 31))
        expected = case(gate="none", n=20, m=31, factors=(A.float(), B.float()))
        inputs = (A.to(DEVICE), B.to(DEVICE), expected.inputs[2])
        _, lse = kernel_and_stats(inputs)
        _, gradients = update_backward(expected.G.T.contiguous().T, None, inputs, None, lse, gate="none")
        assert (gradients[0].dtype, gradients[1].dtype) == (torch.bfloat16, torch.bfloat16)
        for actual, wanted in zip(gradients, expected.gradients, strict=True):
            assert_near(actual, wanted, torch.finfo(torch.bfloat16).eps)

    @settings(max_examples=12, phases=[Phase.generate])
    @given(
        splits=st.integers(1, 3),
        size=st.integers(1, 5000),
        seed=st.integers(0, 99),
        levels=st.sampled_from([None, 1, 3]),
        interpolated=st.booleans(),
        share=st.floats(0, 1),
    )
    def test_thresholds_equal_the_definition(
        self, splits: int, size: int, seed: int, levels: int | None, interpolated: bool, share: float
    ) -> None:
        """Of several matrices at once, with ties, zeros, and numbers of all sizes."""
        random = torch.Generator().manual_seed(seed)
        K = torch.randn(splits, size, generator=random) ** 9
        if levels is not None:
            K = K[:, torch.randint(min(levels, size), (size,), generator=random)]
        kept = (torch.tensor([share, 0.0, 1.0])[:splits] * size).long()
        select = triton_update.select_by_counts
        t = selection.threshold_by(K.to(DEVICE), kept.to(DEVICE), interpolated, select).cpu()
        for row, budget, found in zip(K.abs(), kept.tolist(), t, strict=True):
            assert found == (delta.quantile(row, 1 - budget / size) if interpolated else delta.threshold(row, budget))

    @pytest.mark.parametrize(("kernel", "launches"), [("mixk", (8, 4)), ("pwl", (7, 3))])
    def test_matrices_share_their_launches(
        self, kernel: delta.Kernel, launches: tuple[int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As many for the three of a fused qkv as for one."""
        launched: list[Any] = []
        launch = triton_update._launch
        monkeypatch.setattr(
            triton_update, "_launch", lambda *args, **kwargs: (launched.append(args[0]), launch(*args, **kwargs))
        )
        monkeypatch.setattr(update, "_backend", lambda A: triton_update)
        monkeypatch.setattr(selection, "_select_on", lambda K: triton_update.select_by_counts)
        for splits in (1, 3):
            A, B = (torch.randn(splits, 2, 9, 3, device=DEVICE) for _ in "AB")
            ones = torch.ones(splits, device=DEVICE) if kernel == "mixk" else None
            factors = Factors(A, B, ones, ones, ones)
            kept, spec = torch.full((splits,), 20, device=DEVICE), UpdateSpec(kernel, "published", 0.1)
            adapted, stats = update.build(None, factors, kept, spec, torch.float32)
            assert int((adapted != 0).sum()) == 20 * splits
            assert len(launched) == launches[0]
            update.build_backward(torch.randn_like(adapted), None, factors, stats, spec, None)
            assert len(launched) == sum(launches)
            launched.clear()
