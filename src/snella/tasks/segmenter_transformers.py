"""Semantic segmentation models from transformers: SegFormer, UPerNet, DPT, BEiT, MobileViT and their like."""

from __future__ import annotations

from typing import Any

from torch import nn

from snella.data.transforms import Preprocessing
from snella.export import processor_values
from snella.tasks.transformers_backbone import Kind

SEGMENTER = Kind(
    auto="AutoModelForSemanticSegmentation",
    what="a model that gives each pixel a class, such as SegFormer, UPerNet, DPT, BEiT or MobileViT",
    head=r"(decode_head|auxiliary_head|segmentation_head|head|neck|fpn\d?)\..*",
)


def decoder_layers(model: Any) -> tuple[str, ...]:
    """Names of the layers behind the backbone.

    The layers and not the modules that they are in: transformers hands these lists and keywords, which PEFT's wrapper
    of a module does not pass on in all of its versions.
    """
    backbones = (model.base_model_prefix, "backbone")
    parts = [name for name, part in model.named_children() if name not in backbones and isinstance(part, nn.Module)]
    return tuple(
        f"{part}.{name}" if name else part
        for part in parts
        for name, layer in model.get_submodule(part).named_modules()
        if next(layer.parameters(recurse=False), None) is not None
    )


def last_layers(model: Any) -> tuple[str, ...]:
    """Names of the layers that give the scores: those called classifier, else the last convolution."""
    layers = decoder_layers(model)
    named = [name for name in layers if "classifier" in name.split(".")]
    return tuple(named or [name for name in layers if isinstance(model.get_submodule(name), nn.Conv2d)][-1:])


def processor(p: Preprocessing) -> Any:
    """transformers' image processor for what the model was tuned on; whole images, whatever `p.resize` is."""
    from transformers import BitImageProcessor, SegformerImageProcessor

    values = processor_values(p)
    if p.resize == "squash":
        return SegformerImageProcessor(size={"height": p.image_size, "width": p.image_size}, **values)
    size, resized = {"shortest_edge": p.image_size}, p.resize != "none"
    return BitImageProcessor(size=size, do_resize=resized, do_center_crop=False, **values)
