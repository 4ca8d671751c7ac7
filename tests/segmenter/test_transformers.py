"""Segmentation models of transformers: heads, sizes, what trains, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from snella.config.method import MethodConfig
from snella.data.transforms.images import Preprocessing
from snella.errors import UserError
from snella.methods.adapters import load_adapter, merged, save_adapter, wrap
from snella.models.backbone import BackboneSpec, fingerprint
from snella.segmenter.build import SegmenterSpec, build_segmenter, preprocessing_of_segmenter
from snella.tuner.targets import head_names
from support.hf_segmenters import FAMILIES, saved

transformers = pytest.importorskip("transformers")

SETTINGS = MethodConfig(r=2, target_sparsity=0.5)


def spec(folder, num_classes=5, size=None, *, adapt=False, pretrained=True, **options) -> SegmenterSpec:
    return SegmenterSpec(BackboneSpec(f"hf:{folder}", pretrained, None, size, num_classes, **options), None, adapt)


def build(*args, **options) -> Any:
    return build_segmenter(spec(*args, **options)).eval()


def images(size, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model, batch):
    return model.eval()(batch)


@pytest.fixture(scope="module", params=FAMILIES)
def source(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return folder, saved(request.param, folder)


def test_logits_are_the_librarys_at_the_size_of_the_image(source, caplog):
    folder, model = source
    found = logits(build(folder), images(32))
    with torch.no_grad():
        expected = F.interpolate(model(images(32)).logits, (32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert "head" not in caplog.text
    assert logits(build(folder, 3, 64), images(64)).shape == (2, 3, 64, 64)
    assert "its head is dropped; a new one for 3 classes is trained" in caplog.text


def test_the_decoder_trains_and_is_not_in_the_fingerprint(source):
    folder, _ = source
    model = build(folder, 3)
    backbone = next(iter(model.net.named_children()))[0]
    wrapped = wrap(build(folder, 3), replace(SETTINGS, name="linear"), total_step=20)
    trainable = {key for key, parameter in wrapped.named_parameters() if parameter.requires_grad}
    assert trainable == {key for key, _ in model.named_parameters() if not key.startswith(f"net.{backbone}.")}
    assert "auxiliary" not in str(trainable)  # it is left out
    wrapped.train()
    F.cross_entropy(wrapped(images(32)), torch.zeros(2, 32, 32, dtype=torch.long)).backward()
    assert all(p.grad is not None for key, p in wrapped.named_parameters() if key in trainable and unused not in key)
    assert fingerprint(model) == fingerprint(build(folder))
    assert fingerprint(model) != fingerprint(build(folder, pretrained=False))


unused = "fusion_stage.layers.0.residual_layer1"  # of transformers' DPT: the first one has nothing to add to


@pytest.mark.parametrize(
    ("method", "adapt"), [("snella", False), ("snella", True), pytest.param("lora", True, marks=pytest.mark.slow)]
)
def test_trained_saved_loaded_and_merged(source, method, adapt, tmp_path):
    folder, model = source
    if type(model).__name__.startswith("MobileNetV2"):
        pytest.skip("the library reads the stride of its convolutions, which no adapter of PEFT's passes on")
    base = build(folder, adapt=adapt)
    before, names = logits(base, images(32)), set(dict(base.named_parameters()))
    backbone, *heads = (name for name, _ in base.net.named_children())
    model: Any = wrap(base, replace(SETTINGS, name=method), total_step=20)
    assert any(layer.split(".")[1] in heads for layer in model.base_model.targeted_module_names) == adapt
    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    for _ in range(2):
        model.train()
        base.net.get_submodule(backbone).eval()  # a run does not move its statistics
        F.cross_entropy(model(images(32)), torch.arange(2 * 32 * 32).reshape(2, 32, 32) % 5).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, start[key])}
    assert all(any(part in key for part in ("snella_", "lora_", ".modules_to_save.")) for key in moved)
    assert {key for key in start if "running_" in key and ".modules_to_save." in key} <= moved
    expected = logits(model, images(32))
    assert (expected - before).abs().max() > 1e-3

    save_adapter(method, model, tmp_path)
    loaded = load_adapter(method, build(folder, adapt=adapt), tmp_path)
    torch.testing.assert_close(logits(loaded, images(32)), expected, rtol=0, atol=1e-5)
    plain = merged(method, loaded)
    torch.testing.assert_close(logits(plain, images(32)), expected, rtol=1e-3, atol=1e-3)
    assert set(dict(plain.named_parameters())) == names


def test_an_adapted_decoder_trains_its_norms_and_last_layer_alone(source):
    folder, _ = source
    model = build(folder, 3, adapt=True)
    heads = [model.get_submodule(head) for head in head_names(model)]
    scores = [head for head in heads if isinstance(head, torch.nn.Conv2d)]
    assert [head.out_channels for head in scores] == [3]
    assert all(head in scores or "Norm" in type(head).__name__ for head in heads)


def test_a_backbone_without_a_decoder_gets_one(tmp_path, caplog):
    from support.hf_segmenters import config

    classifier = transformers.SegformerForImageClassification(config("Segformer", 5))
    classifier.save_pretrained(tmp_path)
    model = build(tmp_path, 3)
    assert "has no such head; a new one for 3 classes is trained" in caplog.text
    state = model.net.segformer.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in classifier.segformer.state_dict().items())


def test_drop_path_and_the_size_of_the_backbone_inside(tmp_path):
    saved("UperNetSwin", tmp_path)
    model = build(tmp_path, size=64, drop_path=0.2)
    assert model.net.config.backbone_config.drop_path_rate == 0.2
    assert logits(model, images(64)).shape == (2, 5, 64, 64)
    with pytest.raises(UserError, match="try 60 or 64"):
        build(tmp_path, size=62)
    saved("DPT", tmp_path / "dpt")
    with pytest.raises(UserError, match="has no drop-path"):
        build(tmp_path / "dpt", drop_path=0.2)


def test_preprocessing_is_the_processors(tmp_path):
    saved("Segformer", tmp_path)
    asked = spec(tmp_path)
    assert preprocessing_of_segmenter(asked, build_segmenter(asked)) == Preprocessing(224)
    size = {"height": 96, "width": 96}
    transformers.SegformerImageProcessor(size=size, image_mean=[0.4, 0.5, 0.6]).save_pretrained(tmp_path)
    found = preprocessing_of_segmenter(asked, build_segmenter(asked))
    assert (found.image_size, found.mean, found.interpolation) == (96, (0.4, 0.5, 0.6), "bilinear")
    asked = spec(tmp_path, size=32)
    assert preprocessing_of_segmenter(asked, build_segmenter(asked)).image_size == 32


def test_other_models_are_refused(tmp_path):
    vit = transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    transformers.ViTForImageClassification(vit).save_pretrained(tmp_path / "vit")
    transformers.Mask2FormerConfig().save_pretrained(tmp_path / "mask2former")
    for name in ("vit", "mask2former"):
        with pytest.raises(UserError, match=rf"\({name}\) is not a model that gives each pixel a class") as error:
            build(tmp_path / name)
        assert "\n" not in str(error.value)
    saved("Segformer", tmp_path / "segformer")
    file = tmp_path / "segformer" / "config.json"
    file.write_text(file.read_text().replace('"hidden_sizes": [\n    8,', '"hidden_sizes": [\n    4,'))
    with pytest.raises(UserError, match="does not hold the weights of SegformerForSemanticSegmentation"):
        build(tmp_path / "segformer")
