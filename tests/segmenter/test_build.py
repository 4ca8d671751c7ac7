"""Segmentation models around timm encoders: shapes, weights, what trains, and what is refused."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from snella.config.method import MethodConfig
from snella.errors import UserError
from snella.methods.adapters import load_adapter, merged, save_adapter, wrap
from snella.models.backbone import BackboneSpec, build_backbone, fingerprint
from snella.models.export import save_merged
from snella.segmenter import smp
from snella.segmenter.build import (
    Segmenter,
    SegmenterSpec,
    build_segmenter,
    check_segmenter,
    preprocessing_of_segmenter,
)
from snella.segmenter.plain import PARTS
from snella.tuner.targets import head_names

SETTINGS = MethodConfig(r=4, target_sparsity=0.5)
SMALL = 32  # pixels
CASES = [  # an encoder, its decoder
    ("test_vit", "plain"),
    ("test_vit", "dpt"),
    ("test_resnet", "unet"),
    ("test_efficientnet", "fpn"),
    ("test_convnext", "upernet"),
    ("test_convnext", "segformer"),
]


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    monkeypatch.setattr(smp, "DPT_WIDTHS", (8, 8, 16, 16))


def spec(
    name: str, decoder: str | None = None, size: int | None = 64, *, adapt: bool = False, **options: Any
) -> SegmenterSpec:
    settings = {"pretrained": False, "checkpoint": None, "num_classes": 3} | options
    return SegmenterSpec(BackboneSpec(name, image_size=size, **settings), decoder, adapt)


def build(*args, **options) -> Any:  # nets have more than a Module says
    return build_segmenter(spec(*args, **options))


def images(size, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model, batch):
    return model.eval()(batch)


def train(model: nn.Module) -> None:
    """Two steps in training mode, so that the statistics of norms move."""
    model.train()
    masks = torch.arange(2 * SMALL * SMALL).reshape(2, SMALL, SMALL) % 3
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    for _ in range(2):
        F.cross_entropy(model(images(SMALL)), masks).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_spec_survives_json():
    asked = spec("test_convnext", "fpn", adapt=True, drop_path=0.1)
    assert SegmenterSpec.from_dict(asdict(asked)) == asked


@pytest.mark.parametrize(
    ("name", "size", "kind"),
    [
        *(("test_vit", 48, "PlainSegmentation"), ("test_resnet", 50, "Unet")),
        *(("vit_small_focus", 28, "PlainSegmentation"), ("efficientnet_lite0_imagenet", 50, "Unet")),
    ],
)
def test_the_decoder_fits_the_encoder_and_logits_the_image(name, size, kind):
    model = build(name, None, size)
    assert type(model.net).__name__ == kind
    assert logits(model, images(size)).shape == (2, 3, size, size)


def test_without_a_size_it_is_that_of_the_pretraining():
    asked = spec("test_vit", None, None)
    model = build_segmenter(asked)
    p = preprocessing_of_segmenter(asked, model)
    assert (p.image_size, p.mean) == (160, (0.5, 0.5, 0.5))
    assert logits(model, images(160, 1)).shape == (1, 3, 160, 160)
    asked = spec("test_convnext", "unet", 96)
    assert preprocessing_of_segmenter(asked, build_segmenter(asked)).image_size == 96


def test_the_rest_of_a_padded_image_is_zero_and_cut_off():
    model = build("test_resnet", "unet", 64)
    batch = images(64)[:, :, :50, :40]
    padded = torch.zeros(2, 3, 64, 64)
    padded[:, :, :50, :40] = batch
    assert torch.equal(logits(model, batch), logits(model, padded)[:, :, :50, :40])


@pytest.mark.parametrize(("name", "decoder"), CASES)
def test_the_result_is_a_function_of_the_spec(name, decoder):
    first = build(name, decoder, seed=4).state_dict()
    torch.rand(3)
    second, third = build(name, decoder, seed=4).state_dict(), build(name, decoder, seed=5).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    for part in ("encoder", "decoder"):
        assert any(not torch.equal(first[key], third[key]) for key in first if key.startswith(f"net.{part}"))


# weights


@pytest.mark.parametrize(
    ("name", "decoder"), [*CASES[2:], ("mobilenetv3_small_050", "fpn"), ("swin_tiny_patch4_window7_224", "unet")]
)
def test_features_are_those_of_the_timm_model(name, decoder):
    asked = spec(name, decoder)
    encoder: Any = build_segmenter(asked).eval().net.encoder
    whole: Any = build_backbone(asked.backbone).eval()
    with torch.no_grad():
        found = [feature for feature in encoder(images(64))[1:] if feature.shape[1]]
        expected = whole.forward_intermediates(images(64), intermediates_only=True)
    assert len(found) == len(expected) >= 4
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("decoder", ["plain", "dpt"])
@pytest.mark.parametrize("name", ["test_vit", "test_vit2"])  # test_vit2 norms after pooling
def test_tokens_are_those_of_the_timm_model(name, decoder):
    asked = spec(name, decoder)
    net: Any = build_segmenter(asked).eval().net
    whole: Any = build_backbone(asked.backbone).eval()
    seen = []
    with torch.no_grad():
        if decoder == "plain":
            net.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
            net(images(64))
            tokens = whole.forward_features(images(64))[:, whole.num_prefix_tokens :]
            tokens = whole.fc_norm(tokens)  # an Identity where tokens are normed already
            expected = [tokens.transpose(1, 2).unflatten(2, (4, 4))]
        else:
            seen = net.encoder(images(64))[0]
            expected = whole.forward_intermediates(images(64), net.encoder._output_indices, intermediates_only=True)
    for ours, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("name", "decoder"), [("test_vit", "plain"), ("test_vit", "dpt"), ("test_convnext", "unet")])
def test_a_checkpoint_file_reaches_the_encoder(name, decoder, tmp_path, caplog):
    source = timm.create_model(name, num_classes=5)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.uniform_(-1, 1)
    file = tmp_path / "weights.safetensors"
    save_file(source.state_dict(), file)
    net: Any = build(name, decoder, checkpoint=str(file)).net
    state = source.state_dict()
    model = net.encoder if decoder == "plain" else net.encoder.model
    found = {key.replace("stages_", "stages.").replace("stem_", "stem."): t for key, t in model.state_dict().items()}
    assert all(torch.equal(tensor, state[key]) for key, tensor in found.items() if key != "pos_embed")
    left = state.keys() - found.keys()
    assert left
    assert all(key.startswith(("head", "norm_pre")) for key in left)
    assert "head of 5 classes is dropped" in caplog.text
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="does not fit"):
        build(name, decoder, checkpoint=str(file))


@pytest.mark.parametrize(("name", "decoder"), [("test_vit", "plain"), ("test_vit", "dpt"), ("test_resnet", "unet")])
def test_a_local_timm_folder(name, decoder, tmp_path):
    plain = BackboneSpec(name, False, None, image_size=64, num_classes=3, seed=7)
    source: Any = build_backbone(plain)
    asked = spec(f"local-dir:{tmp_path / 'saved'}", decoder, None, pretrained=True)
    p = preprocessing_of_segmenter(spec(name, decoder), build(name, decoder))
    folder = save_merged(source, tmp_path / "saved", spec=plain, classes="abc", preprocessing=p)
    model: Any = build_segmenter(asked)
    inside = model.net.encoder if decoder == "plain" else model.net.encoder.model
    state = inside.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in source.state_dict().items() if key in state)
    assert preprocessing_of_segmenter(asked, model) == p
    assert logits(model, images(64)).shape == (2, 3, 64, 64)
    if decoder != "plain":
        assert str(folder) not in str(model.net.config)


def test_drop_path_reaches_the_encoder():
    for decoder in ("unet", "upernet"):
        model = build("test_convnext", decoder, drop_path=0.2)
        rates = [module.drop_prob for module in model.modules() if isinstance(module, timm.layers.DropPath)]
        assert max(rates) == pytest.approx(0.2)
    with pytest.raises(UserError, match="has no drop-path"):
        build("vgg11", "unet", 32, drop_path=0.2)


def test_dpt_on_patches_of_14_pixels():
    model = build("vit_small_focus", "dpt", 56)
    assert not smp.loads_with_smp(model.net)
    assert logits(model, images(56, 1)).shape == (1, 3, 56, 56)


# training


@pytest.mark.parametrize(
    ("method", "adapt"), [("snella", False), ("snella", True), pytest.param("lora", True, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("name", "decoder"), CASES)
def test_trained_saved_loaded_and_merged(method, name, decoder, adapt, tmp_path):
    base = build(name, decoder, SMALL, adapt=adapt)
    before, names = logits(base, images(SMALL)), set(dict(base.named_parameters()))
    model: Any = wrap(base, replace(SETTINGS, name=method), total_step=20)
    layers = {layer for layer in model.base_model.targeted_module_names if not layer.startswith("net.encoder.")}
    assert bool(layers) == adapt
    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    train(model)
    moved = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, start[key])}
    kept = ("snella_", "lora_", ".modules_to_save.", ".net.encoder.")
    assert all(any(part in key for part in kept) for key in moved)
    statistics = {key for key in start if "running_mean" in key and ".modules_to_save." in key}
    assert statistics <= moved
    for module in base.net.encoder.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()  # a run does not move these
    expected = logits(model, images(SMALL))
    assert not torch.allclose(expected, before, atol=1e-2)

    save_adapter(method, model, tmp_path)
    loaded = load_adapter(method, build(name, decoder, SMALL, adapt=adapt), tmp_path)
    torch.testing.assert_close(logits(loaded, images(SMALL)), expected, rtol=0, atol=1e-5)
    plain = merged(method, loaded)
    assert isinstance(plain, Segmenter)
    torch.testing.assert_close(logits(plain, images(SMALL)), expected, rtol=1e-3, atol=1e-3)
    assert set(dict(plain.named_parameters())) == names


@pytest.mark.parametrize(("name", "decoder"), CASES)
def test_only_the_decoder_trains_under_linear_and_the_fingerprint_leaves_it_out(name, decoder):
    model = build(name, decoder)
    before = fingerprint(model)
    wrapped = wrap(copy.deepcopy(model), replace(SETTINGS, name="linear"), total_step=20)
    trainable = {key for key, parameter in wrapped.named_parameters() if parameter.requires_grad}
    assert trainable == {key for key, _ in model.named_parameters() if not key.startswith("net.encoder.")}
    for key, tensor in model.state_dict().items():
        if not key.startswith("net.encoder."):
            tensor += 1
    assert fingerprint(model) == before
    next(model.net.encoder.parameters()).data += 1
    assert fingerprint(model) != before


@pytest.mark.parametrize(("name", "decoder"), CASES)
def test_an_adapted_decoder_trains_its_norms_and_last_layer_alone(name, decoder):
    model = build(name, decoder, adapt=True)
    heads = [model.get_submodule(head) for head in head_names(model)]
    scores = [head for head in heads if isinstance(head, nn.Conv2d)]
    assert [head.out_channels for head in scores] == [3 * PARTS**2 if decoder == "plain" else 3]
    assert all(head in scores or "Norm" in type(head).__name__ for head in heads)
    statistics = {key.rpartition(".")[0] for key, _ in model.named_buffers() if ".encoder." not in key}
    assert statistics <= set(head_names(model))
    assert fingerprint(model) != fingerprint(build(name, decoder, adapt=True, seed=1))


# refusals


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (spec("test_convnext", "unett"), "decoder 'unett' is unknown; did you mean unet"),
        (spec("test_vit", "unet"), "--decoder unet does not go with test_vit, a plain ViT.*; use plain or dpt"),
        (spec("vit_small_focus", "fpn"), "use plain or dpt"),
        (spec("test_convnext", "plain"), "is not a plain ViT; use unet or fpn or upernet or segformer"),
        (spec("test_convnext", "dpt"), "--decoder dpt does not go with test_convnext"),
        (spec("hf:owner/name", "unet"), "brings its own; leave it out"),
        (spec("test_convnex"), "did you mean test_convnext"),
        (spec("test_convnext", checkpoint="nowhere.pth"), "nowhere.pth is not a file"),
    ],
)
def test_what_does_not_go_together_is_refused_without_building(asked, message, monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(UserError, match=message) as error:
        check_segmenter(asked)
    assert "\n" not in str(error.value)


def test_what_goes_together_passes_without_being_built(monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("built"))
    for name, decoder in [*CASES, ("hf-hub:timm/a", None), ("hf-hub:timm/a", "fpn"), ("hf:a/b", None)]:
        check_segmenter(spec(name, decoder))


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(smp, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"needs segmentation-models-pytorch.*pip install 'snella\[segment\]'"):
        check_segmenter(spec("test_convnext"))
    build("test_vit", "plain", 32)


@pytest.mark.parametrize(
    ("name", "decoder", "size", "message"),
    [
        ("test_vit", "plain", 50, "try 48 or 64"),
        ("test_vit", "dpt", 48, "not a multiple of 32, which test_vit with dpt needs; try 32 or 64"),
        ("vit_small_focus", "dpt", 42, "try 28 or 56"),
        ("swin_tiny_patch4_window7_224", "unet", 72, "try 64 or 96"),
        ("levit_128s", "unet", None, "choose another backbone"),
        ("samvit_base_patch16", "unet", None, "choose another backbone"),
    ],
)
def test_a_size_or_encoder_that_does_not_fit_is_refused(name, decoder, size, message, monkeypatch):
    if size is None:
        whole = timm_outline(name)
        monkeypatch.setattr("snella.segmenter.build.build_backbone", lambda _: whole)
    with pytest.raises(UserError, match=message):
        build(name, decoder, size)


def timm_outline(name: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)
