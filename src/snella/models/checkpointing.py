"""Gradient checkpointing of any model's blocks: their activations are made a second time instead of being kept."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the blocks that the model is a chain of, in order: what its innermost lists of blocks hold.

    A block has two layers with weights or more. Models without such lists (VGG) have no blocks.
    """
    lists = [m for m in model.modules() if _holds_blocks(m)]
    known = set(map(id, lists))
    innermost = [m for m in lists if not any(id(other) in known for other in m.modules() if other is not m)]
    return [block for m in innermost for block in m.children()]


def _holds_blocks(module: nn.Module) -> bool:
    """Return whether all children are blocks: of a container, or of a module that has several of one class."""
    children = list(module.children())
    several = len(children) > 1 and len(set(map(type, children))) == 1
    if not children or not (several or isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Sequential))):
        return False
    return all(_weights(child) > 1 for child in children)


def _weights(module: nn.Module) -> int:
    """Return how many layers with a matrix of weights a module has."""
    return sum(isinstance(m, (nn.Linear, nn.Conv2d)) for m in module.modules())


def checkpoint_blocks(model: nn.Module, count: int | None = None) -> int:
    """Let the first `count` blocks (None: all) keep their inputs alone in training, and return how many there are.

    Gradients stay the same to the bit. A later call takes the place of an earlier one. A block that holds a batch norm
    in training mode runs as it is: its averages would move twice. Networks of diffusers have a switch of their own for
    all blocks.
    """
    blocks = [block for block in blocks_of(model) if not _is_replaced(block)]
    ours = len(blocks) if count is None else count
    if hasattr(model, "enable_gradient_checkpointing"):
        network: Any = model
        if count is None:
            network.enable_gradient_checkpointing()
            ours = 0
        else:
            network.disable_gradient_checkpointing()
    for i, block in enumerate(blocks):
        if i < ours:
            block.forward = MethodType(_checkpointed, block)  # a method: a copy of the block gets one of its own
        else:
            vars(block).pop("forward", None)
    return len(blocks)


def _is_replaced(block: nn.Module) -> bool:
    """Return whether somebody else (hooks of accelerate) has put a forward of its own there."""
    own = vars(block).get("forward")
    return own is not None and getattr(own, "__func__", None) is not _checkpointed


def _checkpointed(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = type(block).forward
    moves = any(isinstance(m, _BatchNorm) and m.training for m in block.modules())
    if not (block.training and torch.is_grad_enabled()) or moves or torch.compiler.is_compiling():
        return forward(block, *args, **kwargs)
    return checkpoint(forward, block, *args, use_reentrant=False, **kwargs)
