"""Several adapters' updates in one plain model."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from peft.utils.hotswap import hotswap_adapter
from peft.utils.merge_utils import ties
from torch import nn

from snella import SnellaConfig, combine
from snella.errors import UserError
from snella.integrations.combine import merge_by_sign
from support.tuned import layer_named, tuned


def base() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 2))


def with_two(head: bool = False) -> Any:
    model = tuned(base(), target_modules=["0"], modules_to_save=["2"] if head else [])
    other = SnellaConfig(r=4, start_scale=5.0, gate="hard", target_modules=["0", "1"], modules_to_save=["2"] * head)
    model.add_adapter("other", other)  # type: ignore[arg-type]
    return model


def test_the_sum_is_in_the_weights() -> None:
    model, plain = with_two(), base()
    deltas = [layer_named(model, "0").get_delta_weight(name) for name in ("default", "other")]
    second = layer_named(model, "1").get_delta_weight("other")
    combined: Any = combine(model, ["default", "other"], [0.5, -2.0])
    torch.testing.assert_close(combined[0].weight, plain[0].weight + 0.5 * deltas[0] - 2 * deltas[1])  # type: ignore[index]
    torch.testing.assert_close(combined[1].weight, plain[1].weight - 2 * second)  # type: ignore[index]
    assert [type(part) for part in combined] == [nn.Linear] * 3


def test_by_sign_each_entry_is_the_mean_of_those_that_have_the_sign_of_the_sum() -> None:
    model, plain, weights = with_two(), base(), (0.5, -2.0)
    deltas = [layer_named(model, "0").get_delta_weight(name) for name in ("default", "other")]
    second = layer_named(model, "1").get_delta_weight("other")
    both = [weight * delta for weight, delta in zip(weights, deltas, strict=True)]
    assert any(a * b < 0 for a, b in zip(both[0].flatten().tolist(), both[1].flatten().tolist(), strict=True))
    combined: Any = combine(model, ["default", "other"], weights, by_sign=True)

    expected = plain[0].weight.detach().clone()  # type: ignore[union-attr]
    for place in product(range(expected.shape[0]), range(expected.shape[1])):
        values = [delta[place].item() for delta in both]
        total = sum(values)
        agreeing = [value for value in values if value * total > 0]
        expected[place] += sum(agreeing) / len(agreeing) if agreeing else 0.0
    torch.testing.assert_close(combined[0].weight, expected)
    torch.testing.assert_close(combined[1].weight, plain[1].weight - 2 * second)  # type: ignore[index]


def test_the_merge_by_sign_is_pefts_ties_without_its_first_step() -> None:
    updates = [torch.randn(7, 5).relu() * torch.randn(7, 5).sign() for _ in range(3)]
    expected = ties(updates, torch.ones(3), density=1.0)
    torch.testing.assert_close(merge_by_sign(updates), expected)
    assert torch.equal(merge_by_sign(updates[:1]), updates[0])


def test_one_of_several_heads_is_chosen() -> None:
    model = with_two(head=True)
    heads = model.base_model.model[2].modules_to_save
    nn.init.zeros_(heads["other"].weight)
    with pytest.raises(UserError, match=r"a Linear was trained as a whole by default, other, .*modules_of='default'"):
        combine(model, ["default", "other"])
    with pytest.raises(UserError, match="modules_of='third': a Linear"):
        combine(model, ["default", "other"], modules_of="third")
    combined: Any = combine(model, ["default", "other"], modules_of="other")
    assert not combined[2].weight.any()


def test_what_has_no_sum_is_refused() -> None:
    model = with_two()
    for names, weights, said in (
        (["default", "third"], None, "no adapter 'third'; it has default, other"),
        (["default", "default"], None, "name each adapter once"),
        (["default", "other"], [1.0], "a finite number for each of 2"),
        (["default", "other"], [1.0, float("nan")], "a finite number for each of 2"),
    ):
        with pytest.raises(UserError, match=said):
            combine(model, names, weights)
    model.merge_adapter(["default"])
    with pytest.raises(UserError, match="default is merged already"):
        combine(model, ["default", "other"])
    with pytest.raises(UserError, match=r"snella\.combine\(model, \['default', 'other'\], weights=\[0.3, 0.7\]\)"):
        model.base_model.add_weighted_adapter(["default", "other"], [0.3, 0.7], "sum")


def test_an_adapter_is_not_swapped_in_place(tmp_path: Any) -> None:
    model = with_two()
    model.save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="Hotswapping only supports"):
        hotswap_adapter(model, str(tmp_path), adapter_name="default")
