"""The lean path equals the definition: values, kept entries and gradients, by each way of computing."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from snella import delta
from snella.ops import Factors, UpdateSpec, adapted_weight, blocks, native
from snella.ops import update as update_module
from support.golden import relative_error
from support.tuned import grad_of

BACKENDS = [pytest.param(blocks, id="blocks")]
if native.library() is not None:
    BACKENDS.append(pytest.param(native, id="native"))


def test_the_compiled_way_is_tested_where_there_is_a_compiler() -> None:
    import shutil

    assert (native.library() is not None) == any(map(shutil.which, ("cc", "gcc", "clang")))


def draw_factors(seed: int, splits: int, heads: int, n: int, m: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    A, B = randn(splits, heads, n, width), randn(splits, heads, m, width)
    return [A, B, *(1 + 0.3 * randn(splits) for _ in range(2)), 0.1 * randn(splits)]


def defined(weight: Tensor | None, factors: Factors, kept: Tensor, spec: UpdateSpec) -> Tensor:
    """The adapted weight by `delta`, one matrix at a time, differentiable through plain operations."""
    deltas = []
    for i, count in enumerate(kept.tolist()):
        scalars = (None if s is None else s[i] for s in factors[2:])
        K = delta.kernel_matrix(factors.A[i], factors.B[i], *scalars, kernel=spec.kernel, scale=spec.scale)
        magnitude = K.detach().abs()
        if spec.gate == "soft":
            t = delta.quantile(magnitude, 1 - count / magnitude.numel())
        else:
            t = delta.threshold(magnitude, count)
        deltas.append(delta.gated(K, t, spec.gate))
    stacked = torch.cat(deltas)
    return stacked if weight is None else weight.to(stacked.dtype) + stacked


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    splits=st.integers(1, 3),
    heads=st.integers(1, 3),
    width=st.integers(1, 20),
    n=st.integers(1, 70),
    m=st.integers(1, 70),
    kernel=st.sampled_from(delta.KERNELS),
    gate=st.sampled_from(delta.GATES),
    sparsity=st.floats(0, 1),
    with_weight=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_values_and_gradients_equal_the_definition(
    backend: ModuleType,
    seed: int,
    splits: int,
    heads: int,
    width: int,
    n: int,
    m: int,
    kernel: delta.Kernel,
    gate: delta.Gate,
    sparsity: float,
    with_weight: bool,
    dtype: torch.dtype,
) -> None:
    # distances by products lose close points in fp32, and few columns have close points; so does torch.cdist
    assume(dtype == torch.float64 or width >= 4)
    values = draw_factors(seed, splits, heads, n, m, width, dtype)
    absent = [None] * 3 if kernel == "pwl" else []
    spec = UpdateSpec(kernel, gate, 0.1)
    kept = torch.full((splits,), delta.kept_count(sparsity, n * m))
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(splits * m, n, generator=generator).to(dtype) if with_weight else None
    G = torch.randn(splits * m, n, generator=generator).to(dtype)
    values = values[: 5 - len(absent)]
    reference = Factors(*(v.detach().double().clone().requires_grad_() for v in values), *absent)
    ours = Factors(*(v.detach().clone().requires_grad_() for v in values), *absent)

    expected = defined(weight, reference, kept, spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(update_module, "_backend", lambda A: backend if A.dtype == torch.float32 else blocks)
        actual = adapted_weight(weight, ours, kept, spec, dtype)
        (actual * G).sum().backward()
    exact = dtype == torch.float64
    update = actual if weight is None else actual - weight
    expected_update = expected if weight is None else expected - weight.double()
    if gate in ("hard", "published"):
        # an entry at the threshold may change sides by rounding, and then everything may differ a little
        assume(bool(((update != 0) == (expected_update != 0)).all()) or exact)
    if exact:
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    else:
        torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=2e-5)
    (expected * G.double()).sum().backward()
    for name, mine, theirs in zip(Factors._fields, ours, reference, strict=True):
        if mine is not None:
            scale = grad_of(theirs).abs().max().item() + 1e-2
            tolerance = 1e-8 if exact else 1e-3
            assert (grad_of(mine).double() - grad_of(theirs)).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize("backend", BACKENDS)
@given(kept=st.integers(0, 30 * 41), seed=st.integers(0, 2**31))
def test_as_many_entries_as_budgeted(backend: ModuleType, kept: int, seed: int) -> None:
    factors = Factors(*draw_factors(seed, 1, 2, 30, 41, 5, torch.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(update_module, "_backend", lambda A: backend)
        actual = adapted_weight(None, factors, torch.tensor([kept]), UpdateSpec("mixk", "hard", 0.1), torch.float32)
    assert int((actual != 0).sum()) == min(kept, actual.numel() - 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_finite_where_points_coincide(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_module, "_backend", lambda A: backend)
    A, B, *scalars = draw_factors(0, 1, 2, 40, 40, 4, torch.float32)
    B = A.clone()
    factors = Factors(*(tensor.requires_grad_() for tensor in (A, B, *scalars)))
    adapted_weight(
        None, factors, torch.tensor([900]), UpdateSpec("mixk", "published", 0.1), torch.float32
    ).sum().backward()
    for tensor in factors:
        assert grad_of(tensor).isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gamma", [0.0, 1e-5, -1e-5])
def test_a_clamped_gamma_has_no_gradient(backend: ModuleType, gamma: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_module, "_backend", lambda A: backend)
    A, B, alpha, _, beta = draw_factors(0, 1, 2, 30, 20, 4, torch.float32)
    factors = Factors(*(tensor.requires_grad_() for tensor in (A, B, alpha, torch.tensor([gamma]), beta)))
    actual = adapted_weight(None, factors, torch.tensor([500]), UpdateSpec("mixk", "none", 0.1), torch.float32)
    actual.square().sum().backward()
    expected = delta.kernel_matrix(A[0], B[0], alpha[0], torch.tensor(gamma), beta[0])
    assert relative_error(actual, expected) < 1e-4
    assert grad_of(factors.gamma).item() == 0
    assert grad_of(factors.alpha).isfinite().all()


@pytest.mark.skipif(native.library() is None, reason="no C compiler")
@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_changes_no_bit(threads: int) -> None:
    values = draw_factors(1, 1, 2, 301, 200, 16, torch.float32)
    results = []
    before = torch.get_num_threads()
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            factors = Factors(*(tensor.clone().requires_grad_() for tensor in values))
            actual = adapted_weight(
                None, factors, torch.tensor([9000]), UpdateSpec("mixk", "published", 0.1), torch.float32
            )
            actual.sin().sum().backward()
            results.append([actual.detach(), *(grad_of(tensor) for tensor in factors)])
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_nothing_of_the_weights_size_is_kept() -> None:
    kept: list[int] = []
    factors = Factors(*(tensor.requires_grad_() for tensor in draw_factors(0, 1, 2, 96, 80, 8, torch.float32)))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        adapted_weight(None, factors, torch.tensor([4000]), UpdateSpec("mixk", "published", 0.1), torch.float32)
    assert max(kept) < 96 * 80


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_factor_that_is_not_a_number_shows(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_module, "_backend", lambda A: backend)
    A, B, *scalars = draw_factors(0, 1, 2, 40, 40, 4, torch.float32)
    A[0, 0, 7, 1] = torch.nan
    actual = adapted_weight(
        None, Factors(A, B, *scalars), torch.tensor([900]), UpdateSpec("mixk", "hard", 0.1), A.dtype
    )
    assert actual[:, 7].isnan().all()


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_the_default_dtype_does_not_matter(default: torch.dtype) -> None:
    values, results = draw_factors(0, 1, 2, 40, 30, 4, torch.float32), []
    for dtype in (torch.float32, default):
        torch.set_default_dtype(dtype)
        try:
            factors = Factors(*(tensor.clone().requires_grad_() for tensor in values))
            made = adapted_weight(
                None, factors, torch.tensor([900]), UpdateSpec("mixk", "published", 0.1), torch.float32
            )
            made.sin().sum().backward()
        finally:
            torch.set_default_dtype(torch.float32)
        results.append([made.detach(), *(grad_of(tensor) for tensor in factors)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
