"""Which layers of a model are adapted when the user names none, and which module is its head."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import peft
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from timm.layers import Linear as TimmLinear
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from transformers.pytorch_utils import Conv1D

from snella.errors import UserError
from snella.tuner.names import uncompiled

# PEFT 0.21 and newer have an error of this meaning
_PEFTS_NO_MATCH: Any = getattr(peft, "NoMatchingPeftModuleError", ValueError)


class NoMatchError(UserError, _PEFTS_NO_MATCH):
    """No layer of the model is to be adapted."""


@dataclass(frozen=True)
class Family:
    """Models of one shape: class names of a package, and the layers to adapt below such a module."""

    package: str
    classes: tuple[str, ...]
    pattern: str


# Attention's q, k, v and output and both MLP layers, as published for ViT, Swin and ConvNeXt (there fc1 and fc2 only).
_QKV = r"attn\.(qkv|[qkv]_proj|proj)"
_HF_ATTENTION = r"attention\.([qkvo]_proj|(attention|self)\.(query|key|value)|output\.dense)"  # transformers 5, before
_HF_MLP = r"mlp\.(fc\d|weights_in|weights_out|(gate|up|down)_proj)|(intermediate|output)\.dense"

BACKBONES = (
    Family(
        "timm",
        ("VisionTransformer", "Eva", "Beit"),  # DeiT and DINOv2 are VisionTransformers, DINOv3 is an Eva
        rf"blocks\.\d+\.({_QKV}|mlp\.fc\d\w*)",
    ),
    Family("timm", ("SwinTransformer", "SwinTransformerV2"), rf"layers\.\d+\.blocks\.\d+\.({_QKV}|mlp\.fc\d)"),
    Family("timm", ("ConvNeXt",), r"stages\.\d+\.blocks\.\d+\.mlp\.fc\d"),
    Family("timm", ("ResNet",), r"layer\d\.\d+\.conv\d"),
    Family(
        "timm",
        ("EfficientNet", "EfficientNetFeatures", "MobileNetV3", "MobileNetV3Features"),
        r"blocks\.\d+\.\d+\.conv(_pw|_pwl|_exp)?",
    ),
    Family(  # what is left of Swin, ConvNeXt and ResNet where only their features are asked for
        "timm",
        ("FeatureListNet", "FeatureDictNet"),
        rf"layers_\d+\.blocks\.\d+\.({_QKV}|mlp\.fc\d)|stages_\d+\.blocks\.\d+\.mlp\.fc\d|layer\d\.\d+\.conv\d",
    ),
    Family(
        "transformers",
        (
            *("ViTModel", "DeiTModel", "BeitModel", "Data2VecVisionModel", "DPTModel", "SwinModel", "Swinv2Model"),
            *("Dinov2Model", "Dinov2WithRegistersModel", "BeitBackbone", "Dinov2Backbone", "SwinBackbone"),
            *("Dinov2WithRegistersBackbone", "Swinv2Backbone"),
        ),
        rf"(\w+\.)?(encoder\.)?layers?\.\d+\.(blocks\.\d+\.)?({_HF_ATTENTION}|{_HF_MLP})",
    ),
    Family(
        "transformers",
        (
            *("CLIPVisionModel", "CLIPVisionTransformer", "SiglipVisionModel", "SiglipVisionTransformer"),
            *("Siglip2VisionModel", "Siglip2VisionTransformer"),
        ),
        r"(vision_model\.)?encoder\.layers\.\d+\.(self_attn\.([qkv]_proj|out_proj)|mlp\.fc\d)",
    ),
    Family(
        "transformers",
        ("DINOv3ViTModel", "DINOv3ViTBackbone"),
        r"(model\.)?layer\.\d+\.(attention\.[qkvo]_proj|mlp\.(up|gate|down)_proj)",
    ),
    Family(
        "transformers",
        ("SegformerModel",),
        rf"(stages\.\d+\.blocks|encoder\.block\.\d+)\.\d+\.({_HF_ATTENTION}|mlp\.(fc|dense)\d)",
    ),
    Family(
        "transformers",
        ("ConvNextModel", "ConvNextV2Model", "ConvNextBackbone", "ConvNextV2Backbone"),
        r"encoder\.stages\.\d+\.layers\.\d+\.pwconv\d",
    ),
    Family(
        "transformers",
        ("MobileViTModel",),
        rf"encoder\.layer\.\d+\.transformer\.layer\.\d+\.({_HF_ATTENTION}|{_HF_MLP})",
    ),
    Family(
        "diffusers",
        ("ModelMixin",),
        r"(.*\.)?(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out|ff(_context)?\.net\.(0\.proj|2))",
    ),
)
# All convolutions and linear layers but the last one and transposed convolutions. In a model whose head holds them they
# train as a whole, and PEFT leaves them alone.
DECODERS = (
    Family("snella", ("PlainHead",), r"mix"),
    Family("segmentation_models_pytorch", ("UnetDecoder",), r"(blocks\.\d+\.conv\d|center\.\d)\.0"),
    Family("segmentation_models_pytorch", ("FPNDecoder",), r"p5|p\d\.skip_conv|seg_blocks\.\d+\.block\.\d+\.block\.0"),
    Family(
        "segmentation_models_pytorch",
        ("UPerNetDecoder",),
        r"(psp\.(blocks\.\d+\.1|out_conv)|fpn_lateral_blocks\.\d+\.conv_norm_relu|fpn_conv_blocks\.\d+|fusion_block)\.0",
    ),
    Family("segmentation_models_pytorch", ("SegformerDecoder",), r"mlp_stage\.\d+\.linear|fuse_stage\.0"),
    Family(
        "segmentation_models_pytorch",
        ("DPTDecoder",),
        r"projection_blocks\.\d+\.project\.0|reassemble_blocks\.\d+\.project_to_(out_channel|feature_dim)"
        r"|fusion_blocks\.\d+\.(residual_conv_block\d\.conv_\d|project)",
    ),
    Family("segmentation_models_pytorch", ("DPTSegmentationHead",), r"head\.0"),
    Family("transformers", ("SegformerDecodeHead",), r"linear_(projections|c)\.\d+\.proj|linear_fuse"),
    Family(
        "transformers",
        ("UperNetHead", "BeitUperHead", "Data2VecVisionUperHead"),
        r"(psp_modules\.(\d+\.\d+|blocks\.\d+\.conv)|(psp_|fpn_)?bottleneck|(lateral|fpn)_convs\.\d+)\.conv(olution)?",
    ),
    Family(
        "transformers",
        ("DPTNeck",),
        r"reassemble_stage\.(layers\.\d+\.projection|readout_projects\.\d+\.0)|convs\.\d+"
        r"|fusion_stage\.layers\.\d+\.(projection|residual_layer\d\.convolution\d)",
    ),
    Family("transformers", ("DPTSemanticSegmentationHead",), r"head\.0"),
    Family(
        "transformers",
        ("MobileViTDeepLabV3",),  # without the dilated ones, which PEFT's LoRA gets wrong
        r"aspp\.(convs\.(0|\d+\.conv_1x1)|project)\.convolution",
    ),
)
FAMILIES = BACKBONES + DECODERS
# products of the weight as it is
PRODUCT_FORWARDS = (
    *(nn.Linear.forward, TimmLinear.forward, Conv1D.forward),
    *(nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward),
)
# Kinds of layers that are refused -> why, and what to do
REFUSED: tuple[tuple[type[nn.Module], str], ...] = (
    (
        nn.MultiheadAttention,
        "whose in_proj_weight torch hands on without a call that an adapter could take part in; name its out_proj, or "
        "put Linear layers in its place",
    ),
    (
        nn.Embedding,
        "of whose whole table an update would be made at each step; name it in modules_to_save to train it as a whole",
    ),
    (_ConvTransposeNd, "of which no update is made; name it in modules_to_save to train it as a whole"),
    (_ConvNd, "not the plain product with its weight: it pads, standardises or unpacks first"),
    (nn.Linear, "not the plain product with its weight: its forward is its own"),
)
BACKBONE_PARTS = ("backbone", "vision_model", "model", "timm_model", "neck")  # names in transformers' models
CLASS_TABLES = ("class_embedding", "class_embedder.embedding_table")  # ends of names, in diffusers


def suits(module: nn.Module) -> bool:
    """Return whether a layer is the product with one matrix, or several stacked: linear, or a convolution.

    Those that pad, standardise or unpack first (timm's Conv2dSame and StdConv2d, quantised layers) are another product.
    """
    if isinstance(module, BaseTunerLayer):
        module = module.get_base_layer()
    return type(module).forward in PRODUCT_FORWARDS


def adaptable(module: nn.Module) -> bool:
    """Return whether a layer is adapted where a pattern finds it: one that suits, but for grouped convolutions.

    Those are adapted where they are named: adapters of before there were any would not fit.
    """
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return suits(module) and getattr(base, "groups", 1) == 1


def refusal(module: nn.Module) -> str:
    """Return why a layer that does not suit cannot be adapted, in a few words."""
    if type(module).__module__.startswith("bitsandbytes"):
        return "whose weight is quantised; keep it in fewer bits by snella.set_base_precision"
    none = "not a product with a weight: only linear layers and convolutions are adapted"
    return next((why for kind, why in REFUSED if isinstance(module, kind)), none)


def candidates(model: nn.Module) -> list[str]:
    """Return the names of the layers that can be adapted, with `*` for numbers, in the model's order."""
    names = [
        re.sub(r"(?<![^.])\d+(?![^.])", "*", uncompiled(name))
        for name, module in model.named_modules()
        if adaptable(module) and not name.endswith("base_layer")
    ]
    return list(dict.fromkeys(names))


def default_targets(model: nn.Module) -> str:
    """Return the regular expression of the layers to adapt, for PEFT's `target_modules`.

    Raises:
        UserError: no known family in the model; the message lists what could be named.
    """
    patterns: list[str] = []
    below: list[str] = []  # prefixes of the names that a family's pattern already covers
    for name, module in model.named_modules():
        path = uncompiled(f"{name}.").removesuffix(".")
        if any(path.startswith(prefix) for prefix in below):
            continue
        family = next((family for family in FAMILIES if _is_of_family(module, family)), None)
        if family is not None:
            below.append(f"{path}." if path else "")
            patterns.append(re.escape(below[-1]) + f"(?:{family.pattern})")
    if not patterns:
        raise NoMatchError(
            f"no default targets for {type(model).__name__}; name them, "
            f"target_modules=[...], from: {', '.join(candidates(model)) or 'nothing here can be adapted'}"
        )
    return "|".join(patterns)


def head_names(model: nn.Module) -> list[str]:
    """Return the names of what belongs to the classes; an empty list where there is nothing.

    That is timm's `get_classifier`, or a `classifier`; of transformers' models also what else gives as many outputs as
    there are labels, outside the backbone; and embeddings of classes, those of diffusers' UNet2DModel and DiT.
    """
    timm_model = getattr(model, "timm_model", model)  # of transformers' TimmWrapper
    if callable(get_classifier := getattr(timm_model, "get_classifier", None)):
        head = get_classifier()
    else:
        head = getattr(model, "classifier", None)
    heads = [part for part in (head if isinstance(head, tuple | list) else [head]) if isinstance(part, nn.Module)]
    if type(model).__module__.startswith("transformers."):
        heads += _label_layers(model, heads)
    heads += [
        part for name, part in model.named_modules() if name.endswith(CLASS_TABLES) and isinstance(part, nn.Embedding)
    ]
    return [
        name
        for name, module in model.named_modules()
        if any(module is part for part in heads) and any(True for _ in module.parameters())
    ]


def _label_layers(model: Any, known: Sequence[nn.Module]) -> list[nn.Module]:
    """Return the last layer with an output for each label of each part but the backbone and what is known."""
    if not re.fullmatch(r".+For(ImageClassification|SemanticSegmentation)\w*", type(model).__name__):
        return []
    heads: list[nn.Module] = []
    for name, part in model.named_children():
        if name in (model.base_model_prefix, *BACKBONE_PARTS) or part in known:
            continue
        wrapped = {inner for wrapper in part.modules() if isinstance(wrapper, AuxiliaryTrainingWrapper)
                   for inner in wrapper.modules() if inner is not wrapper}  # fmt: skip
        heads += [
            module for module in part.modules() if module not in wrapped and _outputs(module) == model.config.num_labels
        ][-1:]
    return heads


def _outputs(module: nn.Module) -> int | None:
    layer = module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else module
    return len(layer.weight) if isinstance(layer, nn.Linear | nn.Conv2d) else None


def _is_of_family(module: nn.Module, family: Family) -> bool:
    return any(
        ancestor.__name__ in family.classes and ancestor.__module__.split(".")[0] == family.package
        for ancestor in type(module).__mro__
    )
