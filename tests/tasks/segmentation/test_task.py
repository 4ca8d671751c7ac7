"""Segmentation: the metrics against scikit-learn's, the losses against their definitions, and what is predicted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score, jaccard_score
from torch import Tensor, nn

from snella.data.masks.files import IGNORE, MaskCode, MaskedImages, read_mask
from snella.data.transforms.images import Preprocessing
from snella.data.transforms.masked import masked_eval_transform
from snella.errors import UserError
from snella.tasks.interface import Prediction
from snella.tasks.segmentation.learner import Segment
from snella.tasks.segmentation.task import SEGMENTATION

SIZE, K = 8, 4
CODE = MaskCode(tuple(range(K)))
PALETTE = tuple((40 * k, 0, 0) for k in range(K))


def task(classes: int = K, **options) -> Segment:
    preprocessing = Preprocessing(SIZE, mean=(0, 0, 0), std=(1, 1, 1), interpolation="nearest")
    code = MaskCode(tuple(range(classes)))
    names = [f"c{k}" for k in range(classes)]
    return Segment(names, preprocessing=preprocessing, code=code, palette=PALETTE[:classes], **options)


class Oracle(nn.Module):
    """Reads the class off the first channel, so that a test can choose what is predicted."""

    def __init__(self, classes: int = K) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(9.0))
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        return F.one_hot(images[:, 0].round().long(), self.classes).permute(0, 3, 1, 2).float() * self.scale


def image_of(mask: np.ndarray) -> Tensor:
    return torch.from_numpy(mask).float().expand(3, *mask.shape).contiguous()


masks = arrays(np.int64, (2, SIZE, SIZE), elements=st.integers(0, K - 1))
truths = arrays(np.int64, (2, SIZE, SIZE), elements=st.integers(-1, K - 1))


@settings(max_examples=40, deadline=None)
@given(predicted=masks, true=truths)
def test_metrics_are_scikit_learns(predicted, true):
    counted = true != IGNORE
    batch = {"image": torch.stack([image_of(mask) for mask in predicted]), "mask": torch.from_numpy(true)}
    if not counted.any():
        with pytest.raises(UserError, match="no pixel"):
            task().evaluate(Oracle(), [batch])
        return
    found = task().evaluate(Oracle(), [batch])
    y, p = true[counted], predicted[counted]
    there = sorted(set(y) | set(p))
    assert found.metrics["miou"] == pytest.approx(jaccard_score(y, p, labels=there, average="macro"))
    assert found.metrics["mdice"] == pytest.approx(f1_score(y, p, labels=there, average="macro"))
    assert found.metrics["pixel_accuracy"] == pytest.approx(accuracy_score(y, p))
    for k in there:
        assert found.table[k].iou == pytest.approx(jaccard_score(y, p, labels=[k], average="macro"))
        assert found.table[k].pixels == (y == k).sum()
    assert all(found.table[k].iou is None for k in set(range(K)) - set(there))
    assert set(SEGMENTATION.metrics) <= found.metrics.keys()


def test_of_two_classes_the_second_is_the_foreground():
    true = torch.tensor([[[0, 1], [1, 1]]])
    predicted = np.array([[0, 0], [1, 1]])
    small = Segment(["a", "b"], preprocessing=Preprocessing(2), code=CODE, palette=PALETTE[:2])
    found = small.evaluate(Oracle(2), [{"image": image_of(predicted)[None], "mask": true}])
    assert found.metrics["foreground_iou"] == pytest.approx(2 / 3)
    assert found.metrics["foreground_dice"] == pytest.approx(4 / 5)


def test_images_of_any_size_are_evaluated_at_the_size_of_their_masks():
    small, large = np.zeros((5, 11), dtype=np.int64), np.ones((30, 19), dtype=np.int64)
    batch = {
        "image": [image_of(small), image_of(large)],
        "mask": [torch.from_numpy(small), torch.from_numpy(large).repeat(2, 2)],
    }
    found = task().evaluate(Oracle(), [batch])
    assert found.confusion.diagonal().tolist() == [5 * 11, 60 * 38, 0, 0]
    assert found.metrics["miou"] == 1


def random_batch(seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, K, SIZE, SIZE, generator=generator)
    return logits, {
        "image": logits,
        "mask": torch.randint(-1, K, (2, SIZE, SIZE), generator=generator),
    }


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 0.5, 3.0])])
def test_cross_entropy_is_torchs_mean(weights, smoothing):
    logits, batch = random_batch()
    expected = F.cross_entropy(logits, batch["mask"], weight=weights, ignore_index=IGNORE, label_smoothing=smoothing)
    found = task(class_weights=weights, label_smoothing=smoothing).loss(nn.Identity(), batch)
    torch.testing.assert_close(found, expected)


def test_dice_is_one_less_the_overlap_and_adds_up_with_cross_entropy():
    logits, batch = random_batch()
    counted = (batch["mask"] != IGNORE)[:, None]
    shares = logits.softmax(dim=1) * counted
    true = F.one_hot(batch["mask"].clamp(min=0), K).permute(0, 3, 1, 2) * counted
    overlap = (shares * true).sum(dim=(0, 2, 3))
    dice = 1 - 2 * overlap / (shares.sum(dim=(0, 2, 3)) + true.sum(dim=(0, 2, 3)))
    found = {name: task(loss=name).loss(nn.Identity(), batch) for name in ("ce", "dice", "ce+dice")}
    torch.testing.assert_close(found["dice"], dice.mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["ce+dice"], found["ce"] + found["dice"])


@pytest.mark.parametrize("loss", ["ce", "dice", "ce+dice"])
def test_a_batch_without_a_pixel_that_counts_has_no_loss_and_no_gradient(loss):
    logits, batch = random_batch()
    logits.requires_grad_()
    value = task(loss=loss).loss(nn.Identity(), {"image": logits, "mask": torch.full_like(batch["mask"], IGNORE)})
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    assert not logits.grad.any()


def test_predictions_are_masks_of_the_images_own_size(tmp_path):
    mask = np.repeat(np.arange(K, dtype=np.uint8), 3)[None].repeat(7, axis=0)  # (7, 12)
    Image.fromarray(np.stack([mask * (255 // (K - 1))] * 3, axis=-1)).save(tmp_path / "a.png")
    third = 1 / (K - 1)
    preprocessing = Preprocessing(SIZE, mean=(0, 0, 0), std=(third, third, third), resize="none")
    segment = Segment([*"abcd"], preprocessing=preprocessing, code=CODE, palette=PALETTE)
    images = MaskedImages((str(tmp_path / "a.png"),))
    (found,) = segment.predict(Oracle(), images, masked_eval_transform(preprocessing), batch_size=4)
    assert isinstance(found, Prediction)
    assert found.row["areas"]["b"] == {"pixels": 21, "share": pytest.approx(1 / 4)}
    found.pictures["mask"].save(tmp_path / "mask.png")
    assert torch.equal(read_mask(str(tmp_path / "mask.png"), CODE).long(), torch.from_numpy(mask).long())
    assert found.pictures["overlay"].size == (12, 7)
    assert segment.csv_row({**found.row, "mask": "m.png"}).keys() == {
        *("image", "width", "height", "mask"),
        *(f"pixels:{name}" for name in "abcd"),
    }


@pytest.mark.parametrize(
    "code",
    [
        MaskCode((3, 70, 255), ignore=(9,)),
        MaskCode((300, 2, 65535)),
        MaskCode((0, 1, 2), colors=((1, 2, 3), (9, 9, 9), (250, 0, 1))),
        MaskCode((0, 255), binary=True),
    ],
)
def test_written_masks_are_read_back(code, tmp_path):
    from snella.data.masks.files import mask_picture

    classes = torch.randint(len(code.values), (9, 5), generator=torch.Generator().manual_seed(0))
    mask_picture(classes, code, PALETTE[: len(code.values)]).save(tmp_path / "m.png")
    assert torch.equal(read_mask(str(tmp_path / "m.png"), code).long(), classes)


def test_one_class_is_refused_and_few_are_spread():
    with pytest.raises(UserError, match="1 class"):
        Segment(["a"], preprocessing=Preprocessing(SIZE), code=CODE, palette=PALETTE[:1])
    images = MaskedImages(tuple(map(str, range(100))), tuple(map(str, range(100))), CODE)
    chosen = [int(path) for path in SEGMENTATION.subset(images, 8).paths]
    assert len(chosen) == 8
    assert max(np.diff(chosen)) <= math.ceil(100 / 8) + 1


@pytest.mark.parametrize("size", [(1, 1), (7, 12), (40, 33)])
def test_classes_of_an_enlarged_map_are_those_of_its_logits(size):
    from snella.tasks.segmentation.learner import _resized, enlarged_classes

    logits = torch.randn(5, 6, 6, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # with ties
    assert torch.equal(enlarged_classes(logits, size).long(), _resized(logits, size)[0].argmax(0))
