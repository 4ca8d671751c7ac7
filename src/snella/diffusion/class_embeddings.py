"""The class embeddings of a diffusion network, for other classes than those of its pre-training."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def fit_classes(network: Any, num_classes: int) -> None:  # a Module, whose `config` only diffusers knows
    """Give each class embedding `num_classes` rows (and DiT's its row for no class), in place.

    Where that is another number than before, each row starts at the mean of the old ones.
    """
    for module in list(network.modules()):
        for name, table in list(module.named_children()):
            if name != "class_embedding" and type(module).__name__ != "LabelEmbedding":
                continue
            null = table.num_embeddings - getattr(module, "num_classes", table.num_embeddings)  # rows for no class
            known = table.weight.data[: table.num_embeddings - null]
            if len(known) == num_classes:
                continue
            rows = torch.cat([known.mean(0).expand(num_classes, -1), table.weight.data[len(known) :]])
            setattr(module, name, nn.Embedding.from_pretrained(rows.clone(), freeze=False))
            if hasattr(module, "num_classes"):
                module.num_classes = num_classes
    key = "num_class_embeds" if "num_class_embeds" in network.config else "num_embeds_ada_norm"
    network.register_to_config(**{key: num_classes})
