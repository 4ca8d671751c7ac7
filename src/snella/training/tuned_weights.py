"""The tuned state: what training changes in a model, and nothing else.

It is every entry of the state dict but the frozen parameters: trainable parameters and persistent buffers (budgets,
batch-norm statistics). For an adapter that is a few MB of a model of hundreds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from snella.config.loop import LoopConfig


def tuned_state(model: nn.Module) -> dict[str, Tensor]:
    """Return trainable parameters and persistent buffers by state-dict name; detached, in the model's memory."""
    frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def copied(state: Mapping[str, Tensor], *, device: str | None = None) -> dict[str, Tensor]:
    """Return the same state in memory of its own, on `device` or where it is."""
    return {name: value.detach().to(device, copy=True) for name, value in state.items()}


def load_tuned_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a tuned state into the model, in place.

    Raises:
        ValueError: names or shapes are not those of the model's own tuned state.
    """
    expected = tuned_state(model)
    if odd := sorted(expected.keys() ^ state.keys()):
        side = "lacks" if odd[0] in expected else "has no place for"
        raise ValueError(f"{len(odd)} names differ from the model's tuned state, which {side} {odd[0]!r}")
    for name, own in expected.items():  # in the model's order: a file has another one each time it is read
        if state[name].shape != own.shape:
            shapes = f"{tuple(state[name].shape)}, and {tuple(own.shape)} in the model"
            raise ValueError(f"{name!r} has shape {shapes}")
    model.load_state_dict(dict(state), strict=False)


def train_mode(model: nn.Module) -> None:
    """Set training mode, except in batch norms without a trainable parameter, whose statistics must not move."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not _trains(module):
            module.eval()


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def lone_batch_norm(model: nn.Module, image: Tensor) -> str | None:
    """Return the name of a batch norm that trains and gets one value a channel of an image (1, c, h, w), or None.

    It has no variance then, and torch refuses to train it on batches of one image.
    """
    found: list[str] = []
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and _trains(module):

            def look(norm: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                if inputs[0].numel() == inputs[0].shape[1]:
                    found.append(name)

            hooks.append(module.register_forward_pre_hook(look))
    if not hooks:
        return None
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(image)  # no statistics move
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


class WeightAverage:
    """The shadow s of a model's tuned state w: s = s + weight(t) · (w - s) after step t, counted from 1.

    Floating-point entries are averaged, in at least fp32; integers and booleans (budgets, counters) are copied, so
    that the shadow is as sparse as the model is.
    """

    def __init__(self, model: nn.Module, weight: Callable[[int], float]) -> None:
        self.weight = weight
        self.shadow: dict[str, Tensor] = {
            name: value.to(torch.promote_types(value.dtype, torch.float32), copy=True)
            if value.is_floating_point()
            else value.clone()
            for name, value in tuned_state(model).items()
        }

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the model's tuned state after a step."""
        weight = self.weight(step)
        for name, value in tuned_state(model).items():
            shadow = self.shadow[name]
            if shadow.is_floating_point() and weight < 1:
                shadow.lerp_(value.to(shadow.dtype), weight)
            else:
                shadow.copy_(value)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Let the model hold the shadow inside the block, and then its own state again, to the bit."""
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


def average_of(model: nn.Module, settings: LoopConfig, steps: int) -> WeightAverage | None:
    """Return the average of tuned weights that a training of so many steps is asked for, None without one.

    `ema` is the decay of an exponential one, constant from the first step, as published: at 0.9999 a run needs well
    over 10,000 steps to forget its start. `average` is the share of the last steps, of which all weigh alike; before
    them the shadow is the model itself.
    """
    if settings.ema is not None:
        kept = settings.ema
        return WeightAverage(model, lambda step: 1 - kept)
    if not settings.average:
        return None
    before = steps - max(1, round(settings.average * steps))
    return WeightAverage(model, lambda step: 1 / max(step - before, 1))
