"""Selection of the threshold: equal to the definition, by every way, for every input, size and budget."""

from __future__ import annotations

import tracemalloc
from typing import Any, Literal
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from snella import delta
from snella.ops import budget_threshold, native, selection

SELECTORS = {
    "sample": selection.select_by_sample,
    "sample without a compiler": selection.select_by_sample,
    "digits": selection.select_by_digits,
}
SMALL: Any = dict(SAMPLE=16, CPU_PIECE=24, DEVICE_PIECE=32, LANES=8)  # so that a few numbers fill several pieces


def defined(magnitude: Tensor, kept: int, interpolated: bool) -> Tensor:
    if interpolated:
        return delta.quantile(magnitude, 1 - kept / magnitude.numel())
    return delta.threshold(magnitude, kept)


def selected(magnitude: Tensor, kept: int, interpolated: bool, way: str) -> Tensor:
    entries = torch.where(torch.arange(magnitude.numel()).view_as(magnitude) % 3 == 0, -magnitude, magnitude)
    with pytest.MonkeyPatch.context() as patch:
        if way == "sample without a compiler":
            patch.setattr(native, "magnitudes_between", lambda *arguments: None)
        return selection.threshold_by(entries, torch.tensor(kept), interpolated, SELECTORS[way])


def real_like(rows: int, columns: int) -> Tensor:
    """|K| (rows, columns) of freshly made factors."""
    A, B = torch.randn(2, columns, 4), torch.randn(2, rows, 4)
    return delta.kernel_matrix(A, B, kernel="pwl").abs()


@st.composite
def magnitudes(draw: st.DrawFn) -> Tensor:
    """1 to 300 numbers: a few levels with ties, whatever a number's bits can be, or a smooth spread; maybe sorted."""
    widths: list[Literal[32, 64]] = [32, 64]
    width = draw(st.sampled_from(widths))
    any_number = st.floats(0, allow_infinity=False, width=width)
    numbers = draw(st.sampled_from([st.sampled_from(draw(st.lists(any_number, min_size=1, max_size=4))), any_number]))
    values = torch.tensor(
        draw(st.lists(numbers, min_size=1, max_size=300)), dtype=torch.float32 if width == 32 else torch.float64
    ).abs()  # -0.0 is no magnitude
    return values.sort().values if draw(st.booleans()) else values


@pytest.mark.parametrize("way", SELECTORS)
@pytest.mark.parametrize("interpolated", [False, True])
@given(magnitude=magnitudes(), data=st.data())
def test_equals_the_definition(magnitude: Tensor, data: st.DataObject, interpolated: bool, way: str) -> None:
    kept = data.draw(st.integers(0, magnitude.numel()))
    with mock.patch.multiple(selection, **SMALL):
        t = selected(magnitude, kept, interpolated, way)
    assert (t.shape, t.dtype) == ((), magnitude.dtype)
    assert torch.equal(t, defined(magnitude, kept, interpolated))


@pytest.mark.parametrize("way", SELECTORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(size=st.integers(1, 3000), seed=st.integers(0, 99), data=st.data())
def test_interpolates_as_the_definition(
    size: int, seed: int, data: st.DataObject, dtype: torch.dtype, way: str
) -> None:
    magnitude = torch.randn(size, dtype=dtype, generator=torch.Generator().manual_seed(seed)).abs()
    kept = data.draw(st.integers(0, size))
    assert torch.equal(selected(magnitude, kept, True, way), defined(magnitude, kept, True))


SIZE = 3 * selection.SAMPLE - 1  # odd and no multiple of 3: the sample is every third entry
RAMP = torch.arange(SIZE, dtype=torch.float32)
MISLEADING = {
    "constant": torch.full((SIZE,), 0.25),
    "zero": torch.zeros(SIZE),
    "sorted": RAMP,
    "falling": RAMP.flip(0),
    "levels": RAMP.remainder(7).square(),
    "one large value": torch.where(RAMP == SIZE - 1, 5.0, 1.0),
    "the sample sees one value": torch.where(RAMP % 3 == 0, 1.0, 2.0 + RAMP.sin()),
    "the sample sees the largest": torch.where(RAMP % 3 == 0, 2 * SIZE + RAMP, RAMP),
}


@pytest.mark.parametrize("way", SELECTORS)
@pytest.mark.parametrize("name", MISLEADING)
def test_misleading_magnitudes(name: str, way: str) -> None:
    for kept in (0, 1, SIZE // 10, SIZE // 2, SIZE - 1, SIZE):
        for interpolated in (False, True):
            expected = defined(MISLEADING[name], kept, interpolated)
            assert torch.equal(selected(MISLEADING[name], kept, interpolated, way), expected), (kept, interpolated)


@pytest.mark.parametrize("way", SELECTORS)
def test_a_matrix_of_a_diverged_run(way: str) -> None:
    magnitude = torch.randn(100_000).abs()
    magnitude[::3], magnitude[1::5] = torch.inf, torch.nan
    for kept in (0, 10_000, 40_000, 90_000, 100_000):
        t, expected = selected(magnitude, kept, False, way), defined(magnitude, kept, False)
        torch.testing.assert_close(t, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("way", SELECTORS)
def test_above_33_million_entries(way: str) -> None:
    size, kept = 34_000_003, 3_400_000
    magnitude = torch.randn(size).abs_()
    t = selected(magnitude, kept, False, way)
    assert int((magnitude < t).sum()) < size - kept <= int((magnitude <= t).sum())


@pytest.mark.parametrize("interpolated", [False, True])
def test_the_operator_takes_any_layout(interpolated: bool) -> None:
    magnitude = real_like(300, 200)
    for view in (magnitude, magnitude.T, magnitude[::3, 5:], magnitude.view(3, 100, 2, 100).permute(2, 0, 3, 1)):
        kept = view.numel() // 5
        t = budget_threshold(view, torch.tensor(kept), interpolated)
        assert torch.equal(t, defined(view, kept, interpolated))


@pytest.mark.parametrize("interpolated", [False, True])
def test_the_operator_takes_several_matrices(interpolated: bool) -> None:
    matrices, kept = torch.stack([real_like(30, 20) for _ in range(3)]), torch.tensor([0, 100, 600])
    t = budget_threshold(matrices, kept, interpolated)
    assert torch.equal(t, torch.stack([budget_threshold(matrices[i], kept[i], interpolated) for i in range(3)]))
    by_digits = selection.threshold_by(matrices, kept, interpolated, selection.select_by_digits)
    assert torch.equal(by_digits, t)


def test_the_operator_is_fit_for_compilation() -> None:
    for interpolated in (False, True):
        torch.library.opcheck(budget_threshold, (real_like(40, 30), torch.tensor(100), interpolated))
        torch.library.opcheck(budget_threshold, (real_like(40, 30), torch.tensor([10] * 40), interpolated))


@pytest.mark.parametrize("interpolated", [False, True])
def test_memory_stays_far_below_the_matrix(interpolated: bool) -> None:
    magnitude = real_like(1024, 2048)
    for share in (0, 0.01, 0.1, 0.5, 0.9, 1):
        kept = torch.tensor(int(share * magnitude.numel()))
        tracemalloc.start()
        budget_threshold(magnitude, kept, interpolated)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert 0 < peak < magnitude.nbytes / 8, share


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("interpolated", [False, True])
def test_devices_never_wait(interpolated: bool, dtype: torch.dtype) -> None:
    """Meta tensors have no values: reading one, or a shape that depends on one, is an error."""
    magnitude = torch.empty(3000, 1000, dtype=dtype, device="meta")
    kept = torch.empty((), dtype=torch.int64, device="meta")
    t = selection.threshold_by(magnitude, kept, interpolated, selection.select_by_digits)
    assert (t.shape, t.dtype, t.device.type) == ((), dtype, "meta")
    with pytest.raises((RuntimeError, TypeError)):
        selection.threshold_by(magnitude, kept, interpolated, selection.select_by_sample)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("interpolated", [False, True])
def test_on_cuda(interpolated: bool, dtype: torch.dtype) -> None:
    magnitude = real_like(3000, 2000).to("cuda", dtype)
    for kept in (0, 1, 600_000, 5_999_999, 6_000_000):
        budget = torch.tensor(kept, device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        try:
            t = budget_threshold(magnitude, budget, interpolated)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.testing.assert_close(t.cpu(), defined(magnitude.cpu(), kept, interpolated), rtol=1e-7, atol=0)
