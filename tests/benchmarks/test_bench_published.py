"""The plain re-statement of the published formulas equals the package's definition and its tuner."""

from __future__ import annotations

import re
from typing import Any, cast

import peft
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import snella
from benchmarks.published import PublishedLinear, published_update, wrap_published
from snella import SnellaConfig
from snella.errors import UserError
from support.vits import tiny_vit


@given(
    n=st.integers(2, 30),
    m=st.integers(2, 30),
    heads=st.integers(1, 3),
    width=st.integers(1, 4),
    sparsity=st.integers(0, 16).map(lambda k: k / 16),  # exact places: torch.quantile rounds what it interpolates
    scalars=st.tuples(st.floats(-2, 2), st.floats(0.1, 2), st.floats(-1, 1)),
    seed=st.integers(0, 1000),
)
def test_update_and_gradients_are_the_definitions(
    n: int, m: int, heads: int, width: int, sparsity: float, scalars: tuple[float, float, float], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def factor(rows: int) -> Tensor:
        return torch.randn(heads, rows, width, dtype=torch.float64, generator=generator).requires_grad_()

    inputs = [factor(n), factor(m), *(torch.tensor(s, dtype=torch.float64, requires_grad=True) for s in scalars)]
    weights = torch.randn(m, n, dtype=torch.float64, generator=generator)
    published = published_update(*inputs, sparsity=sparsity, scale=0.1).T
    defined = snella.delta_weight(*inputs, sparsity=sparsity, scale=0.1)

    torch.testing.assert_close(published, defined)
    for ours, theirs in zip(
        torch.autograd.grad((published * weights).sum(), inputs),
        torch.autograd.grad((defined * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def tuned_pair(recompute: bool) -> tuple[nn.Module, nn.Module]:
    """Return one model tuned by the package's tuner and by the re-statement, with the same factors, in float64."""
    config: Any = SnellaConfig.published(r=8, init_sparsity=0.7, target_sparsity=0.7)
    ours = peft.get_peft_model(cast(Any, tiny_vit()), config).double().train()
    theirs = wrap_published(tiny_vit(), r=8, sparsity=0.7, recompute=recompute).double().train()
    state = ours.state_dict()
    with torch.no_grad():
        for name, module in theirs.named_modules():
            if isinstance(module, PublishedLinear):
                for part in "AB":
                    for i, factor in enumerate(getattr(module, part)):
                        state[f"base_model.model.{name}.snella_{part}.default"][i].copy_(factor.normal_())
    return ours, theirs


@pytest.mark.parametrize("recompute", [False, True])
def test_a_whole_model_gives_the_tuners_logits_and_gradients(batch: tuple[Tensor, Tensor], recompute: bool) -> None:
    ours, theirs = tuned_pair(recompute)
    logits = [model(batch[0].double()) for model in (ours, theirs)]
    for output in logits:
        output.square().sum().backward()

    torch.testing.assert_close(*logits)
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    tuner = dict(ours.named_parameters())
    factors = [name for name in gradients if re.search(r"\.[AB]\.\d$", name)]
    assert len(factors) == 2 * 2 * (3 + 3)
    for name in factors:
        layer, part, i = name.rsplit(".", 2)
        reference = tuner[f"base_model.model.{layer}.snella_{part}.default"].grad
        assert reference is not None
        torch.testing.assert_close(gradients[name], reference[int(i)])


def test_only_linear_layers() -> None:
    model = timm.create_model("test_convnext", conv_mlp=True)
    with pytest.raises(UserError, match=r"fc1 is a Conv2d"):
        wrap_published(model, r=4, sparsity=0.5)
