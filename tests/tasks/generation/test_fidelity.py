"""Distances and similarities of sets of images, against their formulas, and where the features come from."""

from __future__ import annotations

import os
import socket
from urllib.error import URLError

import numpy as np
import pytest
import timm
import timm.models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.models import VisionTransformer
from torchvision.transforms.v2.functional import to_pil_image

from snella.data.transforms.images import Preprocessing, eval_transform
from snella.errors import UserError
from snella.tasks.generation import fidelity as module
from snella.tasks.generation.fidelity import check_features, compare, feature_model, features_of, fidelity


def features(count: int, dimensions: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dimensions, generator=generator, dtype=torch.float64) + shift


def mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate with pairs as loops, kernel (<a, b> / d + 1)^3; torchmetrics' cross term has all pairs."""
    kernel = lambda a, b: (a @ b / len(a) + 1) ** 3  # noqa: E731
    within = [np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)]
    return sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y])


# formulas


@settings(max_examples=10)
@given(count=st.integers(2, 12), dimensions=st.integers(1, 6), seed=st.integers(0, 99))
def test_kid_is_the_mmd_of_the_polynomial_kernel(count, dimensions, seed):
    x, y = features(count, dimensions, seed), features(count, dimensions, seed + 100, 0.5)
    found = compare(x, y, "x")
    assert found.kid == pytest.approx(mmd2(x.numpy(), y.numpy()), abs=1e-9)
    assert found.kid_std == 0


def test_kid_of_subsets_comes_near_that_of_the_whole_and_spreads():
    x, y = features(40, 4, 0), features(200, 4, 1, 0.5)
    found = compare(x, y, "x")
    assert found.kid_std > 0
    assert found.kid == pytest.approx(mmd2(x.numpy(), y.numpy()), abs=3 * found.kid_std / 10)


def test_fid_is_the_frechet_distance_of_two_gaussians():
    from scipy.linalg import sqrtm

    x, y = features(50, 5, 0), 2 * features(60, 5, 1, 0.5)
    a, b = x.numpy(), y.numpy()
    root = np.real(np.asarray(sqrtm(np.cov(a.T) @ np.cov(b.T))))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert compare(x, y, "x").fid == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("count", "other", "has"), [(7, 9, False), (9, 7, False), (8, 8, True)])
def test_fid_needs_as_many_images_as_features(count, other, has):
    assert (compare(features(count, 8, 0), features(other, 8, 1), "x").fid is not None) is has


def test_similarities_are_means_of_cosines(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 2)
    x, y = features(5, 6, 0), features(7, 6, 1)
    cosines = torch.nn.functional.cosine_similarity(x[:, None], y[None], dim=2)
    found = compare(x, y, "x")
    assert found.similarity == pytest.approx(float(cosines.mean()))
    assert found.nearest == pytest.approx(float(cosines.max(dim=1).values.mean()))
    assert compare(x, x.flip(0) * 3, "x").nearest == pytest.approx(1)


def test_the_same_at_every_call_whatever_was_drawn_before():
    x, y = features(10, 4, 0), features(30, 4, 1)
    first = compare(x, y, "x", seed=3)
    state = torch.get_rng_state()
    assert compare(x, y, "x", seed=3) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert compare(x, y, "x", seed=4).kid != first.kid


@pytest.mark.parametrize(("count", "other", "what"), [(1, 5, "2 or more generated"), (5, 0, "2 or more reference")])
def test_too_few_images_are_refused(count, other, what):
    with pytest.raises(UserError, match=what):
        compare(features(count, 3, 0), features(other, 3, 1), "x")


# images


def textures(count: int, period: int, seed: int) -> torch.Tensor:
    """Stripes of random phase and colour, uint8 (count, 3, 40, 48)."""
    generator = torch.Generator().manual_seed(seed)
    phase = torch.rand(count, 1, 1, 1, generator=generator) * period
    colour = 60 + 100 * torch.rand(count, 3, 1, 1, generator=generator)
    stripes = torch.sin(2 * torch.pi * (torch.arange(48.0) + phase) / period)
    return (colour + 50 * stripes).expand(count, 3, 40, 48).to(torch.uint8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    """A miniature ViT with drawn weights and a head of 5 classes, as a name that a backbone may have."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(1)
    model = timm.create_model(
        "test_vit", num_classes=5, img_size=64, pretrained_cfg_overlay={"input_size": (3, 64, 64)}
    )
    timm.models.save_for_hf(model, folder, model_args={"img_size": 64}, safe_serialization=True)
    return f"local-dir:{folder}"


def test_one_texture_is_nearer_to_itself_than_to_another(saved):
    stripes, more, wide = textures(24, 6, 0), textures(24, 6, 1), textures(24, 24, 2)
    same = fidelity(more.split(10), stripes.split(7), saved, device="cpu")
    other = fidelity(wide.split(10), stripes.split(7), saved, device="cpu")
    assert (same.generated, same.references, same.features) == (24, 24, saved)
    assert other.kid > 5 * abs(same.kid)
    assert other.nearest < same.nearest
    whole = fidelity([stripes], [stripes], saved, device="cpu")
    assert whole.nearest == pytest.approx(1)
    assert whole.fid is None


def test_features_are_what_the_head_takes_of_images_squashed_as_pil_squashes_them(saved):
    images = textures(3, 9, 0)
    model = timm.create_model(saved, pretrained=True).eval()
    assert isinstance(model, VisionTransformer)
    transform = eval_transform(Preprocessing(64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", resize="squash"))
    with torch.no_grad():
        inputs = torch.stack([transform({"image": to_pil_image(image)})["image"] for image in images])
        expected = model.forward_head(model.forward_features(inputs), pre_logits=True)
    found = features_of(images.split(2), feature_model(saved, "cpu"))
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=0.02)  # resizing rounds to another grey at times
    assert found.shape == (3, model.num_features)


def test_the_features_of_transformers_are_those_before_its_classifier(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=5)
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    images = textures(2, 9, 0)
    found = feature_model(f"hf:{tmp_path}", "cpu")(images)
    transform = eval_transform(Preprocessing(32, resize="squash"))
    inputs = torch.stack([transform({"image": to_pil_image(image)})["image"] for image in images])
    expected = model.vit(inputs).last_hidden_state[:, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


def test_building_leaves_the_generator_as_it_was(saved):
    state = torch.get_rng_state()
    feature_model(saved, "cpu")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("vit_base_patch32_clip_224.openai", 512),
        ("vit_base_patch32_clip_224.laion2b_ft_in12k_in1k", 0),
        ("vit_small_patch16_224.dino", 0),
        ("hf:openai/clip-vit-base-patch32", 0),
    ],
)
def test_clips_projection_is_kept_and_heads_of_classes_are_not(name, classes):
    assert module._spec(name).num_classes == classes


# what cannot be had


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("inception", r"pip install 'snella\[fidelity\]', or name a backbone, such as vit_small_focus"),
        ("incepton", "incepton.* is unknown to timm"),
        ("vit_giant_patch14_224", "no pre-trained weights .*; choose other features"),
        ("hf:/no/such/folder", "neither a folder nor a name on the hub"),
    ],
)
def test_features_that_cannot_be_had_are_refused_before_anything_is_built(name, message, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    monkeypatch.setattr(module, "build_backbone", lambda _: pytest.fail("built"))
    for refused in (lambda: check_features(name), lambda: feature_model(name, "cpu")):
        with pytest.raises(UserError, match=message) as error:
            refused()
        assert "\n" not in str(error.value)


def test_no_hub_no_features_and_training_has_no_say_in_it(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("snella.models.hub.try_to_load_from_cache", lambda *_, **__: None)
    with pytest.raises(UserError, match=r"cannot be downloaded .*; choose other features") as error:
        feature_model("vit_small_patch16_224.dino", "cpu")
    assert "--" not in str(error.value)


@pytest.mark.parametrize("problem", [URLError("no network"), RuntimeError("invalid hash value")])
def test_no_download_no_inception(problem, monkeypatch, tmp_path):
    def download(url, file, *, hash_prefix, progress):
        assert hash_prefix == "6726825d"
        raise problem

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(UserError, match=r"put https://.*weights-6726825d\.pth at .*, or name a backbone"):
        module._downloaded("https://example.org/weights-6726825d.pth")


def test_inception_reads_the_file_in_torchs_cache(monkeypatch, tmp_path):
    inception = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / os.path.basename(inception.URL_INCEPTION_V3)
    file.parent.mkdir()
    torch.save({}, file)
    with monkeypatch.context() as patched:
        patched.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = inception.FeatureExtractorInceptionV3("drawn", ["2048"], feature_extractor_weights_path=str(file))
    torch.save(network.state_dict(), file)
    images = textures(2, 9, 0)
    found = feature_model("inception", "cpu")(images)
    assert found.shape == (2, 2048)
    torch.testing.assert_close(found, network(images)[0])


def test_an_image_of_any_size_is_taken(saved):
    model = feature_model(saved, "cpu")
    pixels = np.asarray(Image.new("RGB", (200, 30), (10, 90, 200))).transpose(2, 0, 1)
    large, small = torch.from_numpy(pixels.copy())[None], torch.from_numpy(pixels[:, :8, :8].copy())[None]
    torch.testing.assert_close(model(large), model(small), rtol=0, atol=1e-4)  # one colour whatever the size
