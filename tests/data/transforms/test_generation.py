from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop

from snella.data.transforms.generation import generation_eval_transform, generation_train_transform
from snella.data.transforms.images import Augmentation, Preprocessing
from snella.errors import UserError

HALF = (0.5, 0.5, 0.5)  # mean and standard deviation
SIZES = [(40, 40), (61, 35), (23, 50), (9, 14), (200, 7)]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def tensor(image: Image.Image) -> torch.Tensor:
    """8-bit RGB to -1..1, (3, h, w)."""
    return torch.from_numpy(np.asarray(image).astype(np.float32).transpose(2, 0, 1)) / 127.5 - 1


def short_side_to(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    if width <= height:
        return image.resize((size, size * height // width), Image.Resampling.BICUBIC)
    return image.resize((size * width // height, size), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", SIZES)
def test_squash_is_pillows_resize_and_cuts_nothing(size: tuple[int, int]) -> None:
    image = picture(*size)
    out = generation_eval_transform(Preprocessing(24, resize="squash", mean=HALF, std=HALF))({"image": image})
    assert out["image"].dtype == torch.float32
    assert torch.allclose(out["image"], tensor(image.resize((24, 24), Image.Resampling.BICUBIC)), atol=1e-6)
    assert out["original_size"].tolist() == [size[1], size[0]]
    assert out["crop_top_left"].tolist() == [0, 0]


@pytest.mark.parametrize("name", ["squash", "crop"])
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_the_named_interpolation_is_used(name: str, interpolation: str) -> None:
    image = picture(64, 64)
    p = Preprocessing(16, resize=name, interpolation=interpolation, mean=HALF, std=HALF)
    expected = image.resize((16, 16), Image.Resampling[interpolation.upper()])
    assert torch.allclose(generation_eval_transform(p)({"image": image})["image"], tensor(expected), atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_crop_takes_the_centre_of_the_resized_image(size: tuple[int, int]) -> None:
    image = picture(*size)
    p = Preprocessing(24, resize="crop", mean=HALF, std=HALF)
    resized = short_side_to(image, 24)
    assert min(resized.size) == 24
    for transform in (generation_eval_transform(p), generation_train_transform(p, Augmentation("none"))):
        out = transform({"image": image})
        assert torch.allclose(out["image"], tensor(CenterCrop([24, 24])(resized)), atol=1e-6)
        assert out["original_size"].tolist() == [size[1], size[0]]
        top, left = out["crop_top_left"].tolist()
        assert (top, left) == (round((resized.height - 24) / 2), round((resized.width - 24) / 2))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["flip", "crop"])
@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_train_takes_a_square_at_the_place_it_says(size: tuple[int, int], name: str, resize: str) -> None:
    image = picture(*size)
    p = Preprocessing(24, resize=resize, mean=HALF, std=HALF)
    transform = pickle.loads(pickle.dumps(generation_train_transform(p, Augmentation(name))))
    resized = short_side_to(image, 24) if resize == "crop" else image.resize((24, 24), Image.Resampling.BICUBIC)
    turned = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    corners, flips = set(), 0
    for _ in range(40):
        out = transform({"image": image})
        top, left = out["crop_top_left"].tolist()
        corners.add((top, left))
        box = (left, top, left + 24, top + 24)
        plain, flipped = (torch.allclose(out["image"], tensor(i.crop(box)), atol=1e-6) for i in (resized, turned))
        assert plain != flipped
        flips += flipped
        assert 0 <= top <= resized.height - 24
        assert 0 <= left <= resized.width - 24
    assert 8 <= flips <= 32  # of 40; outside once in 10,000
    if name == "crop" and resized.size != (24, 24):
        assert len(corners) > 3
    else:
        assert corners == {(round((resized.height - 24) / 2), round((resized.width - 24) / 2))}


def test_a_random_crop_reaches_both_ends() -> None:
    transform = generation_train_transform(Preprocessing(8, resize="crop", mean=HALF, std=HALF), Augmentation("crop"))
    lefts = {int(transform({"image": picture(10, 8)})["crop_top_left"][1]) for _ in range(60)}
    assert lefts == {0, 1, 2}


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.sampled_from(["none", "flip", "crop"]))
def test_any_size_gives_the_square_and_a_crop_inside(width: int, height: int, side: int, name: str) -> None:
    p = Preprocessing(side, resize="crop", mean=HALF, std=HALF)
    out = generation_train_transform(p, Augmentation(name))({"image": picture(width, height)})
    assert out["image"].shape == (3, side, side)
    assert out["original_size"].tolist() == [height, width]
    top, left = out["crop_top_left"].tolist()
    assert top == 0 or height > width
    assert left == 0 or width > height


def test_other_values_pass_through_untouched() -> None:
    example: dict[str, Any] = {"image": picture(30, 20), "caption": "a cat", "label": 3, "extra": torch.rand(3, 9, 9)}
    before = example["extra"].clone()
    p = Preprocessing(16, resize="crop", mean=HALF, std=HALF)
    out = generation_train_transform(p, Augmentation("crop", vertical_flip=1.0, color_jitter=0.5))(example)
    assert (out["caption"], out["label"]) == ("a cat", 3)
    assert torch.equal(out["extra"], before)
    assert type(out["image"]) is torch.Tensor
    assert {out["original_size"].dtype, out["crop_top_left"].dtype} == {torch.int64}
    assert example["image"].size == (30, 20)


def test_upside_down_and_colours() -> None:
    image = picture(24, 24)
    p = Preprocessing(24, mean=HALF, std=HALF)
    turned = generation_train_transform(p, Augmentation("none", vertical_flip=1.0))({"image": image})["image"]
    assert torch.allclose(turned, tensor(image).flip(1), atol=1e-6)
    changed = generation_train_transform(p, Augmentation("none", color_jitter=0.5))({"image": image})["image"]
    assert not torch.allclose(changed, tensor(image), atol=0.01)


def test_the_same_seed_draws_the_same() -> None:
    transform = generation_train_transform(
        Preprocessing(8, mean=HALF, std=HALF), Augmentation("crop", color_jitter=0.2)
    )
    images = []
    for _ in range(2):
        torch.manual_seed(5)
        images.append(torch.stack([transform({"image": picture(20, 9)})["image"] for _ in range(5)]))
    assert torch.equal(*images)


@pytest.mark.parametrize(
    ("resize", "options", "said"),
    [
        ("none", {}, "resize is 'none'"),
        ("crop", {"auto_augment": "original"}, "auto_augment"),
        ("crop", {"random_erasing": 0.5}, "random_erasing"),
        ("crop", {"min_crop_area": 0.5}, "min_crop_area"),
    ],
)
def test_what_makes_no_training_image_is_refused(resize: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        generation_train_transform(Preprocessing(8, resize=resize), Augmentation(**options))
    assert "\n" not in str(caught.value)


def test_evaluation_refuses_pixels_as_they_are() -> None:
    with pytest.raises(UserError, match="squash or crop"):
        generation_eval_transform(Preprocessing(8, resize="none"))
