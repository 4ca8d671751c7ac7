"""Tiny segmentation models of transformers, saved to folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PretrainedConfig

VIT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
FAMILIES = ("Segformer", "Beit", "Data2VecVision", "DPT", "MobileViT", "MobileNetV2", "UperNetSwin", "UperNetConvNext")


def config(family: str, num_labels: int) -> PretrainedConfig:
    import transformers as t

    options: dict[str, Any] = {
        "Segformer": dict(
            **dict(num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3]),
            **dict(strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16),
        ),
        "Beit": dict(**VIT, image_size=32, patch_size=8, out_indices=[1, 2, 3, 4], auxiliary_channels=8),
        "Data2VecVision": dict(**VIT, image_size=32, patch_size=8, out_indices=[0, 1, 2, 3], auxiliary_channels=8),
        "DPT": dict(
            **dict(**VIT, image_size=32, patch_size=8, backbone_out_indices=[0, 1, 2, 3]),
            **dict(neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8),
        ),
        "MobileViT": dict(
            **dict(image_size=32, hidden_sizes=[8, 8, 8], neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 16]),
            **dict(num_attention_heads=2, aspp_out_channels=8),
        ),
        "MobileNetV2": dict(image_size=32, depth_multiplier=0.25),
    }
    if family in options:
        return getattr(t, f"{family}Config")(**options[family], num_labels=num_labels)
    stages: dict[str, Any] = dict(depths=[1] * 4, out_features=["stage1", "stage2", "stage3", "stage4"])
    if family == "UperNetSwin":
        swin: dict[str, Any] = dict(image_size=32, patch_size=4, embed_dim=8, num_heads=[1] * 4, window_size=4)
        backbone = t.SwinConfig(**swin, **stages)
    else:
        backbone = t.ConvNextConfig(hidden_sizes=[8] * 4, **stages)
    whole: dict[str, Any] = dict(hidden_size=8, auxiliary_channels=8, num_labels=num_labels)
    whole["auxiliary_in_channels"] = 32 if family == "UperNetSwin" else 8
    return t.UperNetConfig(backbone_config=backbone, **whole)


def saved(family: str, folder: Path, num_labels: int = 5) -> Any:  # models have more than a Module says
    """The model, of which every part is seen in the logits; its files are in the folder."""
    import transformers

    torch.manual_seed(3)
    model = transformers.AutoModelForSemanticSegmentation.from_config(config(family, num_labels)).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_mean"):
                tensor.uniform_(-0.1, 0.1)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and tensor.ndim > 1:
                tensor.uniform_(-0.4, 0.4)  # the library's own are so small that nothing comes out
    model.save_pretrained(folder)
    return model
