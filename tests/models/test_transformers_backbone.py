from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torch import nn

from snella.data.transforms.images import Preprocessing, eval_transform
from snella.errors import UserError
from snella.models import transformers_backbone
from snella.models.backbone import fingerprint, preprocessing_of
from snella.models.export import _processor
from snella.segmenter.transformers import processor as segmenter_processor
from support.backbones import build, images, logits, spec


@pytest.fixture(scope="module")
def hf_vit(tmp_path_factory):
    """A folder with a tiny ViT of 5 classes at 32 pixels, and the model."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=5,
    )
    torch.manual_seed(3)
    model = transformers.ViTForImageClassification(config).eval()
    nn.init.normal_(model.vit.embeddings.position_embeddings)  # zeros at first, which any resizing leaves as they are
    folder = tmp_path_factory.mktemp("hf_vit")
    model.save_pretrained(folder)
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.4, 0.5, 0.6])
    processor.save_pretrained(folder)
    return folder, model


def test_a_transformers_folder(hf_vit, caplog):
    folder, source = hf_vit
    asked = spec(f"hf:{folder}", pretrained=True, num_classes=5)
    model = build(asked)
    assert torch.equal(logits(model, images(32)), logits(source, images(32)))
    found = preprocessing_of(asked, model)
    assert (found.image_size, found.mean, found.interpolation) == (32, (0.4, 0.5, 0.6), "bilinear")
    assert not caplog.text
    three = build(spec(f"hf:{folder}", pretrained=True))
    assert logits(three, images(32)).shape == (2, 3)
    assert "its head is dropped" in caplog.text
    assert fingerprint(three) == fingerprint(model)
    scratch = build(spec(f"hf:{folder}", image_size=64))
    assert logits(scratch, images(64)).shape == (2, 3)
    assert fingerprint(scratch) != fingerprint(model)


def test_a_transformers_vit_at_another_size_interpolates_its_positions(hf_vit, tmp_path):
    folder, source = hf_vit
    model = build(spec(f"hf:{folder}", pretrained=True, num_classes=5, image_size=48))
    with torch.no_grad():
        expected = source(images(48), interpolate_pos_encoding=True).logits
    torch.testing.assert_close(logits(model, images(48)), expected)
    model.save_pretrained(tmp_path)  # and stays at that size for whoever loads it next
    again = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again, images(48)), expected)
    with pytest.raises(UserError, match="try 48 or 56"):
        build(spec(f"hf:{folder}", pretrained=True, image_size=50))


def test_transformers_drop_path_and_missing_processor(tmp_path, caplog):
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4, num_labels=3
    )
    transformers.SwinForImageClassification(config).save_pretrained(tmp_path)
    for rate in (0.0, 0.3):
        asked = spec(f"hf:{tmp_path}", pretrained=True, image_size=64, drop_path=rate)
        model = build(asked)
        assert model.config.drop_path_rate == rate
    assert logits(model, images(64)).shape == (2, 3)
    assert preprocessing_of(asked, model) == Preprocessing(64)
    assert "no preprocessor_config.json" in caplog.text


def test_a_transformers_folder_of_something_else_is_refused(hf_vit, tmp_path):
    folder, source = hf_vit
    with pytest.raises(UserError, match="has no drop-path"):
        build(spec(f"hf:{folder}", pretrained=True, drop_path=0.1))
    state = {name: tensor for name, tensor in source.state_dict().items() if "embeddings" not in name}
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="4 are missing"):
        build(spec(f"hf:{tmp_path}", pretrained=True))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="model_type"):
        build(spec(f"hf:{tmp_path}", pretrained=True))


def test_levit_and_cvt(tmp_path):
    """Drop-path is a whole number in the one, a list over the stages in the other; LeViT's biases have one size."""
    transformers = pytest.importorskip("transformers")
    shape = {"num_channels": 3, "image_size": 32, "hidden_sizes": [16, 16, 16], "num_attention_heads": [1, 1, 1]}
    levit = transformers.LevitConfig(**shape, depths=[1, 1, 1], key_dim=[8, 8, 8], num_labels=3)
    transformers.LevitForImageClassification(levit).save_pretrained(tmp_path / "levit")
    asked = spec(f"hf:{tmp_path / 'levit'}", pretrained=True)
    assert logits(build(asked), images(32)).shape == (2, 3)
    with pytest.raises(UserError, match=r"cannot have --drop-path 0\.5; leave it out"):
        build(replace(asked, drop_path=0.5))
    with pytest.raises(UserError, match=f"hf:{tmp_path / 'levit'} takes its own image size only, 32"):
        build(replace(asked, image_size=64))
    cvt = transformers.CvtConfig(embed_dim=[8, 8, 8], num_heads=[1, 1, 1], depth=[1, 2, 3], num_labels=3)
    transformers.CvtForImageClassification(cvt).save_pretrained(tmp_path / "cvt")
    for rate in (0.0, 0.2):
        model = build(spec(f"hf:{tmp_path / 'cvt'}", pretrained=True, drop_path=rate))
        assert model.config.drop_path_rate == [rate] * 3


# The order of the channels was warned of, and images came in as red, green, blue.
def test_an_image_processor_that_does_not_normalise_and_takes_blue_first(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.MobileViTConfig(image_size=32, num_labels=3)
    folder = tmp_path / "mobilevit"
    model = transformers.MobileViTForImageClassification(config)
    model.save_pretrained(folder)
    processor = {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 36}, "resample": 2}
    processor |= {"crop_size": {"height": 32, "width": 32}, "do_flip_channel_order": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    found = preprocessing_of(spec(f"hf:{folder}", pretrained=True), model)
    assert found == Preprocessing(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear", bgr=True)
    assert Preprocessing.from_dict(found.to_dict()) == found
    assert Preprocessing.from_dict(Preprocessing(8).to_dict()) == Preprocessing(8)
    assert "bgr" not in Preprocessing(8).to_dict()
    image = Image.new("RGB", (50, 40), (200, 30, 90))
    for p in (found, replace(found, resize="squash")):
        tensor = eval_transform(p)({"image": image})["image"]
        assert tensor[:, 16, 16].tolist() == pytest.approx([90 / 255, 30 / 255, 200 / 255])
        for make in (_processor, segmenter_processor):
            given = make(p)(images=image, return_tensors="pt")["pixel_values"][0]
            assert torch.allclose(given[:, 16, 16], tensor[:, 16, 16], atol=1e-6)
        assert _processor(p)(images=image, return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)


# type of the processor, its settings
PROCESSORS = [
    ("ViTImageProcessor", {}),
    ("ViTImageProcessor", {"image_mean": [0.2, 0.3, 0.4], "image_std": [0.1, 0.2, 0.3]}),
    ("ViTImageProcessor", {"do_rescale": False, "do_normalize": False}),
    ("ViTImageProcessor", {"do_rescale": False, "image_mean": [120, 110, 100], "image_std": [60, 61, 62]}),
    ("ViTImageProcessor", {"do_normalize": False}),
    ("ViTImageProcessor", {"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]}),
    ("ViTImageProcessor", {"do_resize": False}),
    ("ConvNextImageProcessor", {"crop_pct": 0.875, "size": {"shortest_edge": 32}}),
    ("CLIPImageProcessor", {"do_center_crop": False, "size": {"height": 32, "width": 32}}),
    ("BitImageProcessor", {"resample": 2, "crop_size": 32}),
    ("EfficientNetImageProcessor", {"image_std": [0.47, 0.47, 0.48]}),
    ("EfficientNetImageProcessor", {"include_top": False}),
    ("EfficientNetImageProcessor", {"rescale_offset": True, "rescale_factor": 1 / 127.5, "do_normalize": False}),
]


@pytest.mark.parametrize(("kind", "settings"), PROCESSORS)
def test_colours_are_prepared_as_the_image_processor_does(kind, settings, hf_vit, tmp_path):
    transformers = pytest.importorskip("transformers")
    _, model = hf_vit
    square = {"size": {"height": 32, "width": 32}, "image_processor_type": kind}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**square, **settings}))
    model.config.save_pretrained(tmp_path)
    found = preprocessing_of(spec(f"hf:{tmp_path}"), model)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    picture = Image.new("RGB", (32, 32), (250, 128, 3))
    own = eval_transform(replace(found, resize="squash"))({"image": picture})["image"]
    given = processor(images=picture, return_tensors="pt")["pixel_values"][0].float()
    assert own[:, 16, 16].tolist() == pytest.approx(given[:, 16, 16].tolist(), rel=1e-4, abs=1e-4)
    assert found.interpolation == ("bilinear" if processor.resample == 2 else "bicubic")


def test_a_crop_that_is_not_taken_says_no_size(hf_vit, tmp_path):
    pytest.importorskip("transformers")
    settings = {"image_processor_type": "CLIPImageProcessor", "do_center_crop": False, "crop_size": 24, "size": 48}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    model: Any = SimpleNamespace(config=SimpleNamespace())  # it says no size of its own
    hf_vit[1].config.save_pretrained(tmp_path)
    assert transformers_backbone.preprocessing_of(str(tmp_path), model).image_size == 48


def test_a_processor_that_does_more_is_refused(hf_vit, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    folder, model = hf_vit

    class Inverting(transformers.ViTImageProcessor):
        def __call__(self, images, **options):
            return super().__call__(ImageOps.invert(images), **options)

    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", Inverting.from_pretrained)
    with pytest.raises(UserError, match=r"its image processor \(Inverting\) prepares colours in a way"):
        preprocessing_of(spec(f"hf:{folder}"), model)
