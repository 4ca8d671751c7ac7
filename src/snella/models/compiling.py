"""torch.compile of a model's blocks, one by one: the rest, and what is between them, runs as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch._dynamo
from torch import nn

PASSES = 4  # a block is compiled for: training and evaluation, full batches and a smaller last one


def compile_blocks(blocks: Sequence[nn.Module], backend: Any = "inductor") -> None:
    """Have the blocks compiled at their first call, in place: no name of a parameter or module changes.

    Blocks of one class share their code, and each may differ from the others in a number (drop-path, an update's
    constant): the limit of versions of the same code is raised to what they need.
    """
    config: Any = torch._dynamo.config
    for name in ("recompile_limit", "cache_size_limit"):  # the new name and the old one
        if blocks and hasattr(config, name):
            setattr(config, name, max(getattr(config, name), PASSES * len(blocks)))
    for block in blocks:
        block.compile(backend=backend)
