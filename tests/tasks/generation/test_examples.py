"""What a generative model trains on: cached latents are the images' own, and are computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from rich.console import Console

from snella.data.cache import TensorCache
from snella.data.readers.captioned import CaptionedImages
from snella.data.transforms.generation import generation_eval_transform
from snella.data.transforms.images import Preprocessing
from snella.diffusion.pipeline import Frozen, frozen_parts
from snella.errors import UserError
from snella.tasks.generation.examples import CachedImages, WithPrior, cache_examples, drawn, prior_files
from support import tiny_pipelines as tiny

CPU = torch.device("cpu")
SQUARE = Preprocessing(16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic", resize="crop")
Count = Callable[[], int]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines")


@pytest.fixture(scope="module")
def sdxl(root: Path) -> Frozen:
    return frozen_parts(str(tiny.write_sdxl(root / "sdxl")))


@pytest.fixture(scope="module")
def dit(root: Path) -> Frozen:
    return frozen_parts(str(tiny.write_dit(root / "dit", classes=3)))


@pytest.fixture
def cache(tmp_path: Path) -> TensorCache:
    return TensorCache(tmp_path / "cache")


@pytest.fixture
def images(tmp_path: Path) -> CaptionedImages:
    """Landscape, portrait and square, the first two with the same caption."""
    paths = []
    for i, (width, height) in enumerate(((24, 18), (17, 30), (16, 16))):
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(pixels).save(paths[-1])
    return CaptionedImages(tuple(paths), ("a cat", "a cat", "red dog"), (0, 1, 2))


def cache_of(images: CaptionedImages, frozen: Frozen, cache: TensorCache, p: Preprocessing = SQUARE) -> CachedImages:
    return split_of(images, frozen, cache, p, mirrored=True)


def split_of(
    images: CaptionedImages, frozen: Frozen, cache: TensorCache, p: Preprocessing, *, mirrored: bool
) -> CachedImages:
    return cache_examples({"train": images}, {"train": mirrored}, frozen, p, cache, CPU, Console(quiet=True))["train"]


@pytest.fixture
def encoded(sdxl: Frozen, monkeypatch: pytest.MonkeyPatch) -> Count:
    """How often a VAE or a text encoder was called since the last time this was asked."""
    calls: list[str] = []
    kind: Any = type(sdxl.pipe)
    vae, text = type(sdxl.vae).encode, kind.encode_prompt
    monkeypatch.setattr(type(sdxl.vae), "encode", lambda *args, **named: calls.append("vae") or vae(*args, **named))
    monkeypatch.setattr(kind, "encode_prompt", lambda *args, **named: calls.append("text") or text(*args, **named))

    def count() -> int:
        found = len(calls)
        calls.clear()
        return found

    return count


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_cached_latents_are_those_of_the_image(
    resize: Any, images: CaptionedImages, sdxl: Frozen, cache: TensorCache
) -> None:
    p = replace(SQUARE, resize=resize)
    transform = generation_eval_transform(p)
    found = cache_of(images, sdxl, cache, p)
    assert len(found) == 3
    for i in range(3):
        picture: Any = images[i]["image"]
        plain, example = transform({"image": picture}), found[i]
        embeds = sdxl.encode([images.captions[i]], CPU)
        torch.testing.assert_close(example["moments"], sdxl.moments(plain["image"][None])[0])
        for name in ("original_size", "crop_top_left"):
            assert torch.equal(example[name], plain[name])
        for name in ("prompt_embeds", "pooled_prompt_embeds"):
            torch.testing.assert_close(example[name], embeds[name][0])
        assert example["label"] == images.labels[i]
        flipped = transform({"image": ImageOps.mirror(picture)})["image"]
        if resize == "squash" or i:  # the first one's centre lies between two columns
            torch.testing.assert_close(
                example["moments_mirrored"], sdxl.moments(flipped[None])[0], atol=0.05, rtol=0.05
            )
        mirrored = sdxl.moments(plain["image"].flip(-1)[None])[0]
        torch.testing.assert_close(example["moments_mirrored"], mirrored)


def test_a_class_conditional_model_has_no_text(images: CaptionedImages, dit: Frozen, cache: TensorCache) -> None:
    found = cache_of(images, dit, cache)
    assert found[1].keys() == {"moments", "moments_mirrored", "original_size", "crop_top_left", "label"}
    plain = split_of(images, dit, cache, SQUARE, mirrored=False)
    assert plain[1].keys() == found[1].keys() - {"moments_mirrored"}
    assert torch.equal(plain[1]["moments"], found[1]["moments"])


def test_a_second_time_nothing_is_encoded(
    images: CaptionedImages, sdxl: Frozen, cache: TensorCache, encoded: Count
) -> None:
    first = cache_of(images, sdxl, cache)
    assert encoded() == 3 * 2 + 2  # images and mirrored ones, and captions that differ
    second = cache_of(images, sdxl, cache)
    assert encoded() == 0
    assert all(torch.equal(first[i]["moments"], second[i]["moments"]) for i in range(3))


def test_keys_follow_what_the_latents_depend_on(
    images: CaptionedImages, sdxl: Frozen, cache: TensorCache, encoded: Count, root: Path, tmp_path: Path
) -> None:
    one = replace(images, paths=images.paths[:1], captions=("a cat",), labels=())
    cache_of(one, sdxl, cache)
    assert encoded() == 3
    moved = tmp_path / "moved" / "other name.png"
    moved.parent.mkdir()
    moved.write_bytes(Path(one.paths[0]).read_bytes())
    cache_of(replace(one, paths=(str(moved),)), sdxl, cache)
    cache_of(replace(one, labels=(4,)), sdxl, cache)
    assert encoded() == 0
    with Image.open(moved) as picture:
        picture.putpixel((0, 0), (1, 2, 3))
        picture.save(moved)
    cache_of(replace(one, paths=(str(moved),)), sdxl, cache)
    assert encoded() == 2
    cache_of(one, sdxl, cache, replace(SQUARE, image_size=32))
    assert encoded() == 2
    cache_of(one, sdxl, cache, replace(SQUARE, resize="squash"))
    assert encoded() == 2
    cache_of(replace(one, captions=("blue",)), sdxl, cache)
    assert encoded() == 1
    other = frozen_parts(str(root / "sdxl"))
    with torch.no_grad():
        next(other.vae.parameters())[0] += 0.01
    cache_of(one, other, cache)
    assert encoded() == 2  # the texts stay
    with torch.no_grad():
        next(other.encoders[1].parameters())[0] += 0.01
    cache_of(one, other, cache)
    assert encoded() == 1


def test_pipelines_that_share_a_vae_share_latents(
    images: CaptionedImages, sdxl: Frozen, cache: TensorCache, encoded: Count, tmp_path: Path
) -> None:
    same = frozen_parts(str(tiny.write_dit(tmp_path / "dit", classes=3)))
    same.pipe.register_modules(vae=sdxl.vae)
    cache_of(images, sdxl, cache)
    encoded()
    cache_of(images, same, cache)
    assert encoded() == 0


def test_a_file_that_is_lost_is_told(images: CaptionedImages, sdxl: Frozen, cache: TensorCache) -> None:
    found = cache_of(images, sdxl, cache)
    for file in cache.folder.rglob("*.safetensors"):
        file.unlink()
    with pytest.raises(UserError, match=r"lost a file.*--resume"):
        found[0]


def test_an_image_that_cannot_be_read_is_told(images: CaptionedImages, sdxl: Frozen, cache: TensorCache) -> None:
    Path(images.paths[1]).write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot be read any more"):
        cache_of(images, sdxl, cache)


def test_a_prior_stands_beside_each_example() -> None:
    few, many = [{"image": i} for i in range(2)], [{"image": 10 + i} for i in range(5)]
    longer, shorter = WithPrior(few, many), WithPrior(many, few)
    assert len(longer) == len(shorter) == 5
    pairs = [(longer[i]["image"], longer[i]["prior"]["image"]) for i in range(5)]
    assert pairs == [(0, 10), (1, 11), (0, 12), (1, 13), (0, 14)]
    assert [shorter[i]["prior"]["image"] for i in range(5)] == [0, 1, 0, 1, 0]
    assert "prior" not in few[0]


def test_drawn_takes_plain_or_mirrored() -> None:
    example = {"moments": torch.zeros(2), "moments_mirrored": torch.ones(2), "label": 3}
    transform = drawn(lambda given: pytest.fail("latents are not transformed"))
    found = [transform(example) for _ in range(200)]
    assert all(one.keys() == {"moments", "label"} for one in found)
    assert 70 < sum(one["moments"][0].item() for one in found) < 130
    assert example.keys() == {"moments", "moments_mirrored", "label"}  # not changed
    single = transform({"moments": torch.zeros(2), "label": 3})
    assert single.keys() == {"moments", "label"}


def test_drawn_transforms_images_and_chooses_for_the_prior_by_itself() -> None:
    def doubled(example: dict[str, Any]) -> dict[str, Any]:
        return {**example, "image": example["image"] * 2}

    prior = {"moments": 0, "moments_mirrored": 1}
    found = [drawn(doubled)({"image": 5, "prior": prior}) for _ in range(50)]
    assert all(one["image"] == 10 and one["prior"].keys() == {"moments"} for one in found)
    assert {one["prior"]["moments"] for one in found} == {0, 1}
    assert drawn(doubled)({"image": 5, "prior": {"image": 7}}) == {"image": 10, "prior": {"image": 14}}
    both = [drawn(doubled)({**prior, "prior": prior}) for _ in range(50)]
    assert {(one["moments"], one["prior"]["moments"]) for one in both} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_a_priors_files_are_the_first_ones(tmp_path: Path) -> None:
    folder = tmp_path / "prior"
    assert prior_files(folder, 3) == ()
    folder.mkdir()
    assert prior_files(folder, 3) == ()
    (folder / ".prior-0000.png.1-1.partial").touch()
    assert prior_files(folder, 3) == ()
    for i in range(5):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"prior-{i:04d}.png")
    assert [Path(file).name for file in prior_files(folder, 4)] == [f"prior-000{i}.png" for i in range(4)]
    assert len(prior_files(folder, 99)) == 5
