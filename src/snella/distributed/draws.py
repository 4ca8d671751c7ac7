"""What a module does with a whole batch, done with a part of it: draws for each sample, and batch norms' statistics.

A draw is made for all rows of the batch, from generators that are alike in all processes, and the part's own rows are
taken: so it does not depend on how many processes there are. Statistics are summed over the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from snella.distributed.part import Part, current_part, summed_over_parts, trained_norms, whole

DROPS = ("DropPath", "StochasticDepth", "DropBlock")  # how modules that drop samples are called


def whole_draws(blocks: int = 1) -> AbstractContextManager[Any]:
    """Draw inside as for the whole batch. A tensor's first axis holds `blocks` batches, one behind the other."""
    part = current_part()
    return nullcontext() if part is None else _WholeBatch(part, blocks)


def dropout(x: Tensor, rate: float) -> Tensor:
    """Return x (b, ...) with entries dropped as for the whole batch; as `F.dropout`."""
    with whole_draws():
        return F.dropout(x, rate)


def for_each_sample(draw: Callable[[int], Tensor], samples: int) -> Tensor:
    """Return `draw(samples)`, (..., samples); of a part of a batch its own columns of what is drawn for all."""
    part = current_part()
    if part is None or samples % part.size:
        return draw(samples)
    each = samples // part.size  # as windows of an image
    return draw(part.whole * each)[..., part.start * each : part.stop * each]


@contextmanager
def as_whole_batches(model: nn.Module) -> Iterator[None]:
    """Let the modules of a model that draw for each sample, or whose statistics are of the batch, see all of it."""
    drops = (nn.modules.dropout._DropoutNd,)
    found = [
        module
        for module in model.modules()
        if isinstance(module, drops) or any(word in type(module).__name__ for word in DROPS)
    ]
    changed = [module for module in [*found, *trained_norms(model)] if "forward" not in vars(module)]
    for module in changed:
        module.forward = _within(module.forward)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _within(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with whole_draws():
            return forward(*args, **kwargs)

    return run


class _WholeBatch(TorchFunctionMode):
    """Replaces what draws, and batch norms' own function."""

    def __init__(self, part: Part, blocks: int) -> None:
        self.part, self.blocks = part, blocks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.rand, torch.randn):
            shape = args[0] if args and isinstance(args[0], (tuple, list, torch.Size)) else args
            return self._drawn(shape, lambda size: func(*size, **kwargs), lambda: func(*args, **kwargs))
        if func in (torch.randn_like, torch.rand_like):
            like = partial(_filled, args[0])
            return self._drawn(args[0].shape, lambda n: func(like(n), **kwargs), lambda: func(*args, **kwargs))
        if func is Tensor.bernoulli_:
            return self._bernoulli(func, args, kwargs)
        if func in _DROPOUTS:
            return self._dropout(func, *args, **kwargs)
        if func is F.batch_norm:
            return self._batch_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _drawn(self, shape: Any, draw: Callable[[Any], Tensor], plain: Callable[[], Tensor]) -> Tensor:
        """Return the part's rows of a draw for the whole batch; plainly drawn where the first axis is no batch."""
        rows = self.blocks * self.part.size
        if not len(shape) or shape[0] % rows:
            return plain()
        each = shape[0] // rows  # rows of a sample, such as its windows
        drawn = draw((self.blocks * self.part.whole * each, *shape[1:]))
        blocks = drawn.unflatten(0, (self.blocks, self.part.whole, each))
        return blocks[:, self.part.start : self.part.stop].flatten(0, 2)

    def _bernoulli(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        x, rest = args[0], args[1:]
        drawn = self._drawn(x.shape, lambda n: func(_filled(x, n), *rest, **kwargs), lambda: func(x, *rest, **kwargs))
        return x if drawn is x else x.copy_(drawn)

    def _dropout(self, func: Any, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or not p:
            return func(x, p, training, inplace)
        mask = self._drawn(x.shape, lambda n: func(_filled(x, n, 1), p), lambda: func(torch.ones_like(x), p))
        return x.mul_(mask) if inplace else x * mask

    def _batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """Normalise x (b, c, ...) by the mean and variance of the whole batch; as `F.batch_norm` for all of it."""
        if not training:
            return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        axes = [0, *range(2, x.ndim)]
        shape = (1, -1, *(1,) * (x.ndim - 2))
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        count = float(whole(x.numel() / x.shape[1]))
        mean = summed_over_parts(values.sum(axes)) / count
        centred = values - mean.view(shape)
        var = summed_over_parts(centred.square().sum(axes)) / count
        with torch.no_grad():
            if running_mean is not None:
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            if running_var is not None:
                running_var.lerp_((var * (count / max(count - 1, 1))).to(running_var.dtype), momentum)
        y = centred * (var + eps).rsqrt().view(shape)
        if weight is not None:
            y = y * weight.view(shape)
        if bias is not None:
            y = y + bias.view(shape)
        return y.to(x.dtype)


def _filled(x: Tensor, shape: Sequence[int], value: float = 0) -> Tensor:
    """Return a tensor in x's layout, by which its draws come in the same order."""
    last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=x.dtype, device=x.device, memory_format=layout).fill_(value)


_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
