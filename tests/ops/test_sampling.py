"""The weight gradient from a part of the rows: unbiased, exact where it can be, the largest rows for sure."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from snella.ops import draw_sample
from snella.ops.sampling import Sample, choose_rows, sampled_product
from support.tuned import tuned

DRAWS = 512  # evenly over [0, 1): the mean over a systematic draw's random number, by the midpoint rule


def rows(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return g (count, 5) and x (count, 3) whose rows differ in size by much."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(count, 1, generator=generator) ** 4
    return sizes * torch.randn(count, 5, generator=generator), torch.randn(count, 3, generator=generator)


def samples(share: float) -> list[Sample]:
    return [Sample(share, torch.tensor((i + 0.5) / DRAWS)) for i in range(DRAWS)]


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_the_mean_over_draws_is_the_exact_product(share: float) -> None:
    g, x = rows(60)
    mean = torch.stack([sampled_product(g, x, sample) for sample in samples(share)]).mean(0)
    exact = g.mT @ x
    assert (mean - exact).abs().max() < 0.01 * exact.abs().max()
    one = sampled_product(g, x, samples(share)[0])
    assert (one - exact).abs().max() > 1e-4 * exact.abs().max()  # a single one is an estimate


def test_the_largest_rows_count_as_they_are() -> None:
    g, x = rows(40)
    sizes = g.norm(dim=1) * x.norm(dim=1)
    for sample in samples(0.25)[::50]:
        chosen, weights = choose_rows(g, x, sample)
        assert len(chosen) == 10
        assert set(chosen[:5].tolist()) == set(sizes.topk(5).indices.tolist())
        assert (weights[:5] == 1).all()
        assert not set(chosen[5:].tolist()) & set(chosen[:5].tolist())
        rest = sizes.sum() - sizes.topk(5).values.sum()
        torch.testing.assert_close(weights[5:], rest / 5 / sizes[chosen[5:]])


@given(count=st.integers(1, 30), there=st.integers(0, 30), share=st.floats(0.05, 0.95), draw=st.floats(0, 0.999))
def test_rows_of_zeros_are_left_out_and_few_others_are_all_taken(
    count: int, there: int, share: float, draw: float
) -> None:
    g, x = rows(count)
    there = min(there, count)
    places = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    g[places[there:]] = 0
    chosen, weights = choose_rows(g, x, Sample(share, torch.tensor(draw)))
    assert set(chosen.tolist()) <= set(places[:there].tolist())
    assert weights.isfinite().all()
    if there <= math.ceil(share * count):
        torch.testing.assert_close(sampled_product(g, x, Sample(share, torch.tensor(draw))), g.mT @ x)


def test_what_is_not_finite_shows() -> None:
    g, x = rows(40)
    g[7] = math.nan
    assert sampled_product(g, x, samples(0.25)[0]).isnan().any()


def test_the_same_draw_gives_the_same_bits() -> None:
    g, x = rows(100)
    torch.manual_seed(3)
    first = sampled_product(g, x, draw_sample(0.25, g.device))
    torch.manual_seed(3)
    assert torch.equal(sampled_product(g, x, draw_sample(0.25, g.device)), first)
    assert not torch.equal(sampled_product(g, x, draw_sample(0.25, g.device)), first)


def gradients(model: nn.Module, x: Tensor, seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    model.zero_grad()
    model(x).square().sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.requires_grad and p.grad is not None]


def linear(**settings: object) -> nn.Module:
    torch.manual_seed(0)
    return tuned(nn.Sequential(nn.Linear(12, 10)), r=4, target_modules=["0"], modules_to_save=[], **settings)  # pyright: ignore


def test_a_layer_s_gradient_is_right_in_the_mean_and_its_output_always() -> None:
    exact, sampled = linear().train(), linear(sample_tokens=0.25).train()
    x = torch.randn(6, 9, 12, generator=torch.Generator().manual_seed(2))
    assert torch.equal(sampled(x), exact(x))
    found = [gradients(sampled, x, seed) for seed in range(400)]
    for i, gradient in enumerate(gradients(exact, x, 0)):
        drawn = torch.stack([one[i] for one in found])
        error = drawn.std(0) / math.sqrt(len(drawn))
        assert (drawn.mean(0) - gradient).abs().le(5 * error + 1e-5).all()
    assert found[0][0].ne(found[1][0]).any()
    assert [g.tolist() for g in gradients(sampled, x, 5)] == [g.tolist() for g in gradients(sampled, x, 5)]


def test_evaluation_and_the_gradient_of_x_are_exact() -> None:
    exact, sampled = linear(), linear(sample_tokens=0.25)
    x = torch.randn(6, 9, 12, generator=torch.Generator().manual_seed(2), requires_grad=True)
    for mode in (True, False):
        (wanted,) = torch.autograd.grad(exact.train(mode)(x).square().sum(), x)
        (given_,) = torch.autograd.grad(sampled.train(mode)(x).square().sum(), x)
        assert torch.equal(given_, wanted)
    pairs = zip(gradients(sampled.eval(), x, 0), gradients(exact.eval(), x, 0), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_trainable_base_gets_its_exact_gradient() -> None:
    exact, sampled = linear().train(), linear(sample_tokens=0.25).train()
    x = torch.randn(6, 9, 12, generator=torch.Generator().manual_seed(2))
    found = []
    for model in (exact, sampled):
        (weight,) = (p for name, p in model.named_parameters() if name.endswith("base_layer.weight"))
        weight.requires_grad_(True)
        model(x).square().sum().backward()
        found.append(weight.grad)
    assert torch.equal(*found)


@pytest.mark.slow
def test_with_drop_path_it_is_right_in_the_mean_too() -> None:
    settings = {"update_drop_path": 0.5}
    exact, sampled = linear(**settings).train(), linear(sample_tokens=0.25, **settings).train()
    x = torch.randn(6, 9, 12, generator=torch.Generator().manual_seed(2))
    means = []
    for model in (exact, sampled):
        drawn = [gradients(model, x, seed) for seed in range(600)]
        means.append(
            [(torch.stack(g).mean(0), torch.stack(g).std(0) / math.sqrt(600)) for g in zip(*drawn, strict=True)]
        )
    for (wanted, spread), (found, own) in zip(*means, strict=True):
        assert (found - wanted).abs().le(5 * (spread + own) + 1e-5).all()


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, math.nan])
def test_shares_out_of_range_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="sample_tokens"):
        linear(sample_tokens=share)
