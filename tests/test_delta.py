"""The definition of the update: golden values of the published code, and what holds for every input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snella import delta_weight
from snella.delta import GATES, Gate, Kernel, gated, kept_count, kernel_matrix, quantile, threshold
from support.golden import reference, relative_error
from support.tuned import grad_of

KERNELS, KERNEL_CASES = reference("kernels")
SCALARS = ("alpha", "gamma", "beta")


def factors(
    n: int, m: int, r: int, heads: int, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(heads, n, r // heads, dtype=dtype), torch.randn(heads, m, r // heads, dtype=dtype)


@pytest.mark.parametrize("case", range(len(KERNEL_CASES)))
def test_published_values_and_gradients(case: int) -> None:
    meta = KERNEL_CASES[case]
    golden = {key.split(".", 1)[1]: tensor for key, tensor in KERNELS.items() if key.startswith(f"case{case}.")}
    inputs = {name: golden[name].requires_grad_() for name in ("A", "B", *SCALARS) if name in golden}
    x = golden["x"].requires_grad_()

    scalars = (inputs.get(name) for name in SCALARS)
    settings = dict(sparsity=meta["sparsity"], kernel=meta["kernel"], scale=meta["scale"])
    delta = delta_weight(inputs["A"], inputs["B"], *scalars, **settings)
    y = x @ delta.T
    y.backward(golden["grad_y"])

    assert delta.shape == (meta["out_features"], meta["in_features"])
    assert int((delta != 0).sum()) == meta["kept"]
    assert relative_error(delta, golden["delta_weight"]) <= 1e-5
    assert relative_error(y, golden["y"]) <= 1e-5
    assert relative_error(x.grad, golden["grad_x"]) <= 1e-4
    for name, tensor in inputs.items():
        assert relative_error(tensor.grad, golden[f"grad_{name}"]) <= (2e-3 if name in SCALARS else 1e-4), name


@given(st.integers(2, 200), st.data())
def test_a_budget_keeps_as_many_as_it_says(size: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, size))
    magnitude = torch.randperm(size).double()
    assert int((magnitude > threshold(magnitude, kept)).sum()) == min(kept, size - 1)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=60), st.data())
def test_ties_at_the_threshold_keep_fewer(values: list[int], data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, len(values)))
    magnitude = torch.tensor(values, dtype=torch.float32)
    t = threshold(magnitude, kept)
    above = int((magnitude > t).sum())
    assert above <= kept
    assert above + int((magnitude == t).sum()) > min(kept, len(values) - 1)  # one more level would be too many


@given(st.floats(0, 1), st.integers(2, 300))
def test_kept_count_is_what_the_interpolated_quantile_keeps(sparsity: float, size: int) -> None:
    magnitude = torch.arange(size, dtype=torch.float64)
    expected = int((magnitude > torch.quantile(magnitude, sparsity)).sum())
    assert kept_count(sparsity, size) == expected


@given(st.integers(2, 300), st.floats(0, 1))
def test_quantile_equals_torch(size: int, sparsity: float) -> None:
    magnitude = torch.rand(size, dtype=torch.float64)
    torch.testing.assert_close(quantile(magnitude, sparsity), torch.quantile(magnitude, sparsity))


@given(
    heads=st.integers(1, 4),
    width=st.integers(1, 4),
    n=st.integers(2, 12),
    m=st.integers(2, 12),
    sparsity=st.floats(0, 1),
    gate=st.sampled_from([gate for gate in GATES if gate != "none"]),
)
def test_gates_by_their_formulas(heads: int, width: int, n: int, m: int, sparsity: float, gate: Gate) -> None:
    A, B = factors(n, m, heads * width, heads)
    alpha, gamma, beta = (torch.randn((), dtype=torch.float64) for _ in range(3))
    # row by row, without cdist, softmax or kthvalue
    D = torch.zeros(m, n, dtype=torch.float64)
    for h in range(heads):
        D += (-1) ** h * 0.1 * (B[h, :, None] - A[h, None]).square().sum(-1).sqrt()
    g = torch.sign(gamma) * gamma.abs().clamp_min(1e-3)
    e = (D / g - (D / g).amax(0)).exp()
    K = D + alpha * e / e.sum(0) + beta
    ordered = K.abs().flatten().sort().values
    t = ordered[n * m - 1 - kept_count(sparsity, n * m)]
    expected = {
        "published": torch.where(K.abs() > t, K * K.abs(), 0),
        "hard": torch.where(K.abs() > t, K, 0),
        "soft": K * (K.abs() - torch.quantile(ordered, sparsity)).clamp_min(0),
    }[gate]
    actual = delta_weight(A, B, alpha, gamma, beta, sparsity=sparsity, gate=gate)
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-9)


def test_gate_none_is_the_kernel_matrix() -> None:
    A, B = factors(6, 5, 4, 2)
    torch.testing.assert_close(
        delta_weight(A, B, sparsity=0.5, kernel="pwl", gate="none"), kernel_matrix(A, B, kernel="pwl")
    )


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("gate", ["published", "soft", "hard", "none"])
@pytest.mark.parametrize("kernel", ["mixk", "pwl"])
def test_gradients_in_float64(kernel: Kernel, gate: Gate, heads: int) -> None:
    A, B = factors(5, 4, 3 * heads, heads)
    inputs = [A, B] + ([torch.tensor(v).double() for v in (0.8, 0.7, 0.1)] if kernel == "mixk" else [])
    K0 = kernel_matrix(*inputs, kernel=kernel)
    ordered = K0.abs().flatten().sort().values
    t = (ordered[9] + ordered[10]) / 2  # between two magnitudes: a small change moves none across

    def update(*tensors: torch.Tensor) -> torch.Tensor:
        K = kernel_matrix(*tensors, kernel=kernel)
        if gate in ("hard", "none"):
            return gated(K, t, gate)
        # the magnitude that scales an entry is a constant: held at its value, the gate is linear in K
        factor = (K0.abs() - t).clamp_min(0) if gate == "soft" else torch.where(K0.abs() > t, K0.abs(), 0)
        return K * factor

    variables = tuple(tensor.clone().requires_grad_() for tensor in inputs)
    assert torch.autograd.gradcheck(update, variables)
    # ... and that held factor is what the gate itself differentiates by
    weights = torch.randn_like(K0)
    by_gate = torch.autograd.grad((gated(kernel_matrix(*variables, kernel=kernel), t, gate) * weights).sum(), variables)
    by_held = torch.autograd.grad((update(*variables) * weights).sum(), variables)
    for actual, expected in zip(by_gate, by_held, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("size", [8, 40])  # below and above the size at which cdist goes by products
def test_gradient_is_finite_where_points_coincide(size: int) -> None:
    A = torch.randn(2, size, 4, requires_grad=True)
    B = A.detach().clone().requires_grad_()
    delta_weight(A, B, sparsity=0.2, kernel="pwl", gate="hard").sum().backward()
    assert grad_of(A).isfinite().all()
    assert grad_of(B).isfinite().all()


@pytest.mark.parametrize("gamma", [0.0, 1e-9, -1e-9])
def test_gamma_stays_away_from_zero(gamma: float) -> None:
    A, B = factors(6, 5, 4, 2)
    one, zero = torch.ones(1), torch.zeros(1)
    actual = delta_weight(A, B, one, torch.tensor([gamma]), zero, sparsity=0.0)
    held = delta_weight(A, B, one, torch.tensor([-1e-3 if gamma < 0 else 1e-3]), zero, sparsity=0.0)
    assert actual.isfinite().all()
    torch.testing.assert_close(actual, held)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_at_least_fp32_inside(dtype: torch.dtype) -> None:
    A, B = (factor.to(dtype) for factor in factors(30, 20, 8, 2))
    with torch.autocast("cpu", torch.bfloat16):
        delta = delta_weight(A, B, sparsity=0.3, kernel="pwl")
    wide = delta_weight(A.double(), B.double(), sparsity=0.3, kernel="pwl")
    assert delta.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert relative_error(delta.double(), wide) < 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.5}, r"sparsity 1\.5 is outside"),
        ({"sparsity": 0.5, "kernel": "rbf"}, "unknown kernel 'rbf'; choose from mixk, pwl"),
        ({"sparsity": 0.5, "gate": "top"}, "unknown gate 'top'"),
        ({"sparsity": 0.5}, "needs alpha, gamma and beta"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        delta_weight(*factors(4, 4, 4, 2), **arguments)
