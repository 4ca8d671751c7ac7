"""Multi-label metrics and thresholds against scikit-learn, and probabilities that are those of the data."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torch import nn

from snella.tasks.multilabel.label_rows import best_threshold, labels_figure
from snella.tasks.multilabel.learner import Multilabel, positive_weights


class Replay(nn.Module):
    def forward(self, images):  # (b, K, 1, 1) -> (b, K)
        return images.flatten(1)


def batches_of(logits, targets, size=7):
    images = torch.as_tensor(logits)[:, :, None, None]
    pairs = zip(images.split(size), torch.as_tensor(targets).float().split(size), strict=True)
    return [{"image": image, "target": target} for image, target in pairs]


@pytest.mark.parametrize("seed", range(4))
def test_metrics_agree_with_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    logits, targets = rng.normal(size=(40, 5)).astype(np.float32), rng.integers(2, size=(40, 5))
    targets[:, 4] = 0  # nobody has the last label
    thresholds = [0.2, 0.4, 0.5, 0.6, 0.9]
    names = [f"l{k}" for k in range(5)]
    found = Multilabel(names, thresholds=thresholds).evaluate(Replay(), batches_of(logits, targets))
    p = torch.from_numpy(logits).double().sigmoid().numpy()
    told, there = p >= np.array(thresholds), [0, 1, 2, 3]
    assert found.metrics == pytest.approx(
        {
            "map": reference.average_precision_score(targets[:, there], p[:, there], average="macro"),
            "f1_micro": reference.f1_score(targets, told, average="micro"),
            "f1_macro": reference.f1_score(targets[:, there], told[:, there], average="macro"),
            "loss": np.mean([reference.log_loss(targets[:, k], p[:, k], labels=[0, 1]) for k in range(5)]),
        },
        rel=1e-5,
    )
    rates: Any = reference.precision_recall_fscore_support(targets[:, there], told[:, there])
    precision, recall, f1, support = rates
    for k, row in enumerate(found.table[:4]):
        assert (row.precision, row.recall, row.f1) == pytest.approx((precision[k], recall[k], f1[k]))
        assert row.count == support[k]
    assert found.table[4].average_precision is None


@pytest.mark.parametrize("seed", range(4))
def test_the_threshold_has_the_best_f1_of_all(seed):
    rng = np.random.default_rng(seed)
    p, true = rng.random(30).round(1), rng.integers(2, size=30)  # many are equal
    best = best_threshold(torch.from_numpy(p), torch.from_numpy(true))
    scores = [reference.f1_score(true, p >= t) for t in np.linspace(0, 1, 401)]
    assert reference.f1_score(true, p >= best) == pytest.approx(max(scores))


def test_thresholds_without_a_choice():
    assert best_threshold(torch.tensor([0.9, 0.1]), torch.tensor([0, 0])) == 0.5
    assert best_threshold(torch.tensor([0.9, 0.7]), torch.tensor([1, 1])) == pytest.approx(0.35)
    assert best_threshold(torch.tensor([0.9, 0.1]), torch.tensor([1, 0])) == 0.5


def test_weights_are_bounded_and_probabilities_are_those_of_the_data():
    """A model that knows nothing but the weighted loss tells the share of images that have each label."""
    torch.manual_seed(0)
    targets = torch.zeros(200, 3)
    targets[:20, 0] = targets[:100, 1] = targets[:2, 2] = 1
    weights = positive_weights(targets)
    assert weights == pytest.approx([9.0, 1.0, 10.0])  # 198 / 2 is above the bound
    learner = Multilabel(("a", "b", "c"), positive_weights=weights)
    bias = nn.Parameter(torch.zeros(3))

    class Constant(nn.Module):
        def forward(self, images):
            return bias.expand(len(images), 3)

    optimiser = torch.optim.LBFGS([bias], max_iter=100)

    def step():
        optimiser.zero_grad()
        loss = learner.loss(Constant(), {"image": torch.zeros(200, 1), "target": targets})
        loss.backward()
        return loss

    optimiser.step(step)
    torch.testing.assert_close(
        learner.numbers(bias.detach()[None])[0].float(), torch.tensor([0.1, 0.5, 0.01]), atol=1e-3, rtol=0
    )


def test_thresholds_of_val_hold_for_what_follows(tmp_path):
    logits, targets = torch.tensor([[-2.0], [-1.0], [-3.0]]), torch.tensor([[1], [1], [0]])
    learner = Multilabel(("a",))
    found = learner.evaluate(Replay(), batches_of(logits, targets))
    assert found.metrics["f1_micro"] == 1
    saved = learner.settle(found)["thresholds"]
    assert torch.tensor(-3.0).sigmoid() < saved[0] < torch.tensor(-2.0).sigmoid()
    other = learner.evaluate(Replay(), batches_of(-logits, targets))  # all are above it
    assert other.table[0].threshold == saved[0]
    assert other.table[0].precision == pytest.approx(2 / 3)
    assert learner.prediction("x", [0.11]).row["labels"] == ["a"]
    assert learner.prediction("x", [0.01]).row["labels"] == []
    assert labels_figure(other.table, tmp_path / "labels.png").stat().st_size > 1000
