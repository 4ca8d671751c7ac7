"""The pre-trained model that is tuned: where it comes from, its input, and how to tell it from another.

    name ─┬─ timm ............ weights from the hub, or a file in any form that timm reads (`timm_backbone`)
          ├─ hf:NAME ......... transformers, from the hub or a local folder (`transformers_backbone`)
          └─ vit_small_focus, mobilenetv2_imagenet ... the bundled ones (`bundled`)

Every kind takes images (b, 3, s, s) and has a head for the classes at hand.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from snella.config.model import ModelConfig
from snella.data.transforms.images import Preprocessing
from snella.errors import UserError
from snella.models import bundled, timm_backbone, transformers_backbone
from snella.models.hub import check_input_size

HF = "hf:"


@dataclass(frozen=True)
class BackboneSpec:
    """What is needed to build the same backbone again; saved with the adapter.

    Args:
        name: a timm name (also `hf-hub:NAME`, `local-dir:FOLDER`), `hf:NAME_OR_FOLDER`, or a bundled one's.
        pretrained: load the weights that the name stands for.
        checkpoint: a file with the weights instead, for a timm name.
        image_size: side of the input, pixels; None: the size of the pre-training.
        num_classes: outputs of the head.
        drop_path: rate of the backbone's own drop-path at its last block.
        seed: of what is drawn: the new head, and everything where no weights are loaded.
    """

    name: str
    pretrained: bool
    checkpoint: str | None
    image_size: int | None
    num_classes: int
    drop_path: float = 0.0
    seed: int = 0

    @classmethod
    def of(cls, config: ModelConfig, seed: int, num_classes: int) -> BackboneSpec:
        """Return the backbone that a run's settings ask for."""
        return cls(
            name=config.backbone,
            pretrained=config.pretrained,
            checkpoint=config.checkpoint,
            image_size=config.image_size,
            num_classes=num_classes,
            drop_path=config.drop_path,
            seed=seed,
        )


def check_backbone_name(spec: BackboneSpec) -> None:
    """Refuse a backbone that cannot be built; nothing is built or downloaded.

    Raises:
        UserError: an unknown name (with near ones), no weights of that name, a missing file or package.
    """
    package = bundled.BACKBONES.get(spec.name)
    if spec.checkpoint is not None and (package or spec.name.startswith(HF)):
        architecture = package.architecture if package else "a timm name"
        raise UserError(f"--checkpoint does not go with backbone {spec.name}; use it with {architecture}")
    if package:
        if spec.pretrained:
            package.file()
    elif spec.name.startswith(HF):
        transformers_backbone.check_name(spec.name.removeprefix(HF))
    else:
        timm_backbone.check_name(spec.name, pretrained=spec.pretrained, checkpoint=spec.checkpoint)


def build_backbone(spec: BackboneSpec) -> nn.Module:
    """Build the model: images (b, 3, s, s) -> logits (b, num_classes), for transformers in an output's `.logits`.

    torch's global generator is seeded before anything draws: the result is a function of `spec` and the weights.

    Raises:
        UserError: as `check_backbone_name`; weights that cannot be downloaded or do not fit; an image size or a
            drop-path that the architecture cannot take.
    """
    check_backbone_name(spec)
    torch.manual_seed(spec.seed)
    if spec.name in bundled.BACKBONES:
        return _build_bundled(spec)
    options = {
        "pretrained": spec.pretrained,
        "image_size": spec.image_size,
        "num_classes": spec.num_classes,
        "drop_path": spec.drop_path,
        "seed": spec.seed,
    }
    if spec.name.startswith(HF):
        return transformers_backbone.build(spec.name.removeprefix(HF), **options)
    return timm_backbone.build(spec.name, checkpoint=spec.checkpoint, **options)


def preprocessing_of(spec: BackboneSpec, model: nn.Module) -> Preprocessing:
    """Return the preprocessing of the pre-training, at the size asked for; `model` comes from `build_backbone`."""
    if spec.name.startswith(HF):
        preprocessing = transformers_backbone.preprocessing_of(spec.name.removeprefix(HF), model)
    else:
        preprocessing = timm_backbone.preprocessing_of(model)
    own_size = bundled.BACKBONES.get(spec.name, preprocessing).image_size
    return replace(preprocessing, image_size=spec.image_size or own_size)


def fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 of names, shapes, types and values of the model's state without its classifier.

    It is taken before the model is wrapped, and tells whether an adapter meets the backbone that it was trained on.
    """
    heads = tuple(f"{name}." for name in _head_names(model))
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(heads):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def logits_of(output: Any) -> Tensor:
    """Return the logits (b, K) in a model's output: a tensor (timm) or an object that has them (transformers)."""
    return output if isinstance(output, Tensor) else output.logits


class Ensemble(nn.Module):
    """Models whose probabilities of classes, along dimension 1, are averaged; gives the logarithm of the mean."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (b, K, ...) of images (b, 3, h, w): softmax of them gives the mean probabilities."""
        parts = [logits_of(model(images)).float().log_softmax(1) for model in self.models]
        return torch.stack(parts).logsumexp(0) - math.log(len(parts))


def head_layer(model: nn.Module) -> nn.Linear:
    """Return the linear layer that makes the logits of a model from `build_backbone`.

    Raises:
        UserError: the head is another layer, or there are several.
    """
    layers = _head_layers(model)
    if len(layers) != 1 or not isinstance(layers[0], nn.Linear):
        raise UserError("--head-first: the head of this backbone is not one linear layer; leave it out")
    return layers[0]


def head_widths(model: nn.Module) -> set[int]:
    """Return how many features the heads of a model from `build_backbone` read; empty where no layer makes logits."""
    return {
        layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
        for layer in _head_layers(model)
        if layer is not None
    }


@torch.no_grad()
def rescale_head(model: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """Change the head so that logits (b, K) become `scale * logits + shift`, both (K,).

    Raises:
        UserError: the head is not a layer with a bias for each logit.
    """
    layers = _head_layers(model)
    heads = [layer for layer in layers if layer and (bias := layer.bias) is not None and len(bias) == len(scale)]
    if len(heads) != len(layers) or not heads:
        raise UserError(f"the head of the model has no bias for each of its {len(scale)} outputs: it cannot be merged")
    for head in heads:
        assert head.bias is not None
        factors = scale.to(head.weight)
        head.weight.mul_(factors.reshape(-1, *[1] * (head.weight.ndim - 1)))
        head.bias.mul_(factors).add_(shift.to(head.bias))


def _build_bundled(spec: BackboneSpec) -> nn.Module:
    own = bundled.BACKBONES[spec.name].image_size
    size = spec.image_size or own
    model = bundled.build(
        spec.name,
        pretrained=spec.pretrained,
        image_size=size,
        num_classes=spec.num_classes,
        drop_path=spec.drop_path,
        seed=spec.seed,
    )
    if size != own:
        check_input_size(model, spec.name, size)
    return model


def _head_layers(model: nn.Module) -> list[nn.Linear | nn.Conv2d | None]:
    """Return the layer that makes the logits in each head, None in one that has no such layer."""
    inside = [model.get_submodule(name).modules() for name in _head_names(model)]
    layers = [[part for part in parts if isinstance(part, nn.Linear | nn.Conv2d)] for parts in inside]
    return [found[-1] if found else None for found in layers]


def _head_names(model: nn.Module) -> list[str]:
    get = getattr(model, "get_classifier", None)
    head = get() if callable(get) else getattr(model, "classifier", None)
    heads = head if isinstance(head, (tuple, list)) else [head]
    return [name for name, module in model.named_modules() if any(module is part for part in heads)]
