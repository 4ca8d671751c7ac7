from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.tv_tensors import Mask

from snella.data.masks.files import IGNORE
from snella.data.transforms.images import Augmentation, Preprocessing, eval_transform, train_transform
from snella.data.transforms.masked import masked_eval_transform, masked_train_transform, resize_mask
from snella.errors import UserError

COLORS = np.array([[0, 0, 0], [250, 0, 0], [0, 240, 0], [30, 60, 230], [255, 255, 255]], dtype=np.uint8)
ZEROS, ONES = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
SIZES = [(40, 40), (61, 35), (23, 50), (9, 14)]


def example(width: int, height: int, seed: int = 0) -> dict[str, Any]:
    """An image whose colours say its classes, in patches of 3 pixels."""
    coarse = np.random.default_rng(seed).integers(0, len(COLORS), (height // 3 + 1, width // 3 + 1))
    classes = coarse.repeat(3, 0).repeat(3, 1)[:height, :width].astype(np.int16)
    return {"image": Image.fromarray(COLORS[classes]), "mask": Mask(torch.from_numpy(classes))}


def classes_by_color(image: torch.Tensor) -> torch.Tensor:
    """The class whose colour is nearest, (h, w), and -1 where no colour is that."""
    reference = torch.from_numpy(COLORS).float()[..., None, None] / 255  # (K, 3, 1, 1)
    distance = (image[None] - reference).abs().amax(dim=1)  # (K, h, w)
    return torch.where(distance.amin(dim=0) < 1e-4, distance.argmin(dim=0), -1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resize", ["squash", "crop", "none"])
@pytest.mark.parametrize("name", ["none", "flip", "crop"])
def test_image_and_mask_stay_together(size: tuple[int, int], resize: str, name: str) -> None:
    p = Preprocessing(32, interpolation="nearest", resize=resize, mean=ZEROS, std=ONES)
    transform = pickle.loads(pickle.dumps(masked_train_transform(p, Augmentation(name, vertical_flip=0.5))))
    for seed in range(6):
        out = transform(example(*size, seed=seed))
        image, mask = out["image"], out["mask"]
        assert (image.shape, mask.shape) == ((3, 32, 32), (32, 32))
        assert (image.dtype, mask.dtype) == (torch.float32, torch.int64)
        assert type(image) is type(mask) is torch.Tensor
        inside = mask != IGNORE
        assert torch.equal(classes_by_color(image)[inside], mask[inside])
        assert (image[:, ~inside] == 0).all()
        assert inside.all() or (resize == "none" and name != "crop" and min(size) < 32)


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_with_the_models_interpolation_the_mask_lies_where_the_image_does(resize: str) -> None:
    """At a fifth of the size, a mask sampled at the pixels' corners lies 0.4 pixels aside."""
    y, x = np.mgrid[:320, :320]
    disc = (x - 100) ** 2 + (y - 150) ** 2 < 60**2
    source = {
        "image": Image.fromarray(disc.astype(np.uint8) * 255).convert("RGB"),
        "mask": Mask(torch.tensor(disc).short()),
    }
    out = masked_train_transform(Preprocessing(64, resize=resize, mean=ZEROS, std=ONES), Augmentation("none"))(source)
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    for axis in (rows, columns):
        centres = [(axis * weight).sum() / weight.sum() for weight in (out["image"][0], out["mask"].float())]
        assert abs(centres[0] - centres[1]) < 0.05


@pytest.mark.parametrize("size", SIZES)
def test_crop_keeps_proportions_and_none_keeps_pixels(size: tuple[int, int]) -> None:
    source = example(*size)
    width, height = size
    short = min(size)
    for resize, expected in (
        ("squash", (20, 20)),
        ("crop", (round(height * 20 / short), round(width * 20 / short))),
        ("none", (height, width)),
    ):
        out = masked_eval_transform(Preprocessing(20, resize=resize))(source)
        assert out["image"].shape == (3, *expected)
        assert torch.equal(out["mask"], torch.as_tensor(source["mask"]).long())
        assert list(masked_eval_transform(Preprocessing(20, resize=resize))({"image": source["image"]})) == ["image"]
    image = masked_eval_transform(Preprocessing(20, resize="none", mean=ZEROS, std=ONES))(source)["image"]
    assert torch.equal((image * 255).round().byte().permute(1, 2, 0), torch.from_numpy(np.array(source["image"])))


def test_padding_is_the_mean_colour_and_no_class() -> None:
    p = Preprocessing(32, resize="none")
    out = masked_train_transform(p, Augmentation("none"))(example(9, 14))
    plain = masked_eval_transform(p)(example(9, 14))
    assert torch.equal(out["image"][:, :14, :9], plain["image"])
    assert torch.equal(out["mask"][:14, :9], plain["mask"])
    assert (out["image"][:, 14:] == 0).all()
    assert (out["image"][:, :, 9:] == 0).all()
    assert (out["mask"] != IGNORE).sum() == 9 * 14


def test_crops_and_flips_are_drawn_anew() -> None:
    for name, resize in (("none", "none"), ("flip", "squash"), ("crop", "squash")):
        transform = masked_train_transform(Preprocessing(16, resize=resize), Augmentation(name))
        seen = {transform(example(61, 35))["mask"].numpy().tobytes() for _ in range(20)}
        assert len(seen) == 2 if name == "flip" else len(seen) > 2


@pytest.mark.parametrize(("area", "least"), [(None, 0.25), (0.9, 0.9)])
def test_the_random_piece_is_not_smaller_than_it_may(area: float | None, least: float) -> None:
    """The classes are numbered columns and rows: a piece's area is that of the bounding box it shows."""
    ramp = torch.arange(60, dtype=torch.int16)
    transform = masked_train_transform(Preprocessing(120), Augmentation("crop", min_crop_area=area))
    shares = []
    for seed in range(60):
        sides = []
        for mask in (ramp.repeat(60, 1), ramp.repeat(60, 1).T.contiguous()):
            torch.manual_seed(seed)
            found = transform({"image": Image.new("RGB", (60, 60)), "mask": Mask(mask)})["mask"]
            sides.append(int(found.max() - found.min()) + 1)
        shares.append(sides[0] * sides[1] / 3600)
    assert min(shares) > least - 0.05
    assert min(shares) < least + 0.2


def test_nearest_neighbours_bring_in_no_value() -> None:
    mask = torch.tensor([[0, 100], [-1, 32767]], dtype=torch.int16)
    for size in ([7, 5], [1, 1], [2, 2]):
        resized = resize_mask(mask, size)
        assert (list(resized.shape), resized.dtype) == (size, torch.int16)
        assert set(resized.flatten().tolist()) <= {0, 100, -1, 32767}
    assert torch.equal(resize_mask(mask, [2, 2]), mask)
    assert torch.equal(resize_mask(mask, [4, 4]), mask.repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_colours_change_in_the_image_alone() -> None:
    p = Preprocessing(40, resize="squash")
    out = masked_train_transform(p, Augmentation("none", color_jitter=0.5))(example(40, 40))
    plain = masked_eval_transform(p)(example(40, 40))
    assert torch.equal(out["mask"], plain["mask"])
    assert not torch.allclose(out["image"], plain["image"], atol=0.01)


def test_the_global_seed_decides() -> None:
    transform = masked_train_transform(Preprocessing(16, resize="none"), Augmentation("flip", color_jitter=0.2))
    outs = []
    for _ in range(2):
        torch.manual_seed(3)
        outs.append(transform(example(61, 35)))
    assert torch.equal(outs[0]["image"], outs[1]["image"])
    assert torch.equal(outs[0]["mask"], outs[1]["mask"])


def test_what_would_leave_the_mask_behind_is_refused() -> None:
    for augmentation in (Augmentation(auto_augment="rand-m9-mstd0.5-inc1"), Augmentation(random_erasing=0.1)):
        with pytest.raises(UserError, match="without their masks; leave it out"):
            masked_train_transform(Preprocessing(32), augmentation)


def test_single_images_need_one_size() -> None:
    for build in (eval_transform, lambda p: train_transform(p, Augmentation())):
        with pytest.raises(UserError, match="resize is 'none': images of different sizes make no batch"):
            build(Preprocessing(32, resize="none"))
