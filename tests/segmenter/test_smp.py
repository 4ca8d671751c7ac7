"""Each tensor of an encoder is carried over from one in the timm model, or refused."""

from __future__ import annotations

import pytest
from torch import nn

from snella.errors import UserError
from snella.segmenter import smp


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a_b = nn.Linear(2, 2)
        self.a = nn.ModuleDict({"b": nn.Linear(2, 2)})


def test_an_encoder_that_is_not_one_to_one_is_refused():
    with pytest.raises(UserError, match=r"a_b\.weight of the encoder was found 2 times"):
        smp._carry_over(Twice(), Twice(), "twice")
    with pytest.raises(UserError, match="was found 1 times in other with its shape"):
        smp._carry_over(nn.Linear(3, 2), nn.Linear(2, 2), "other")
    with pytest.raises(UserError, match="was found 0 times"):
        smp._carry_over(nn.ReLU(), nn.Linear(2, 2), "other")
