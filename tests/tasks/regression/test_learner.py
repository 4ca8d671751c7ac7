"""Regression metrics against scikit-learn, in the units of the data."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics as reference
from torch import nn

from snella.errors import UserError
from snella.tasks.regression.learner import Regress, Scale, scales_of
from snella.tasks.regression.scatter import scatter_figure


class Replay(nn.Module):
    def forward(self, images):  # (b, K, 1, 1) -> (b, K)
        return images.flatten(1)


def batches_of(outputs, targets, size=7):
    images = torch.as_tensor(outputs)[:, :, None, None]
    pairs = zip(images.split(size), torch.as_tensor(targets).split(size), strict=True)
    return [{"image": image, "target": target} for image, target in pairs]


SCALES = (Scale(100.0, 20.0), Scale(-1.0, 0.5))


def test_metrics_agree_with_scikit_learn_in_units(tmp_path):
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(30, 2)).astype(np.float32)
    found = outputs * [20, 0.5] + [100, -1]
    true = (found + rng.normal(size=(30, 2)) * [5, 0.2]).astype(np.float32)
    result = Regress(("weight", "depth"), SCALES).evaluate(Replay(), batches_of(outputs, true))
    for k, row in enumerate(result.table):
        pair = true[:, k], found[:, k]
        assert row.mae == pytest.approx(reference.mean_absolute_error(*pair), rel=1e-5)
        assert row.rmse == pytest.approx(reference.mean_squared_error(*pair) ** 0.5, rel=1e-5)
        assert row.r2 == pytest.approx(reference.r2_score(*pair), rel=1e-5)
        assert row.kappa is None
    standard = (true - [100, -1]) / [20, 0.5]
    assert result.metrics["standardised_mae"] == pytest.approx(np.abs(standard - outputs).mean(), rel=1e-5)
    assert result.metrics["mae"] == pytest.approx(np.mean([row.mae for row in result.table]))
    assert scatter_figure(result.predicted, result.true, ("a", "$b"), tmp_path / "s.png").stat().st_size > 1000


def test_levels_are_compared_with_weighted_kappa():
    rng = np.random.default_rng(1)
    levels = (0.0, 1 / 3, 2 / 3, 1.0)
    true = rng.integers(4, size=50)
    told = np.clip(true + rng.integers(-1, 2, size=50), 0, 3)
    near = told / 3 + rng.uniform(-0.15, 0.15, size=50)  # the nearest level is the one that is told
    learner = Regress(("level",), (Scale(0.0, 1.0, levels),))
    outputs, targets = (torch.tensor(x, dtype=torch.float32)[:, None] for x in (near, true / 3))
    (row,) = learner.evaluate(Replay(), batches_of(outputs, targets)).table
    assert row.kappa == pytest.approx(reference.cohen_kappa_score(true, told, weights="linear"), rel=1e-5)
    assert row.mae_levels == pytest.approx(np.abs(true - told).mean())


def test_one_image_or_one_value_has_metrics_too():
    learner = Regress(("a",), (Scale(0.0, 1.0),))
    (row,) = learner.evaluate(Replay(), batches_of(torch.tensor([[2.0]]), torch.tensor([[1.5]]))).table
    assert (row.mae, row.r2) == (0.5, 0.0)
    same = learner.evaluate(Replay(), batches_of(torch.ones(4, 1), torch.ones(4, 1)))
    assert same.table[0].r2 == 1.0


def test_loss_is_smooth_l1_of_standardised_values():
    outputs, targets = torch.randn(5, 2), torch.randn(5, 2) * 30
    (batch,) = batches_of(outputs, targets)
    standard = (targets - torch.tensor([100.0, -1.0])) / torch.tensor([20.0, 0.5])
    found = Regress(("a", "b"), SCALES).loss(Replay(), batch)
    torch.testing.assert_close(found, F.smooth_l1_loss(outputs, standard))


def test_scales_and_levels_of_train():
    values = torch.tensor([[0.0, 1.5], [1.0, 2.5], [0.0, 9.25], [1.0, 4.0], [0.0, 3.0], [1.0, 7.0]])
    levels, free = scales_of(("a", "b"), values)
    assert (levels.mean, levels.std, levels.levels) == (0.5, 0.5, (0.0, 1.0))
    assert free.levels == ()
    assert free.std == pytest.approx(values[:, 1].double().numpy().std())
    with pytest.raises(UserError, match="a is 2 in all training images"):
        scales_of(("a",), torch.full((5, 1), 2.0))
    with pytest.raises(UserError, match="subtract a constant"):
        scales_of(("a",), torch.tensor([[1.7e9], [1.7e9 + 256]]))
