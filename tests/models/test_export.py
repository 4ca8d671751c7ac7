"""Merged checkpoints load without this package; ONNX gives the same logits; nothing is half-written."""

import json
import subprocess
from typing import Any

import numpy as np
import pytest
import timm
import timm.data
import torch
from PIL import Image
from torch import nn
from torch.torch_version import TorchVersion

from snella.data.transforms.images import Preprocessing, eval_transform
from snella.errors import UserError
from snella.models import export
from snella.models.backbone import BackboneSpec, build_backbone, logits_of
from snella.models.export import export_onnx, loading_hint, save_merged
from support.onnx import needs_onnx

CLASSES = ("sound", "cracked", "$5 & more")


def built(name: str, size: int) -> tuple[BackboneSpec, Any]:
    """A backbone as a run would end with: every weight is its own, the head's too, and other statistics in norms."""
    spec = BackboneSpec(name, pretrained=False, checkpoint=None, image_size=size, num_classes=3)
    model: Any = build_backbone(spec).eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(0.05 * torch.rand_like(tensor))
    return spec, model


@pytest.fixture(scope="module")
def vit():
    return built("test_vit", 64)


@pytest.fixture(scope="module")
def hf_vit(tmp_path_factory):
    from transformers import ViTConfig, ViTForImageClassification

    folder = tmp_path_factory.mktemp("hf")
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    ViTForImageClassification(config).save_pretrained(folder)
    return built(f"hf:{folder}", 48)


def logits(model, size, batch=2):
    images = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return images, logits_of(model(images))


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_resnet", "test_efficientnet"])
def test_timm_loads_the_folder_with_the_same_logits(name, tmp_path):
    spec, model = built(name, 64)
    p = Preprocessing(64, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation="bilinear", resize="squash")
    folder = save_merged(model, tmp_path / "merged", spec=spec, classes=CLASSES, preprocessing=p)
    assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert [file.name for file in tmp_path.iterdir()] == ["merged"], "nothing else is left"

    loaded: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images, expected = logits(model, 64)
    assert expected.std() > 0.01, "a test that sees something"
    torch.testing.assert_close(loaded(images), expected, rtol=0, atol=1e-4)
    assert tuple(loaded.pretrained_cfg["label_names"]) == CLASSES
    data = timm.data.resolve_model_data_config(loaded)
    assert tuple(data["input_size"]) == (3, 64, 64)
    assert (tuple(data["mean"]), tuple(data["std"]), data["interpolation"]) == (p.mean, p.std, "bilinear")


def test_it_loads_without_this_package(vit, python, tmp_path):
    spec, model = vit
    save_merged(model, tmp_path / "merged", spec=spec, classes=CLASSES, preprocessing=Preprocessing(64))
    images, expected = logits(model, 64)
    np.savez(tmp_path / "expected.npz", images=images.numpy(), logits=expected.numpy())
    hint = loading_hint(spec, "merged")
    code = f"""
import sys
sys.modules["snella"] = None  # importing it is an error
import numpy as np, timm, torch
model = {hint}.eval()
found = np.load("expected.npz")
with torch.no_grad():
    logits = model(torch.from_numpy(found["images"])).numpy()
print(abs(logits - found["logits"]).max())
"""
    out = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(out.stdout) < 1e-4


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_timm_prepares_images_as_the_run_did(vit, tmp_path, resize):
    spec, model = vit
    p = Preprocessing(64, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), resize=resize)
    folder = save_merged(model, tmp_path / "merged", spec=spec, classes=CLASSES, preprocessing=p)
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
    transform: Any = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8))
    torch.testing.assert_close(transform(image), eval_transform(p)({"image": image})["image"])


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_transformers_loads_the_folder_with_the_same_logits(hf_vit, tmp_path, resize):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    spec, model = hf_vit
    p = Preprocessing(48, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), resize=resize)
    folder = save_merged(model, tmp_path / "merged", spec=spec, classes=CLASSES, preprocessing=p)
    loaded = AutoModelForImageClassification.from_pretrained(folder)
    images, expected = logits(model, 48)
    torch.testing.assert_close(loaded(images).logits, expected, rtol=0, atol=1e-4)
    assert loaded.config.id2label == dict(enumerate(CLASSES))
    assert loaded.config.label2id["cracked"] == 1

    smooth = np.linspace(0, 255, 90 * 130 * 3).reshape(90, 130, 3).astype(np.uint8)
    image = Image.fromarray(smooth)
    prepared = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"][0]
    ours = eval_transform(p)({"image": image})["image"]
    torch.testing.assert_close(prepared, ours, rtol=0, atol=0.02)  # 2 grey levels: another resizing library


@pytest.mark.parametrize(
    ("name", "architecture", "licence", "others"),
    [
        ("vit_small_focus", "vit_small_patch14_dinov2", "mit", "lvd142m"),
        ("efficientnet_lite0_imagenet", "tf_efficientnet_lite0", "apache-2.0", "rwightman"),
        ("mobilenetv2_imagenet", "mobilenetv2_100", "mit", "ra_in1k"),
    ],
)
def test_bundled_weights_are_not_called_timms(name, architecture, licence, others, tmp_path):
    spec, model = built(name, 28)
    folder = save_merged(model, tmp_path / "merged", spec=spec, classes=CLASSES, preprocessing=Preprocessing(28))
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == architecture
    assert config["pretrained_cfg"]["license"] == licence
    assert others not in json.dumps(config)


def test_other_logits_are_refused_and_nothing_is_left(tmp_path):
    spec, model = built("test_vit", 32)
    model.norm.eps = 1.0  # not in the weights, nor in timm's configuration
    with pytest.raises(UserError, match=r"logits that differ by"):
        save_merged(model, tmp_path / "merged", spec=spec, classes=CLASSES, preprocessing=Preprocessing(32))
    assert not list(tmp_path.iterdir())


def test_weights_that_timm_does_not_load_are_refused(tmp_path):
    spec, model = built("test_vit", 32)
    model.blocks = model.blocks[:1]
    with pytest.raises(UserError, match="timm does not load the merged test_vit"):
        save_merged(model, tmp_path / "merged", spec=spec, classes=CLASSES, preprocessing=Preprocessing(32))
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_kept(vit, tmp_path):
    spec, model = vit
    folder = tmp_path / "merged"
    folder.mkdir()
    mine = folder / "mine.txt"
    mine.write_text("mine")
    settings = {"spec": spec, "classes": CLASSES, "preprocessing": Preprocessing(64)}
    with pytest.raises(UserError, match="merged exists already"):
        save_merged(model, folder, **settings)
    with pytest.raises(UserError, match="exists already"):
        save_merged(model, mine, overwrite=True, **settings)
    assert [file.name for file in folder.iterdir()] == ["mine.txt"]

    save_merged(model, folder, overwrite=True, **settings)
    assert {file.name for file in folder.iterdir()} == {"config.json", "mine.txt", "model.safetensors"}
    assert mine.read_text() == "mine"


def test_a_place_that_cannot_be_written_is_named(vit, tmp_path):
    spec, model = vit
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/merged"):
        save_merged(model, tmp_path / "file" / "merged", spec=spec, classes=CLASSES, preprocessing=Preprocessing(64))


@needs_onnx
@pytest.mark.parametrize(
    "kind", ["vit", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("hf_vit", "convnet"))]
)
def test_onnx_gives_the_same_logits_for_any_batch(kind, request, tmp_path):
    import onnxruntime

    _, model = built("test_convnext", 48) if kind == "convnet" else request.getfixturevalue(kind)
    size = 64 if kind == "vit" else 48
    file = tmp_path / "model.onnx"
    difference = export_onnx(model, file, image_size=size)
    assert 0 <= difference < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(str(file))
    for batch in (1, 5):
        images, expected = logits(model, size, batch)
        (found,) = session.run(["logits"], {"images": images.numpy()})
        np.testing.assert_allclose(np.asarray(found), expected.numpy(), atol=1e-4)


@needs_onnx
def test_onnx_of_half_precision_is_fp32_and_leaves_the_model(tmp_path):
    import onnxruntime

    _, model = built("test_resnet", 32)
    model.train().bfloat16()
    export_onnx(model, tmp_path / "model.onnx", image_size=32)
    assert model.training
    assert next(model.parameters()).dtype == torch.bfloat16
    inputs = onnxruntime.InferenceSession(str(tmp_path / "model.onnx")).get_inputs()
    assert inputs[0].type == "tensor(float)"


class Shift(nn.Module):
    def forward(self, images):
        return images.mean((2, 3))


@needs_onnx
def test_onnx_that_differs_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "ONNX_TOLERANCE", -1.0)
    with pytest.raises(UserError, match="was not written"):
        export_onnx(Shift(), tmp_path / "model.onnx", image_size=8)
    assert not list(tmp_path.iterdir())


@needs_onnx
def test_an_onnx_file_is_kept_unless_told(tmp_path):
    import onnxruntime

    file = tmp_path / "model.onnx"
    file.write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        export_onnx(Shift(), file, image_size=8)
    assert file.read_text() == "mine"
    export_onnx(Shift(), file, image_size=8, overwrite=True)
    onnxruntime.InferenceSession(str(file))


@needs_onnx
@pytest.mark.parametrize(("version", "refused"), [("2.7.1+cu126", True), ("2.8.0", False), ("2.14.1+cpu", False)])
def test_an_old_pytorch_is_named_with_the_command(version, refused, monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    if refused:
        with pytest.raises(UserError, match=r"this is 2\.7\.1\+cu126; run: pip install 'torch>=2\.8'"):
            export.check_onnx()
    else:
        export.check_onnx()


@needs_onnx
def test_missing_packages_are_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(UserError, match=r"run: pip install onnxscript$"):
        export_onnx(Shift(), tmp_path / "model.onnx", image_size=8)
