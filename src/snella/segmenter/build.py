"""The model that gives each pixel a class: a pre-trained encoder, a decoder, and how both are kept.

backbone ─┬─ plain ViT ......... plain (two convolutions, `segmenter.plain`) or dpt
          ├─ with a pyramid .... unet, fpn, upernet or segformer (`segmenter.smp`)
          └─ hf:NAME ........... the decoder that it comes with (`segmenter.transformers`)
"""

from __future__ import annotations

import copy
import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import timm.models
import torch
import torch.nn.functional as F
from timm.models import Beit, Eva, VisionTransformer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from snella.config.tasks import Decoder
from snella.data.transforms.images import Preprocessing
from snella.errors import UserError, short_reason
from snella.files import check_free, writing_into
from snella.models import bundled, timm_backbone, transformers_backbone
from snella.models.backbone import (
    HF,
    BackboneSpec,
    build_backbone,
    check_backbone_name,
    logits_of,
    preprocessing_of,
)
from snella.models.export import MERGED_TOLERANCE, save_transformers
from snella.segmenter import smp
from snella.segmenter import transformers as hf
from snella.segmenter.plain import PlainSegmentation

PLAIN_MODULES = ("vision_transformer", "vision_transformer_hybrid", "deit", "eva", "beit")  # of timm
PLAIN_CLASSES = (VisionTransformer, Eva, Beit)  # what these make
PLAIN_DECODERS = ("plain", "dpt")
PYRAMID_DECODERS = ("unet", "fpn", "upernet", "segformer")
PREPROCESSING_FILE = "preprocessing.json"
PROGRAM_FILE = "model.pt2"


@dataclass(frozen=True)
class SegmenterSpec:
    """What is needed to build the same model again; saved with the adapter.

    Args:
        backbone: the encoder, with K as its `num_classes`; for `hf:` the whole model.
        decoder: one of `config.Decoder`; None: plain for plain ViTs, unet for encoders with features of several
            scales. `hf:` models bring their own.
        adapt_decoder: adapt the decoder's layers as the encoder's are, and train only its norms and its last layer as a
            whole.
    """

    backbone: BackboneSpec
    decoder: str | None = None
    adapt_decoder: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SegmenterSpec:
        """Make the spec of what `dataclasses.asdict` gave."""
        return cls(**{**values, "backbone": BackboneSpec(**values["backbone"])})


class Segmenter(nn.Module):
    """Images (b, 3, h, w) -> logits (b, K, h, w).

    Args:
        net: images to scores of any size.
        trained: names, in `net`, of the layers that train as a whole.
        stride: h and w are filled up with zeros, right and below, to multiples of it.

    Example:
        >>> spec = SegmenterSpec(BackboneSpec("resnet18", True, None, None, num_classes=5), "unet")
        >>> build_segmenter(spec)(torch.rand(2, 3, 250, 300)).shape
        torch.Size([2, 5, 250, 300])
    """

    def __init__(self, net: nn.Module, *, trained: Sequence[str], stride: int = 1) -> None:
        super().__init__()
        self.net = net
        self.trained = tuple(trained)
        self.stride = stride

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % self.stride, 0, -height % self.stride))
        scores = logits_of(self.net(images))
        if scores.shape[-2:] != images.shape[-2:]:
            scores = F.interpolate(scores, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return scores[..., :height, :width]

    def get_classifier(self) -> tuple[nn.Module, ...]:
        """Return the layers that train whole with any method: the decoder's, or a few of them where it is adapted."""
        return tuple(self.net.get_submodule(name) for name in self.trained)


def check_segmenter(spec: SegmenterSpec) -> None:
    """Refuse a model that cannot be built; nothing is built or downloaded.

    Raises:
        UserError: an unknown decoder, or one that does not go with the backbone; as `check_backbone_name`; a package
            is missing.
    """
    name, decoder = spec.backbone.name, spec.decoder
    if decoder is not None and decoder not in get_args(Decoder):
        near = difflib.get_close_matches(decoder, get_args(Decoder), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"decoder {decoder!r} is unknown{hint}; choose from {', '.join(get_args(Decoder))}")
    if name.startswith(HF) and decoder is not None:
        raise UserError(f"--decoder {decoder} does not go with {name}, which brings its own; leave it out")
    check_backbone_name(spec.backbone)
    if name.startswith(HF):
        return
    plain = _plain_by_name(name)
    if plain is not None:
        decoder = _decoder(spec, plain)
    if decoder is not None and decoder != "plain":
        smp.check_package(decoder)


def build_segmenter(spec: SegmenterSpec) -> Segmenter:
    """Build the model; it is a function of `spec` and the weights, as `build_backbone` is.

    Raises:
        UserError: as `check_segmenter` and `build_backbone`; an encoder that the decoder cannot use.
    """
    check_segmenter(spec)
    backbone = spec.backbone
    if backbone.name.startswith(HF):
        return _build_transformers(spec)
    name = bundled.timm_name(backbone.name)
    outline = timm_backbone.outline(name)
    plain = isinstance(outline, PLAIN_CLASSES)
    decoder = _decoder(spec, plain)
    if decoder == "plain":
        encoder = build_backbone(backbone)
        assert isinstance(encoder, PLAIN_CLASSES)
        torch.manual_seed(backbone.seed)
        net = PlainSegmentation(encoder, backbone.num_classes)
        return Segmenter(net, trained=_trained(net, ["decoder"], spec.adapt_decoder))
    smp.check_package(decoder)
    own = bundled.BACKBONES[backbone.name].image_size if backbone.name in bundled.BACKBONES else None
    size = smp.fixed_size(decoder, name, outline, backbone.image_size or own)
    net = smp.build(
        decoder,
        name,
        build_backbone(replace(backbone, image_size=size)),
        num_classes=backbone.num_classes,
        image_size=size,
        drop_path=backbone.drop_path,
        seed=backbone.seed,
    )
    trained = _trained(net, ["decoder", "segmentation_head"], spec.adapt_decoder)
    return Segmenter(net, trained=trained, stride=1 if size else smp.STRIDE)


def preprocessing_of_segmenter(spec: SegmenterSpec, model: Segmenter) -> Preprocessing:
    """Return the preprocessing of the encoder's pre-training, at the size asked for; `model` is what was built."""
    net: Any = model.net
    if spec.backbone.name.startswith(HF):
        return preprocessing_of(spec.backbone, net)
    return preprocessing_of(spec.backbone, net.encoder if isinstance(net, PlainSegmentation) else net.encoder.model)


def save_merged_segmenter(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    spec: SegmenterSpec,
    classes: Sequence[str],
    values: Sequence[int],
    palette: Sequence[Sequence[int]] | None,
    preprocessing: Preprocessing,
    overwrite: bool = False,
) -> Path:
    """Write a folder that loads without this package (see `loading_hint_segmenter`).

    Beside the weights lies `preprocessing.json`: image size, normalisation, what sides must be a multiple of, and
    for each class its name, its value in the masks and its colour. The model is loaded again and must give the same
    logits before the folder is put in place.

    Args:
        model: without adapters; left as it is.
        folder: the folder to make. With `overwrite` files of the same names in it are replaced, others are kept.
        spec: what it was built from.
        classes, values: K names, and K values of pixels in masks, in the order of the logits.
        palette: K colours (red, green, blue), 0 to 255; None for none.
        preprocessing: of the images that the model was tuned on.

    Returns:
        The folder.

    Raises:
        UserError: the folder exists and is not empty, or what was written gives other logits (by more than 1e-4).
    """
    assert isinstance(model, Segmenter)
    folder = check_free(folder, overwrite)
    model = copy.deepcopy(model).cpu().eval()  # a program keeps the device that it was traced on
    description = {
        **preprocessing.to_dict(),
        "multiple_of": model.stride,
        "classes": list(classes),
        "values": [int(value) for value in values],
        "palette": None if palette is None else [list(map(int, colour)) for colour in palette],
    }
    with writing_into(folder) as temporary:
        _save(model, temporary, spec, classes, preprocessing)
        (temporary / PREPROCESSING_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        _check_reload(model, temporary, spec, preprocessing.image_size)
    return folder


def loading_hint_segmenter(spec: SegmenterSpec, folder: str | os.PathLike[str]) -> str:
    """Return the Python call that loads what `save_merged_segmenter` wrote there."""
    if spec.backbone.name.startswith(HF):
        return f'transformers.{hf.SEGMENTER.auto}.from_pretrained("{folder}")'
    if (file := Path(folder) / PROGRAM_FILE).exists():
        return f'torch.export.load("{file}").module()'
    return f'segmentation_models_pytorch.from_pretrained("{folder}")'


# ---- parts


def _plain_by_name(name: str) -> bool | None:
    """Return whether it is a plain ViT; None where only the hub knows."""
    name = bundled.timm_name(name)
    if name.startswith("local-dir:"):
        with open(os.path.join(name.removeprefix("local-dir:"), "config.json"), encoding="utf-8") as file:
            name = json.load(file).get("architecture", "")
    if name.startswith("hf-hub:") or not timm.models.is_model(name):
        return None
    return timm.models.is_model_in_modules(name, PLAIN_MODULES)


def _decoder(spec: SegmenterSpec, plain: bool) -> str:
    fitting = PLAIN_DECODERS if plain else PYRAMID_DECODERS
    decoder = spec.decoder or fitting[0]
    if decoder not in fitting:
        kind = "a plain ViT, whose features have one scale" if plain else "which is not a plain ViT"
        raise UserError(
            f"--decoder {decoder} does not go with {spec.backbone.name}, {kind}; use {' or '.join(fitting)}"
        )
    return decoder


def _trained(net: nn.Module, decoder: Sequence[str], adapt: bool) -> list[str]:
    """Return the names of the decoder's layers that train whole: all, or where the rest is adapted norms and the last.

    Layers and not the modules that they are in: PEFT merges only what has a weight of its own. Norms train in any case,
    since their statistics are new, and PEFT saves those of what trains alone.
    """
    layers = {
        f"{part}.{name}" if name else part: layer
        for part in decoder
        for name, layer in net.get_submodule(part).named_modules()
        if next(layer.parameters(recurse=False), None) is not None
    }
    if not adapt:
        return list(layers)
    convolutions = [name for name, layer in layers.items() if isinstance(layer, nn.Conv2d)]
    last = [name for name in convolutions if "classifier" in name.split(".")] or convolutions[-1:]
    norms = [name for name, layer in layers.items() if isinstance(layer, _NormBase | nn.GroupNorm | nn.LayerNorm)]
    return [*norms, *last]


def _build_transformers(spec: SegmenterSpec) -> Segmenter:
    backbone = spec.backbone
    net = transformers_backbone.build(
        backbone.name.removeprefix(HF),
        pretrained=backbone.pretrained,
        image_size=backbone.image_size,
        num_classes=backbone.num_classes,
        drop_path=backbone.drop_path,
        seed=backbone.seed,
        kind=hf.SEGMENTER,
    )
    return Segmenter(net, trained=_trained(net, hf.decoder_parts(net), spec.adapt_decoder))


# ---- files


def _save(model: Segmenter, folder: Path, spec: SegmenterSpec, classes: Sequence[str], p: Preprocessing) -> None:
    net: Any = model.net
    if spec.backbone.name.startswith(HF):
        save_transformers(net, folder, classes, hf.processor(p))
    elif isinstance(net, PlainSegmentation) or not smp.loads_with_smp(net):
        weight = next(model.parameters())
        images = torch.zeros(2, 3, p.image_size, p.image_size).to(weight)  # one image would be taken for a fixed size
        program = torch.export.export(model, (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
        torch.export.save(program, folder / PROGRAM_FILE)
    else:
        smp.save(net, folder)


def _load(folder: Path, spec: SegmenterSpec) -> nn.Module:
    if spec.backbone.name.startswith(HF):
        with transformers_backbone.quiet_transformers():
            return hf.SEGMENTER.library_class.from_pretrained(folder).eval()
    if (folder / PROGRAM_FILE).exists():
        return torch.export.load(folder / PROGRAM_FILE).module()
    return smp.load(folder).eval()


@torch.no_grad()
def _check_reload(model: Segmenter, folder: Path, spec: SegmenterSpec, image_size: int) -> None:
    weight = next(model.parameters())
    try:
        loaded = _load(folder, spec).to(weight.dtype)
    except RuntimeError as error:  # weights that do not fit the configuration
        reason = short_reason(error)
        raise UserError(f"nothing was written: the merged {spec.backbone.name} does not load ({reason})") from error
    size = image_size + -image_size % model.stride  # what the library's own model takes
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(weight)
    expected = model(images)
    logits = logits_of(loaded(images))
    if logits.shape != expected.shape:
        logits = F.interpolate(logits, size=expected.shape[-2:], mode="bilinear", align_corners=False)
    difference = (logits - expected).abs().max().item()
    if not difference <= MERGED_TOLERANCE:
        raise UserError(
            f"nothing was written: the merged {spec.backbone.name} loads with logits that differ by "
            f"{difference:.1e} (allowed: {MERGED_TOLERANCE})"
        )
