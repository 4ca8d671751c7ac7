"""Merged segmentation models load without this package, with the same logits; ONNX too."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import numpy as np
import pytest
import timm
import timm.models
import torch
import torch.nn.functional as F
from PIL import Image

from snella.data.transforms.images import Preprocessing
from snella.data.transforms.masked import masked_eval_transform
from snella.errors import UserError
from snella.models.backbone import BackboneSpec
from snella.models.export import export_onnx
from snella.segmenter import smp as smp_decoders
from snella.segmenter.build import (
    SegmenterSpec,
    build_segmenter,
    loading_hint_segmenter,
    save_merged_segmenter,
)
from support.hf_segmenters import saved
from support.onnx import needs_onnx

ABOUT: dict[str, Any] = {
    "classes": ("ground", "crack", "$5 & more"),
    "values": (0, 7, 255),
    "palette": ((0, 0, 0), (255, 0, 0), (0, 0, 255)),
}
CASES = [
    ("test_vit", "plain"),
    ("test_vit", "dpt"),
    ("test_resnet", "unet"),
    ("test_efficientnet", "fpn"),
    ("test_convnext", "upernet"),
    ("test_convnext", "segformer"),
    ("swin_tiny_patch4_window7_224", "unet"),
]


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    monkeypatch.setattr(smp_decoders, "DPT_WIDTHS", (8, 8, 16, 16))


def built(name: str, decoder: str | None, size: int | None, **options: Any) -> tuple[SegmenterSpec, Any]:
    """A model as a run would end with: every weight is its own, and other statistics in norms."""
    spec = SegmenterSpec(BackboneSpec(name, False, None, size, 3, **options), decoder)
    model = build_segmenter(spec).eval()
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith("running_mean"):
                tensor.uniform_(-0.1, 0.1)
            elif key.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point():
                tensor.add_(0.02 * torch.randn_like(tensor))
    return spec, model


def images(size: int, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: Any, batch: torch.Tensor) -> torch.Tensor:
    return model(batch)


@pytest.mark.parametrize(("name", "decoder"), CASES)
def test_the_library_loads_the_folder_with_the_same_logits(name, decoder, tmp_path):
    import segmentation_models_pytorch as smp

    size = 64
    spec, model = built(name, decoder, size)
    p = Preprocessing(size, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation="bilinear", resize="squash")
    folder = save_merged_segmenter(model, tmp_path / "merged", spec=spec, **ABOUT, preprocessing=p)
    assert [file.name for file in tmp_path.iterdir()] == ["merged"], "nothing else is left"
    expected = logits(model, images(size, 3))
    assert expected.std() > 0.01, "a test that sees something"
    files = {file.name for file in folder.iterdir()}
    if decoder == "plain":
        assert files == {"model.pt2", "preprocessing.json"}
        found = logits(torch.export.load(folder / "model.pt2").module(), images(size, 3))
        assert logits(torch.export.load(folder / "model.pt2").module(), images(size, 1)).shape == (1, 3, size, size)
    else:
        assert files == {"config.json", "model.safetensors", "README.md", "preprocessing.json"}
        found = logits(smp.from_pretrained(str(folder)).eval(), images(size, 3))
        config = json.loads((folder / "config.json").read_text())
        assert config["encoder_name"] == f"tu-{name}"
        assert config["encoder_weights"] is None
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    about = json.loads((folder / "preprocessing.json").read_text())
    assert {key: about[key] for key in ABOUT} == json.loads(json.dumps(ABOUT))
    kept = {key: about[key] for key in about if key not in (*ABOUT, "multiple_of")}
    assert Preprocessing.from_dict(kept) == p
    assert about["multiple_of"] == model.stride


def test_dpt_on_patches_of_14_pixels(tmp_path):
    """Made by what a timm folder says of its model; smp could not build it again."""
    made = timm.create_model("test_vit", patch_size=14, img_size=56, num_classes=3)
    timm.models.save_for_hf(made, str(tmp_path / "source"))
    spec, model = built(f"local-dir:{tmp_path / 'source'}", "dpt", None)
    p = Preprocessing(56)
    folder = save_merged_segmenter(model, tmp_path / "merged", spec=spec, **ABOUT, preprocessing=p)
    assert {file.name for file in folder.iterdir()} == {"model.pt2", "preprocessing.json"}
    found = logits(torch.export.load(folder / "model.pt2").module(), images(56, 3))
    assert found.shape == (3, 3, 56, 56)
    torch.testing.assert_close(found, logits(model, images(56, 3)), rtol=0, atol=1e-4)


def test_a_size_that_was_padded(tmp_path):
    import segmentation_models_pytorch as smp

    spec, model = built("test_resnet", "unet", 50, drop_path=0.1)
    folder = save_merged_segmenter(model, tmp_path / "merged", spec=spec, **ABOUT, preprocessing=Preprocessing(50))
    about = json.loads((folder / "preprocessing.json").read_text())
    assert about["multiple_of"] == 32
    padded = F.pad(images(50), (0, 14, 0, 14))
    found = logits(smp.from_pretrained(str(folder)).eval(), padded)[..., :50, :50]
    torch.testing.assert_close(found, logits(model, images(50)), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "decoder"), [("test_vit", "plain"), ("test_convnext", "unet")])
def test_it_loads_without_this_package(name, decoder, python, tmp_path):
    spec, model = built(name, decoder, 32)
    save_merged_segmenter(model, tmp_path / "merged", spec=spec, **ABOUT, preprocessing=Preprocessing(32))
    batch = images(32)
    np.savez(tmp_path / "expected.npz", images=batch.numpy(), logits=logits(model, batch).numpy())
    call = loading_hint_segmenter(spec, tmp_path / "merged")
    code = f"""
import sys
sys.modules["snella"] = None  # importing it is an error
import numpy as np, torch
{"import segmentation_models_pytorch" if decoder == "unet" else ""}
model = {call}{".eval()" if decoder == "unet" else ""}
found = np.load("expected.npz")
with torch.no_grad():
    logits = model(torch.from_numpy(found["images"])).numpy()
print(abs(logits - found["logits"]).max())
"""
    out = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(out.stdout.splitlines()[-1]) < 1e-4


@pytest.mark.parametrize("resize", ["squash", "crop", "none"])
def test_transformers_loads_the_folder_and_prepares_images_as_the_run_did(resize, tmp_path):
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

    saved("Segformer", tmp_path / "source")
    spec, model = built(f"hf:{tmp_path / 'source'}", None, 48)
    p = Preprocessing(48, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation="bilinear", resize=resize)
    folder = save_merged_segmenter(model, tmp_path / "merged", spec=spec, **ABOUT, preprocessing=p)
    assert loading_hint_segmenter(spec, folder).startswith("transformers.AutoModelForSemanticSegmentation")
    loaded = AutoModelForSemanticSegmentation.from_pretrained(folder)
    with torch.no_grad():
        found = F.interpolate(loaded(images(48)).logits, (48, 48), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, logits(model, images(48)), rtol=0, atol=1e-4)
    assert loaded.config.id2label == dict(enumerate(ABOUT["classes"]))
    assert json.loads((folder / "preprocessing.json").read_text())["values"] == [0, 7, 255]

    image = Image.fromarray(np.linspace(0, 255, 90 * 130 * 3).reshape(90, 130, 3).astype(np.uint8))
    prepared = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"][0]
    ours = masked_eval_transform(p)({"image": image})["image"]
    torch.testing.assert_close(prepared, ours, rtol=0, atol=0.02)  # 2 grey levels: another resizing library


def test_other_logits_are_refused_and_nothing_is_left(tmp_path):
    spec, model = built("test_resnet", "unet", 32)
    model.net.decoder.blocks[0].conv1[1].eps = 1.0  # not in the weights, nor in smp's configuration
    with pytest.raises(UserError, match="logits that differ by"):
        save_merged_segmenter(model, tmp_path / "merged", spec=spec, **ABOUT, preprocessing=Preprocessing(32))
    del model.net.decoder.blocks[0].conv1[1]
    with pytest.raises(UserError, match="the merged test_resnet does not load"):
        save_merged_segmenter(model, tmp_path / "merged", spec=spec, **ABOUT, preprocessing=Preprocessing(32))
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_kept(tmp_path):
    spec, model = built("test_resnet", "unet", 32)
    settings = {"spec": spec, **ABOUT, "palette": None, "preprocessing": Preprocessing(32)}
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        save_merged_segmenter(model, tmp_path, **settings)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
    save_merged_segmenter(model, tmp_path, overwrite=True, **settings)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert json.loads((tmp_path / "preprocessing.json").read_text())["palette"] is None


@needs_onnx
@pytest.mark.parametrize(
    ("name", "decoder", "size"),
    [("test_vit", "plain", 32), pytest.param("test_convnext", "unet", 50, marks=pytest.mark.slow)],
)
def test_onnx_gives_the_same_logits_for_any_batch(name, decoder, size, tmp_path):
    import onnxruntime

    _, model = built(name, decoder, size)
    assert export_onnx(model, tmp_path / "model.onnx", image_size=size) < 1e-3
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for batch in (1, 5):
        (found,) = session.run(["logits"], {"images": images(size, batch).numpy()})
        np.testing.assert_allclose(np.asarray(found), logits(model, images(size, batch)).numpy(), atol=1e-3)
