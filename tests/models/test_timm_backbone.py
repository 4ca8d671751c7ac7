"""Backbones from timm: other image sizes, and weights from files of every kind that timm reads."""

import re
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from snella.data.transforms.images import Preprocessing
from snella.errors import UserError
from snella.models.backbone import check_backbone_name, preprocessing_of
from support.backbones import VIT, build, images, logits, spec


def test_a_checkpoint_of_no_known_kind_is_refused(tmp_path):
    file = tmp_path / "weights.zip"
    file.touch()
    with pytest.raises(UserError, match="no known kind"):
        check_backbone_name(spec(checkpoint=file))


@pytest.mark.parametrize(
    ("name", "size"),
    [(VIT, 64), (VIT, 224), ("test_convnext", 96), ("test_resnet", 50), ("swin_tiny_patch4_window7_224", 64)],
)
def test_another_image_size(name, size):
    asked = spec(name, image_size=size)
    model = build(asked)
    assert logits(model, images(size)).shape == (2, 3)
    assert preprocessing_of(asked, model).image_size == size


@pytest.mark.parametrize(
    ("name", "size", "remedy"),
    [
        (VIT, 100, "try 96 or 112"),
        (VIT, 10, "try 16"),
        ("swin_tiny_patch4_window7_224", 66, "try 64 or 68"),
        ("hiera_tiny_224", 112, "its own size, 224, does"),
    ],
)
def test_an_image_size_that_does_not_fit_is_refused_with_one_that_does(name, size, remedy):
    with pytest.raises(UserError, match=remedy):
        build(spec(name, image_size=size))


def test_drop_path_where_the_model_has_it():
    model = build(spec(drop_path=0.2))
    rates = [module.drop_prob for module in model.modules() if isinstance(module, timm.layers.DropPath)]
    assert max(rates) == pytest.approx(0.2)
    with pytest.raises(UserError, match="has no drop-path"):
        build(spec("vgg11", drop_path=0.2, image_size=32))


def test_preprocessing_is_that_of_the_pretraining():
    asked = spec("vit_tiny_patch16_224.augreg_in21k")
    expected = Preprocessing(224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic")
    assert preprocessing_of(asked, build(asked)) == expected
    asked = spec("convnext_atto", image_size=64)
    found = preprocessing_of(asked, build(asked))
    assert found.image_size == 64
    assert found.mean == (0.485, 0.456, 0.406)


# checkpoints


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(7)
    return timm.create_model(VIT, num_classes=5).eval()


@pytest.mark.parametrize("kind", ["a.safetensors", "a.pth", "wrapped.pth.tar"])
def test_a_checkpoint_gives_the_model_back(kind, source, tmp_path):
    state = source.state_dict()
    if kind.endswith("safetensors"):
        save_file(state, tmp_path / kind)
    else:
        torch.save({"epoch": 1, "state_dict": state} if kind.startswith("wrapped") else state, tmp_path / kind)
    model = build(spec(checkpoint=tmp_path / kind, num_classes=5))
    assert torch.equal(logits(model, images(160)), logits(source, images(160)))
    assert "state_dict" not in model.pretrained_cfg


def test_a_head_of_another_class_count_is_dropped_and_said(source, tmp_path, caplog):
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    model = build(spec(checkpoint=tmp_path / "a.safetensors"))
    assert logits(model, images(160)).shape == (2, 3)
    assert "head of 5 classes is dropped" in caplog.text
    with torch.no_grad():
        assert torch.equal(model.forward_features(images(160)), source.forward_features(images(160)))


def test_a_checkpoint_at_another_image_size(source, tmp_path):
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    model = build(spec(checkpoint=tmp_path / "a.safetensors", num_classes=5, image_size=96))
    resized: Any = timm.create_model(VIT, num_classes=5)
    resized.load_state_dict(source.state_dict())
    resized.set_input_size((96, 96))
    torch.testing.assert_close(logits(model, images(96)), logits(resized, images(96)))


def test_an_original_convnext_file_has_its_head_dropped_too(tmp_path, caplog):
    state = timm.create_model("convnext_atto", num_classes=5).state_dict()
    names = [
        (r"stem\.", "downsample_layers.0."),
        (r"stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"\.blocks\.", "."),
        ("conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"head\.(norm|fc)\.", lambda match: {"norm": "norm.", "fc": "head."}[match[1]]),
    ]
    original = {}
    for name, tensor in state.items():
        for ours, theirs in names:
            name = re.sub(ours, theirs, name)
        original[name] = tensor
    torch.save({"model": original}, tmp_path / "a.pth")
    loaded = build(spec("convnext_atto", checkpoint=tmp_path / "a.pth")).state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state if not name.startswith("head.fc"))
    assert "head of 5 classes" in caplog.text


def test_a_checkpoint_of_another_model_is_refused_with_counts(source, tmp_path):
    state = source.state_dict()
    save_file(state, tmp_path / "a.safetensors")
    wanted = timm.create_model("test_resnet").state_dict()
    with pytest.raises(
        UserError, match=f"{len(wanted)} of its {len(wanted)} tensors are missing, {len(state)} are une"
    ):
        build(spec("test_resnet", checkpoint=tmp_path / "a.safetensors"))
    del state["blocks.0.attn.qkv.weight"]
    save_file(state, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=f"1 of its {len(state) + 1} tensors are missing, 0 are unexpected"):
        build(spec(checkpoint=tmp_path / "b.safetensors"))


def test_a_broken_or_pickled_checkpoint_is_refused(source, tmp_path):
    torch.save(source, tmp_path / "whole_model.pth")
    with pytest.raises(UserError, match="Python objects besides tensors"):
        build(spec(checkpoint=tmp_path / "whole_model.pth"))
    for name in ("empty.pth", "empty.safetensors", "empty.npz"):
        (tmp_path / name).touch()
        with pytest.raises(UserError, match=name):
            build(spec(checkpoint=tmp_path / name))


def google_arrays(model):
    """The state of a timm ViT in the layout of Google's .npz files."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    d, heads = model.embed_dim, model.blocks[0].attn.num_heads
    arrays = {
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(len(model.blocks)):
        ours, theirs = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        attention = f"{theirs}MultiHeadDotProductAttention_1/"
        for part, name in enumerate(("query", "key", "value")):
            weight, bias = (state[f"{ours}attn.qkv.{kind}"][part * d : (part + 1) * d] for kind in ("weight", "bias"))
            arrays[f"{attention}{name}/kernel"] = weight.T.reshape(d, heads, -1)
            arrays[f"{attention}{name}/bias"] = bias.reshape(heads, -1)
        arrays[f"{attention}out/kernel"] = state[f"{ours}attn.proj.weight"].T.reshape(heads, -1, d)
        arrays[f"{attention}out/bias"] = state[f"{ours}attn.proj.bias"]
        for norm, name in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            arrays[f"{theirs}{name}/scale"] = state[f"{ours}{norm}.weight"]
            arrays[f"{theirs}{name}/bias"] = state[f"{ours}{norm}.bias"]
        for j in range(2):
            arrays[f"{theirs}MlpBlock_3/Dense_{j}/kernel"] = state[f"{ours}mlp.fc{j + 1}.weight"].T
            arrays[f"{theirs}MlpBlock_3/Dense_{j}/bias"] = state[f"{ours}mlp.fc{j + 1}.bias"]
    return arrays


def test_a_google_npz_file(tmp_path, caplog):
    name = "vit_tiny_patch16_224"
    torch.manual_seed(7)
    source = timm.create_model(name, num_classes=5).eval()
    arrays = google_arrays(source)
    np.savez(tmp_path / "a.npz", **arrays)
    model = build(spec(name, checkpoint=tmp_path / "a.npz", num_classes=5))
    torch.testing.assert_close(logits(model, images(224, 1)), logits(source, images(224, 1)))
    assert not caplog.text

    model = build(spec(name, checkpoint=tmp_path / "a.npz", image_size=64))
    assert logits(model, images(64)).shape == (2, 3)
    assert "head of 5 classes is dropped" in caplog.text

    with pytest.raises(UserError, match=r"reads \.npz for ViT and BiT only"):
        build(spec("test_resnet", checkpoint=tmp_path / "a.npz"))
    with pytest.raises(UserError, match="does not fit vit_small_patch16_224"):
        build(spec("vit_small_patch16_224", checkpoint=tmp_path / "a.npz"))
    del arrays["Transformer/encoderblock_3/MlpBlock_3/Dense_0/kernel"]
    np.savez(tmp_path / "b.npz", **arrays)
    with pytest.raises(UserError, match="encoderblock_3"):
        build(spec(name, checkpoint=tmp_path / "b.npz"))
