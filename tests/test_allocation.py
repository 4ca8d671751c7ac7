"""The allocator: the published trace, and what holds for all budgets, scores and sizes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snella.allocation import Importance, Schedule, budgets, shares
from snella.delta import kept_count
from support.golden import reference
from support.tuned import grad_of


def golden_factors(tensors: dict[str, torch.Tensor], step: int, layers: int) -> dict[str, torch.Tensor]:
    """Factors with one matrix each, gradients attached."""
    factors = {}
    for layer in range(layers):
        for name in "AB":
            factor = tensors[f"step{step}.layer{layer}.{name}"][None].clone()
            factor.grad = tensors[f"step{step}.layer{layer}.grad_{name}"][None].clone()
            factors[f"{layer}.{name}"] = factor
    return factors


def test_published_trace_of_budgets() -> None:
    tensors, meta = reference("allocator")
    sizes = [n * m for n, m in meta["shapes"]]
    schedule = Schedule(
        init_sparsity=meta["init_sparsity"],
        target_sparsity=meta["target_sparsity"],
        total_step=meta["steps"],
        allocate_every=meta["update_every"],
    )
    importance = Importance(meta["beta1"], meta["beta2"])
    trace = {entry["step"]: entry for entry in meta["trace"]}
    allocated = []
    for step in range(1, meta["steps"] + 1):
        importance.update(golden_factors(tensors, step - 1, len(sizes)))
        budget = schedule.budget(step, sizes)
        if budget is None:
            continue
        allocated.append(step)
        scores = [importance.score([f"{layer}.A", f"{layer}.B"])[0] for layer in range(len(sizes))]
        published = [kept_count(s, size) for s, size in zip(trace[step]["sparsity"], sizes, strict=True)]
        assert budget == trace[step]["budget"]
        assert budgets(budget, scores, sizes) == published
    assert allocated == sorted(trace)[1:]  # the entry at 0 is the state before training
    final = [importance.score([f"{layer}.A", f"{layer}.B"])[0] for layer in range(len(sizes))]
    assert final == pytest.approx(meta["final_scores"], rel=1e-5)


@st.composite
def competitions(draw: st.DrawFn) -> tuple[float, list[float], list[int]]:
    sizes = draw(st.lists(st.integers(4, 5000), min_size=1, max_size=12))
    score = st.one_of(st.just(0.0), st.floats(1e-30, 1e6))
    scores = draw(st.lists(score, min_size=len(sizes), max_size=len(sizes)))
    return draw(st.floats(0, 1)) * sum(sizes), scores, sizes


@given(competitions())
def test_budgets_sum_to_the_global_budget_and_fit(competition: tuple[float, list[float], list[int]]) -> None:
    budget, scores, sizes = competition
    given_out = shares(budget, scores, sizes)
    assert all(0 <= share <= size for share, size in zip(given_out, sizes, strict=True))
    assert budget - len(sizes) <= sum(given_out) <= budget + 1e-6
    kept = budgets(budget, scores, sizes)
    assert all(isinstance(k, int) and 0 <= k <= size - 1 for k, size in zip(kept, sizes, strict=True))
    # a full matrix keeps one less than its size, as published; a share may lose one to rounding
    assert abs(sum(kept) - budget) <= 2 * len(sizes)


@given(competitions(), st.randoms(use_true_random=False))
def test_permuting_layers_permutes_shares(competition, random) -> None:
    budget, scores, sizes = competition
    order = list(range(len(sizes)))
    random.shuffle(order)
    permuted = shares(budget, [scores[i] for i in order], [sizes[i] for i in order])
    assert permuted == [shares(budget, scores, sizes)[i] for i in order]


@given(competitions(), st.floats(0, 1))
def test_a_larger_budget_gives_no_matrix_less(competition, fraction: float) -> None:
    budget, scores, sizes = competition
    smaller = shares(fraction * budget, scores, sizes)
    larger = shares(budget, scores, sizes)
    assert all(a <= b + 1 for a, b in zip(smaller, larger, strict=True))  # 1: both are truncated


def test_scores_of_zero_share_equally() -> None:
    assert shares(30, [0.0, 0.0, 0.0], [100, 100, 100]) == [10, 10, 10]
    assert shares(30, [0.0, 0.0, 5.0], [100, 100, 10]) == [10, 10, 10]  # what the full one leaves


def test_the_budget_falls_as_published_and_stops_before_the_end() -> None:
    sizes = [100, 60]
    schedule = Schedule(
        init_sparsity=0.0, target_sparsity=0.75, total_step=43, allocate_every=4, init_warmup=8, final_warmup=8
    )
    seen = {step: schedule.budget(step, sizes) for step in range(1, 44)}
    changed = {step: budget for step, budget in seen.items() if budget is not None}
    assert sorted(changed) == [12, 16, 20, 24, 28, 32, 36]  # not in the warm-up, not at or after T
    first, last = 160, 40
    for step in (12, 16, 20, 24, 28, 32):
        assert changed[step] == int(last + (first - last) * (1 - (step - 8) / 24) ** 3)
    assert changed[36] == pytest.approx(last)  # within the final warm-up


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 60), st.integers(1, 9), st.integers(0, 30), st.integers(0, 30))
def test_budgets_are_monotone(first: float, last: float, total: int, every: int, warm: int, final: int) -> None:
    low, high = sorted((first, last))
    schedule = Schedule(
        init_sparsity=low,
        target_sparsity=high,
        total_step=total,
        allocate_every=every,
        init_warmup=warm,
        final_warmup=final,
    )
    values = [b for step in range(1, total + 1) if (b := schedule.budget(step, [1000])) is not None]
    assert all(a >= b - 1 for a, b in itertools.pairwise(values))  # 1: only the cubic part is truncated
    assert all(1000 * (1 - high) - 1 <= b <= 1000 * (1 - low) + 1 for b in values)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_leaves_the_averages_alone(bad: float) -> None:
    tensors, _ = reference("allocator")
    importance = Importance()
    importance.update(golden_factors(tensors, 0, 6))
    before = importance.score(["0.A", "0.B"])
    spoilt = golden_factors(tensors, 1, 6)
    grad_of(spoilt["3.B"])[0, 0, 0, 0] = bad
    importance.update(spoilt)
    assert importance.skipped == 1
    assert importance.score(["0.A", "0.B"]) == before


def test_a_missing_gradient_counts_as_zero_and_none_at_all_is_an_error() -> None:
    tensors, _ = reference("allocator")
    with_zero, without = Importance(), Importance()
    factors = golden_factors(tensors, 0, 6)
    factors["2.A"].grad = torch.zeros_like(factors["2.A"])
    with_zero.update(factors)
    factors["2.A"].grad = None
    without.update(factors)
    assert without.score(["2.A", "2.B"]) == with_zero.score(["2.A", "2.B"])
    for factor in factors.values():
        factor.grad = None
    with pytest.raises(ValueError, match="before the gradients are cleared"):
        without.update(factors)


def test_state_goes_on_to_the_bit() -> None:
    tensors, _ = reference("allocator")
    straight, resumed = Importance(), Importance()
    for step in range(6):
        if step == 3:
            resumed.load_state_dict({key: t.clone() for key, t in straight.state_dict().items()})
        straight.update(golden_factors(tensors, step, 6))
        if step >= 3:
            resumed.update(golden_factors(tensors, step, 6))
    for key, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[key]), key


def test_all_factors_at_once_are_as_one_by_one() -> None:
    """What CUDA does, on the CPU: the same averages, and a step that is not finite is left out there too."""
    torch.manual_seed(0)
    factors = {f"{i}.A": torch.randn(2, 1, 3 + i, 2).requires_grad_() for i in range(3)}
    one_by_one, at_once = Importance(), Importance()
    for step in range(5):
        for i, factor in enumerate(factors.values()):
            factor.grad = None if (step, i) == (1, 1) else torch.randn_like(factor)
        if step == 3:
            next(iter(factors.values())).grad = torch.full((2, 1, 3, 2), torch.nan)
        one_by_one.update(factors)
        with torch.no_grad():
            for averages in (at_once.mean, at_once.deviation):
                for name, factor in factors.items():
                    averages.setdefault(name, torch.zeros_like(factor))
            at_once._update_at_once(factors)
    assert at_once.skipped == one_by_one.skipped == 1
    for key, value in one_by_one.state_dict().items():
        torch.testing.assert_close(at_once.state_dict()[key], value, msg=key)
    vector = at_once.mean["0.A"]._base
    assert all(average._base is vector for average in at_once.mean.values())
    resumed = Importance()
    resumed.load_state_dict(at_once.state_dict())
    with torch.no_grad():
        resumed._update_at_once(factors)
    assert resumed.mean.keys() == factors.keys()
    groups = [[name] for name in factors]
    assert at_once.scores(groups) == [at_once.score(names) for names in groups]
