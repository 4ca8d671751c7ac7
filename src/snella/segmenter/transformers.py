"""Semantic segmentation models from transformers: SegFormer, UPerNet, DPT, BEiT, MobileViT and their like."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snella.data.transforms.images import Preprocessing
from snella.models.export import bgr_processor, processor_values
from snella.models.transformers_backbone import Kind

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel

SEGMENTER = Kind(
    auto="AutoModelForSemanticSegmentation",
    what="a model that gives each pixel a class, such as SegFormer, UPerNet, DPT, BEiT or MobileViT",
    head=r"(decode_head|auxiliary_head|segmentation_head|head|neck|fpn\d?)\..*",
)


def decoder_parts(model: PreTrainedModel) -> list[str]:
    """Return the names of the modules behind the backbone."""
    backbones = (model.base_model_prefix, "backbone")
    return [name for name, _ in model.named_children() if name not in backbones]


def processor(p: Preprocessing) -> BaseImageProcessor:
    """Make transformers' image processor for the tuned model's images; whole ones, whatever `p.resize` is."""
    from transformers import BitImageProcessor, SegformerImageProcessor

    values = processor_values(p)
    if p.bgr:
        squash = {"height": p.image_size, "width": p.image_size}
        size = squash if p.resize == "squash" else {"shortest_edge": p.image_size}
        return bgr_processor(p, size=size, do_resize=p.resize != "none", do_center_crop=False)
    if p.resize == "squash":
        return SegformerImageProcessor(size={"height": p.image_size, "width": p.image_size}, **values)
    size, resized = {"shortest_edge": p.image_size}, p.resize != "none"
    return BitImageProcessor(size=size, do_resize=resized, do_center_crop=False, **values)
