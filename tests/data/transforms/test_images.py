from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torchvision.transforms import Compose
from torchvision.tv_tensors import Mask

from snella.data.transforms.images import Augmentation, Preprocessing, eval_transform, train_transform
from snella.errors import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def photo(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(64, 64), (90, 60), (50, 130)])
@pytest.mark.parametrize("image_size", [32, 112])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_eval_crop_is_timms(size: tuple[int, int], image_size: int, interpolation: str) -> None:
    p = Preprocessing(image_size, MEAN, STD, interpolation, resize="crop")
    reference = create_transform(image_size, interpolation=interpolation, mean=MEAN, std=STD, crop_pct=224 / 256)
    ours = eval_transform(p)({"image": photo(*size), "label": 1})
    assert isinstance(reference, Compose)
    assert torch.allclose(ours["image"], torch.as_tensor(reference(photo(*size))), atol=1e-6)


@pytest.mark.parametrize("size", [(64, 64), (90, 60), (50, 130)])
def test_eval_squash_is_a_direct_resize(size: tuple[int, int]) -> None:
    p = Preprocessing(48, MEAN, STD, resize="squash")
    resized = np.asarray(photo(*size).resize((48, 48), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    reference = (resized - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    ours = eval_transform(p)({"image": photo(*size)})["image"]
    assert ours.dtype == torch.float32
    assert type(ours) is torch.Tensor
    np.testing.assert_allclose(ours.numpy(), reference.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_no_augmentation_is_evaluation(resize: str) -> None:
    p = Preprocessing(32, resize=resize)
    example = {"image": photo(60, 50), "label": 4}
    trained = train_transform(p, Augmentation("none"))(example)
    assert torch.equal(trained["image"], eval_transform(p)(example)["image"])
    assert trained["label"] == 4


def test_flip_gives_the_image_or_its_mirror() -> None:
    p = Preprocessing(32, resize="squash")
    example = {"image": photo(60, 50)}
    plain = eval_transform(p)(example)["image"]
    transform = train_transform(p, Augmentation("flip"))
    seen = set()
    for _ in range(30):
        image = transform(example)["image"]
        flipped = torch.allclose(image, plain.flip(-1), atol=1e-6)
        assert flipped or torch.equal(image, plain)
        seen.add(flipped)
    assert seen == {True, False}


def test_vertical_flip() -> None:
    p = Preprocessing(32, resize="squash")
    example = {"image": photo(60, 50)}
    plain = eval_transform(p)(example)["image"]
    turned = train_transform(p, Augmentation("none", vertical_flip=1.0))(example)["image"]
    assert torch.allclose(turned, plain.flip(-2), atol=1e-6)


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(),
        Augmentation(auto_augment="rand-m9-mstd0.5-inc1"),
        Augmentation(auto_augment="augmix-m3-w3"),
        Augmentation(auto_augment="original", color_jitter=0.4),
        Augmentation(color_jitter=0.4, random_erasing=1.0, min_crop_area=0.5),
    ],
)
def test_augmented_images_have_the_shape_and_differ(augmentation: Augmentation) -> None:
    transform = pickle.loads(pickle.dumps(train_transform(Preprocessing(32), augmentation)))
    example = {"image": photo(80, 50), "label": 2}
    first, second = transform(example), transform(example)
    assert first["image"].shape == (3, 32, 32)
    assert first["image"].isfinite().all()
    assert first["label"] == 2
    assert not torch.equal(first["image"], second["image"])


def test_random_erasing_blanks_to_the_mean() -> None:
    transform = train_transform(Preprocessing(32), Augmentation("none", random_erasing=1.0))
    assert (transform({"image": photo(80, 50)})["image"] == 0).all(dim=0).any()


def test_other_keys_of_an_example_go_along() -> None:
    """A mask takes the image's geometry; a text stays as it is."""
    image = Image.new("RGB", (64, 64))
    image.paste("white", (0, 0, 32, 64))
    mask = Mask((np.asarray(image)[..., 0] > 0).astype(np.int64))
    transform = train_transform(Preprocessing(32), Augmentation("crop", min_crop_area=0.3))
    for _ in range(5):
        example = transform({"image": image, "mask": mask, "text": "left"})
        assert example["text"] == "left"
        assert example["mask"].shape == (32, 32)
        assert example["mask"].dtype == torch.int64
        agree = (example["image"][0] > 0) == (example["mask"] == 1)
        assert agree.float().mean() > 0.95


def test_preprocessing_survives_json() -> None:
    p = Preprocessing(98, MEAN, STD, "bilinear", "squash")
    assert Preprocessing.from_dict(json.loads(json.dumps(p.to_dict()))) == p
    with pytest.raises(UserError, match="preprocessing has"):
        Preprocessing.from_dict({**p.to_dict(), "colour": 1})


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Preprocessing(0), "image_size is 0"),
        (lambda: Preprocessing(32, std=(0.0, 1.0, 1.0)), "std above 0"),
        (lambda: Preprocessing(32, interpolation="cubic"), "interpolation is 'cubic'"),
        (lambda: Preprocessing(32, resize="pad"), "resize is 'pad'"),
        (lambda: Augmentation("crops"), "augmentation is 'crops'"),
        (lambda: Augmentation(vertical_flip=2), "vertical_flip is 2"),
        (lambda: Augmentation(min_crop_area=0), "min_crop_area is 0"),
        (lambda: Augmentation(color_jitter=-1), "color_jitter is -1"),
        (lambda: Augmentation(auto_augment="strong"), "auto_augment is 'strong'"),
        (lambda: Augmentation(auto_augment="rand-x9"), "auto_augment is 'rand-x9'"),
    ],
)
def test_values_out_of_range_are_refused(build, said: str) -> None:
    with pytest.raises(UserError) as caught:
        build()
    assert said in str(caught.value)
    assert "use" in str(caught.value) or "must" in str(caught.value)
