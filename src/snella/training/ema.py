"""An exponential moving average of the tuned state, to evaluate and to save in place of the last weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from snella.training.tuned_weights import copied, load_tuned_state, tuned_state


class Ema:
    """The shadow s of a model's tuned state w: s = decay · s + (1 - decay) · w after each step.

    Floating-point entries are averaged, in at least fp32; integers and booleans (budgets, counters) are copied, so
    that the shadow is as sparse as the model is. `decay` is constant from the first step, as published: at 0.9999
    a run needs well over 10,000 steps to forget its start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow: dict[str, Tensor] = {
            name: value.to(torch.promote_types(value.dtype, torch.float32), copy=True)
            if value.is_floating_point()
            else value.clone()
            for name, value in tuned_state(model).items()
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model's tuned state after a step."""
        for name, value in tuned_state(model).items():
            shadow = self.shadow[name]
            if shadow.is_floating_point():
                shadow.lerp_(value.to(shadow.dtype), 1 - self.decay)
            else:
                shadow.copy_(value)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside the block the model holds the shadow; afterwards its own state again, to the bit."""
        own = copied(tuned_state(model))
        load_tuned_state(model, self.shadow)
        try:
            yield
        finally:
            load_tuned_state(model, own)

    def load(self, shadow: dict[str, Tensor]) -> None:
        """Take over a saved shadow.

        Raises:
            KeyError: an entry is missing.
        """
        for name, value in self.shadow.items():
            value.copy_(shadow[name])
