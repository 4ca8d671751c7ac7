"""Which layers of a model are adapted when the user names none, and which module is its head."""

from __future__ import annotations

import re
from dataclasses import dataclass

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from snella.errors import UserError


@dataclass(frozen=True)
class Family:
    """Parts of one shape: class names of a package, and the layers to adapt below such a module."""

    package: str
    classes: tuple[str, ...]
    pattern: str


EVERY = ""  # in place of a pattern: each layer that can be adapted

# Attention's q, k, v and output and both MLP layers, as published for ViT, Swin and ConvNeXt (there fc1 and fc2 only).
FAMILIES = (
    Family(
        "timm",
        ("VisionTransformer", "Eva", "Beit"),  # DeiT and DINOv2 are VisionTransformers, DINOv3 is an Eva
        r"blocks\.\d+\.(attn\.(qkv|[qkv]_proj|proj)|mlp\.fc\d\w*)",
    ),
    Family(
        "timm",
        ("SwinTransformer", "SwinTransformerV2"),
        r"layers\.\d+\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc\d)",
    ),
    Family("timm", ("ConvNeXt",), r"stages\.\d+\.blocks\.\d+\.mlp\.fc\d"),
    Family("timm", ("ResNet",), r"layer\d\.\d+\.conv\d"),
    Family(
        "timm",
        ("EfficientNet", "EfficientNetFeatures", "MobileNetV3", "MobileNetV3Features"),
        r"blocks\.\d+\.\d+\.conv(_pw|_pwl|_exp)?",
    ),
    Family(  # one of the above as a list of its stages, whose class and dots are lost
        "timm",
        ("FeatureListNet", "FeatureDictNet"),
        r"(layer\d\.\d+\.conv\d|(layers_\d+\.blocks|stages_\d+\.blocks)\.\d+\.(attn\.(qkv|proj)|mlp\.fc\d)"
        r"|blocks\.\d+\.\d+\.conv(_pw|_pwl|_exp)?)",
    ),
    Family(
        "transformers",
        (
            *("ViTModel", "DeiTModel", "BeitModel", "BeitBackbone", "DPTModel", "MobileViTModel", "SegformerModel"),
            *("Dinov2Model", "Dinov2Backbone", "Dinov2WithRegistersModel", "Dinov2WithRegistersBackbone"),
            *("SwinModel", "SwinBackbone", "Swinv2Model", "Swinv2Backbone"),
            *("ConvNextModel", "ConvNextBackbone", "ConvNextV2Model", "ConvNextV2Backbone"),
        ),
        # the second half of each pair is what the layer was called before transformers 5
        r"(\w+\.)+\d+\.(attention\.([qkvo]_proj|(attention|self)\.(query|key|value)|output\.dense)"
        r"|mlp\.(fc\d|dense\d|weights_in|weights_out)|(intermediate|output)\.dense|pwconv\d)",
    ),
    Family(
        "diffusers",
        ("ModelMixin",),
        r"(.*\.)?(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out|ff(_context)?\.net\.(0\.proj|2))",
    ),
    # Decoders. Where they are trained fully, among the modules to save, PEFT leaves them out of the targets.
    Family("snella", ("PlainDecoder",), EVERY),
    Family(
        "segmentation_models_pytorch",
        ("UnetDecoder", "FPNDecoder", "UPerNetDecoder", "SegformerDecoder", "DPTDecoder"),
        EVERY,
    ),
    Family(
        "transformers",
        (
            "SegformerDecodeHead",
            "UperNetHead",
            "DPTNeck",
            "DPTSemanticSegmentationHead",
            "BeitUperHead",
            "MobileViTDeepLabV3",
        ),
        EVERY,
    ),
)


def adaptable(module: nn.Module) -> bool:
    """Whether a layer's weight is one matrix, or several stacked: Linear, or Conv2d that is not grouped."""
    if isinstance(module, BaseTunerLayer):
        module = module.get_base_layer()
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def candidates(model: nn.Module) -> list[str]:
    """Names of the layers that can be adapted, with `*` for numbers, in the model's order."""
    names = [
        re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
        for name, module in model.named_modules()
        if adaptable(module) and not name.endswith("base_layer")
    ]
    return list(dict.fromkeys(names))


def default_targets(model: nn.Module) -> str:
    """The regular expression of the layers to adapt, for PEFT's `target_modules`.

    Raises:
        UserError: no known family in the model; the message lists what could be named.
    """
    patterns: list[str] = []
    below: list[str] = []  # prefixes of the names that a family's pattern already covers
    for path, module in model.named_modules():
        if any(path.startswith(prefix) for prefix in below):
            continue
        family = next((family for family in FAMILIES if _belongs(module, family)), None)
        if family is not None:
            below.append(f"{path}." if path else "")
            names = (re.escape(name) for name, part in module.named_modules() if name and adaptable(part))
            patterns.append(re.escape(below[-1]) + f"(?:{family.pattern or '|'.join(names)})")
    if not patterns:
        raise UserError(
            f"no default targets for {type(model).__name__}; name them, "
            f"target_modules=[...], from: {', '.join(candidates(model)) or 'nothing here can be adapted'}"
        )
    return "|".join(patterns)


def head_names(model: nn.Module) -> list[str]:
    """Names of the classifier's modules: timm's `get_classifier`, or a `classifier`; [] where there is none."""
    if callable(get_classifier := getattr(model, "get_classifier", None)):
        head = get_classifier()
    else:
        head = getattr(model, "classifier", None)
    heads = [part for part in (head if isinstance(head, tuple | list) else [head]) if isinstance(part, nn.Module)]
    return [
        name
        for name, module in model.named_modules()
        if any(module is part for part in heads) and any(True for _ in module.parameters())
    ]


def _belongs(module: nn.Module, family: Family) -> bool:
    return any(
        ancestor.__name__ in family.classes and ancestor.__module__.split(".")[0] == family.package
        for ancestor in type(module).__mro__
    )
