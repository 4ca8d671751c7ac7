"""Default targets: all of a family's layers, and nothing that only looks like one."""

from __future__ import annotations

import re
from typing import Any

import peft
import pytest
import timm
import torch
from peft.tuners.tuners_utils import BaseTuner
from timm.models import VisionTransformer
from torch import nn

from snella import SnellaConfig
from snella.config.method import MethodConfig
from snella.errors import UserError
from snella.methods.adapters import wrap
from snella.tuner.targets import default_targets, head_names
from support.hf_segmenters import FAMILIES, config
from support.tuned import layers, tuner_of


def targeted(model: nn.Module) -> set[str]:
    """Default targets by name, with numbers as `*`."""
    pattern = default_targets(model)
    names = [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]
    return {re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name in names}


def depth(model: nn.Module) -> int:
    """The number of blocks of a ViT."""
    assert isinstance(model, VisionTransformer)
    return len(model.blocks)


VIT = {"blocks.*.attn.qkv", "blocks.*.attn.proj", "blocks.*.mlp.fc1", "blocks.*.mlp.fc2"}
TIMM = {
    "vit_tiny_patch16_224": VIT,
    "deit_tiny_distilled_patch16_224": VIT,
    "beit_base_patch16_224": VIT,
    "vit_small_patch14_dinov2": VIT,
    "vit_base_patch16_siglip_224": VIT,
    "vit_small_patch16_dinov3": VIT,
    "eva02_base_patch14_224": {f"blocks.*.attn.{part}_proj" for part in "qkv"}
    | {"blocks.*.attn.proj", "blocks.*.mlp.fc1_g", "blocks.*.mlp.fc1_x", "blocks.*.mlp.fc2"},
    "swin_tiny_patch4_window7_224": {f"layers.*.{name}" for name in VIT},
    "swinv2_tiny_window8_256": {f"layers.*.{name}" for name in VIT},
    "convnext_atto": {"stages.*.blocks.*.mlp.fc1", "stages.*.blocks.*.mlp.fc2"},
    "resnet50": {"layer1.*.conv1", "layer1.*.conv2", "layer1.*.conv3"},
    "efficientnet_lite0": {"blocks.*.*.conv_pw", "blocks.*.*.conv_pwl"},
}


@pytest.mark.parametrize("name", TIMM)
def test_timm_families(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    found = {re.sub(r"^layer\d", "layer1", layer) for layer in targeted(model)}
    assert found == TIMM[name]


@pytest.mark.parametrize("family", ["ViT", "Dinov2", "Swin"])
def test_transformers_families(family: str) -> None:
    import transformers

    config = getattr(transformers, f"{family}Config")()
    with torch.device("meta"):
        model = getattr(transformers, f"{family}ForImageClassification")(config)
    pattern = default_targets(model)
    found = {name for name, _ in model.named_modules() if re.fullmatch(pattern, name)}
    blocks = sum(config.depths) if family == "Swin" else config.num_hidden_layers
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    left = {name for name in linears - found if "downsample" not in name}
    assert len(found) == 6 * blocks
    assert left == {"classifier"}
    assert head_names(model) == ["classifier"]


@pytest.mark.parametrize("family", ["CLIP", "Siglip", "DINOv3ViT"])
def test_transformers_encoders_of_images(family: str) -> None:
    """Attention and MLP of each block; nothing of the text's encoder or of a pooling head."""
    import transformers

    name = f"{family}Model" if family != "DINOv3ViT" else family + "ForImageClassification"
    kind = getattr(transformers, name, None) or getattr(transformers, f"{family}Model")
    config = kind.config_class()
    with torch.device("meta"):
        model = kind(config)
    pattern = default_targets(model)
    found = [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]
    blocks = getattr(config, "vision_config", config).num_hidden_layers
    assert len(found) == ATTENTION_AND_MLP * blocks
    assert not any("text" in name or "pool" in name or "head" in name for name in found)


def test_heads_of_transformers() -> None:
    import transformers

    def heads(kind: Any, **settings: Any) -> list[str]:
        with torch.device("meta"):
            return head_names(kind(kind.config_class(num_labels=7, **settings)))

    assert heads(transformers.SegformerForSemanticSegmentation) == ["decode_head.classifier"]
    assert heads(transformers.DPTForSemanticSegmentation) == ["head.head.4", "auxiliary_head.head.4"]
    assert heads(transformers.DeiTForImageClassificationWithTeacher) == ["cls_classifier", "distillation_classifier"]
    assert heads(transformers.TimmWrapperForImageClassification, architecture="resnet18") == ["timm_model.fc"]
    assert heads(transformers.ViTModel) == []
    assert heads(transformers.CLIPForImageClassification) == ["classifier"]
    with torch.device("meta"):
        model = transformers.ViTModel(transformers.ViTConfig())
    assert head_names(next(part for part in model.modules() if type(part).__name__ == "ViTLayer")) == []


def test_a_second_adapter_has_the_heads_of_the_first() -> None:
    import transformers

    kind: Any = transformers.SegformerConfig  # whose signature leaves out what all configs take
    base = transformers.SegformerForSemanticSegmentation(kind(num_labels=7))
    model = peft.get_peft_model(base, SnellaConfig(r=4))
    model.add_adapter("other", SnellaConfig(r=4))
    configs = list(tuner_of(model).peft_config.values())
    assert [config.modules_to_save for config in configs] == [["decode_head.classifier"]] * 2


@pytest.mark.parametrize(
    "name", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224", "efficientnet_lite0", "mobilenetv3_small_050"]
)
def test_extractors_of_features_have_the_layers_of_the_whole_model(name: str) -> None:
    with torch.device("meta"):
        whole, features = timm.create_model(name), timm.create_model(name, features_only=True)
    assert type(whole) is not type(features)

    def targets(model: nn.Module) -> list[str]:
        pattern = default_targets(model)
        return [name.replace("_", ".") for name, _ in model.named_modules() if re.fullmatch(pattern, name)]

    assert targets(features) == targets(whole)


ATTENTION_AND_MLP = 6  # layers of a block: q, k, v, output, and two of the MLP


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "MobileNetV2"])
def test_transformers_segmentation_backbones(family: str) -> None:
    from transformers import AutoModelForSemanticSegmentation

    model: Any = AutoModelForSemanticSegmentation.from_config(config(family, 3))
    backbone = next(iter(model.named_children()))[0]
    pattern = default_targets(model)
    found = [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]
    assert all(isinstance(model.get_submodule(name), nn.Linear | nn.Conv2d) for name in found)
    inside = [name for name in found if name.startswith(f"{backbone}.")]
    blocks = {
        "Segformer": 2,
        "MobileViT": sum(type(part).__name__ == "MobileViTTransformerLayer" for part in model.modules()),
        "UperNetConvNext": 4 / 3,  # two layers of an MLP each, and no attention
    }.get(family, 4)
    assert len(inside) == ATTENTION_AND_MLP * blocks
    decoder = {
        name
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear | nn.Conv2d) and not name.startswith((f"{backbone}.", "auxiliary_head."))
    }
    left = decoder - set(found)
    last = {name for name in left if "classifier" in name or name == "head.head.4"}
    assert len(last) == 1
    odd = {name for name in left - last if not re.search(r"\.resize$|aspp\.convs\.[123]\.", name)}
    assert not odd  # DPT's resizing is transposed but for one; dilated convolutions are passed over


@pytest.mark.parametrize("decoder", ["Unet", "FPN", "UPerNet", "Segformer", "DPT"])
def test_decoders(decoder: str) -> None:
    import segmentation_models_pytorch as smp

    options: dict[str, Any] = {"decoder_intermediate_channels": (8, 8, 8, 8)} if decoder == "DPT" else {}
    encoder = "test_vit" if decoder == "DPT" else "test_resnet"
    model = getattr(smp, decoder)(f"tu-{encoder}", encoder_weights=None, classes=3, **options)
    pattern = default_targets(model)
    found = {name for name, _ in model.named_modules() if re.fullmatch(pattern, name)}
    matrices = {name for name, part in model.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    assert found <= matrices
    last = "segmentation_head.head.4" if decoder == "DPT" else "segmentation_head.0"
    left = {name for name in matrices - found if not name.startswith("encoder.")}
    assert left - {"decoder.reassemble_blocks.3.upsample"} == {last}  # three of DPT's four are transposed
    assert any(name.startswith("encoder.") for name in found)


def test_diffusers_attention() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        model = UNet2DConditionModel(
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
        )
    last = {name.split("transformer_blocks.*.")[1] for name in targeted(model)}
    expected = {f"attn{i}.{part}" for i in "*" for part in ("to_q", "to_k", "to_v", "to_out.*")}
    assert {re.sub(r"attn\d", "attn*", name) for name in last} == expected | {"ff.net.*.proj", "ff.net.*"}


def test_a_backbone_inside_another_module() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = timm.create_model("test_vit", num_classes=0)
            self.decoder = nn.Linear(8, 2)

    assert targeted(Wrapped()) == {f"encoder.{name}" for name in VIT}


def test_an_unknown_model_says_what_could_be_named() -> None:
    with pytest.raises(UserError, match=r"no default targets for Sequential.*from: \*"):
        default_targets(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))


def test_heads() -> None:
    assert head_names(timm.create_model("test_vit", num_classes=3)) == ["head"]
    assert head_names(timm.create_model("test_vit", num_classes=0)) == []
    assert head_names(timm.create_model("test_convnext", num_classes=3)) == ["head.fc"]
    with torch.device("meta"):
        assert head_names(timm.create_model("deit_tiny_distilled_patch16_224")) == ["head", "head_dist"]
        assert head_names(timm.create_model("resnet18")) == ["fc"]


def test_embeddings_of_classes_are_heads_in_diffusers() -> None:
    from diffusers import DiTTransformer2DModel, UNet2DModel

    options: dict[str, Any] = dict(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    assert head_names(UNet2DModel(**options, num_class_embeds=3)) == ["class_embedding"]
    assert head_names(UNet2DModel(**options)) == []
    assert head_names(UNet2DModel(**options, class_embed_type="timestep")) == []  # no table of classes
    dit = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=3, sample_size=8, num_embeds_ada_norm=5
    )
    tables = [f"transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table" for i in range(3)]
    assert head_names(dit) == tables
    assert not any(re.fullmatch(default_targets(dit), name) for name in tables)


@pytest.mark.parametrize("save", [None, []])
def test_all_linear_leaves_the_head_alone(save: list[str] | None) -> None:
    base = timm.create_model("test_vit", num_classes=3)
    model = peft.get_peft_model(base, SnellaConfig(r=4, target_modules="all-linear", modules_to_save=save))
    adapted = {layer.name for layer in layers(base)}
    assert len(adapted) == 4 * depth(base)
    assert not any("head" in name for name in adapted)
    assert any("head" in name for name, p in model.named_parameters() if p.requires_grad) == (save is None)


def test_grouped_convolutions_are_passed_over_by_a_pattern_and_adapted_by_name() -> None:
    with torch.device("meta"):
        model = timm.create_model("test_convnext")
    by_pattern = peft.get_peft_model(
        model, SnellaConfig(r=4, target_modules=r"stages\.0\.blocks\.0\.(conv_dw|mlp\.fc1)")
    )
    assert tuner_of(by_pattern).targeted_module_names == ["stages.0.blocks.0.mlp.fc1"]
    with torch.device("meta"):
        model = timm.create_model("test_convnext")
    by_name = peft.get_peft_model(model, SnellaConfig(r=4, target_modules=["conv_dw"]))
    assert "stages.0.blocks.0.conv_dw" in tuner_of(by_name).targeted_module_names


def test_layers_that_do_more_than_a_product_are_left_as_they_are() -> None:
    """timm's Conv2dSame pads by the input's size, its StdConv2d standardises the weight."""
    from timm.layers import Conv2dSame, StdConv2d

    x = torch.randn(1, 3, 9, 9)
    for kind in (Conv2dSame, StdConv2d):
        base = nn.Sequential(kind(3, 4, 3, stride=2), nn.Conv2d(4, 4, 1)).eval()
        plain = base(x)
        model = peft.get_peft_model(base, SnellaConfig(r=4, target_modules=r"\d", start_scale=1e-6, modules_to_save=[]))
        assert tuner_of(model).targeted_module_names == ["1"]
        torch.testing.assert_close(model(x), plain)
        with pytest.raises(UserError, match=f"0 is a {kind.__name__}, not the plain product"):
            peft.get_peft_model(nn.Sequential(kind(3, 4, 3)), SnellaConfig(r=4, target_modules=["0"]))


@pytest.mark.parametrize("method", ["snella", "lora"])
def test_the_default_layers_of_a_model_that_pads_by_size(method: str) -> None:
    model = timm.create_model("tf_efficientnetv2_b0", num_classes=3).eval()
    wrapped = wrap(model, MethodConfig(name=method, r=4), total_step=4).eval()
    assert wrapped(torch.zeros(2, 3, 64, 64)).shape == (2, 3)
    tuner = wrapped.base_model
    assert isinstance(tuner, BaseTuner)
    names = tuner.targeted_module_names
    assert "blocks.1.1.conv_exp" in names
    assert "blocks.1.0.conv_exp" not in names


def test_a_wrong_pattern_lists_the_candidates() -> None:
    model = timm.create_model("test_vit", num_classes=3)
    with pytest.raises(UserError, match=r"'qvk'.*choose from: patch_embed\.proj, blocks\.\*\.attn\.qkv"):
        peft.get_peft_model(model, SnellaConfig(r=4, target_modules=["qvk"]))
    with pytest.raises(UserError, match=r"norm1 is a LayerNorm, not a product with a weight"):
        peft.get_peft_model(model, SnellaConfig(r=4, target_modules=["norm1"]))
    with pytest.raises(UserError, match=r"\{'head'\} matches no layer .*left out: modules_to_save=\['head'\]\)"):
        peft.get_peft_model(model, SnellaConfig(r=4, target_modules=["head"]))
    with pytest.raises(UserError, match=r"'all-linear' matches no layer of ResNet"):
        peft.get_peft_model(timm.create_model("resnet18"), SnellaConfig(r=4, target_modules="all-linear"))


def test_explicit_lists_mean_what_peft_means() -> None:
    base = timm.create_model("test_vit", num_classes=3)
    config = SnellaConfig(r=4, target_modules=["proj"], exclude_modules=["patch_embed.proj"])
    model = peft.get_peft_model(base, config)
    assert set(tuner_of(model).targeted_module_names) == {f"blocks.{i}.attn.proj" for i in range(depth(base))}
