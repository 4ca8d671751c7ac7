"""The head fitted to frozen features, against scikit-learn's logistic regression on timm's own features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from snella.errors import UserError
from snella.tasks.head import MOST, PENALTIES, _spread, fit_head
from support.backbones import build, spec
from support.runs import read, rows, train, write_images

SIZE = 32


class Noisy:
    """Images of three colours under much noise, and their labels."""

    def __init__(self, count: int, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(count) % 3
        self.images = torch.randn(count, 3, SIZE, SIZE, generator=rng)
        self.images += 0.15 * F.one_hot(self.labels, 3)[:, :, None, None]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": self.labels[index]}


SPLITS = {"train": Noisy(60, 1), "val": Noisy(45, 2)}


def fit(model: torch.nn.Module, splits: dict[str, Noisy] = SPLITS) -> float:
    return fit_head(
        model,
        splits,
        lambda example: example,
        lambda logits, targets: F.cross_entropy(logits, targets["label"]),
        batch_size=16,
        workers=0,
        device=torch.device("cpu"),
        progress=lambda done, total: None,
    )


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_the_head_is_the_regression_that_val_chooses(name: str) -> None:
    model = build(spec(name, image_size=SIZE)).eval()
    with torch.no_grad():
        values = {k: model.forward_head(model.forward_features(v.images), pre_logits=True) for k, v in SPLITS.items()}
    features, labels = ({k: v.double().numpy() for k, v in values.items()}, {k: v.labels for k, v in SPLITS.items()})
    mean = features["train"].mean(0)
    scale = np.sqrt(((features["train"] - mean) ** 2).mean())
    known = {}
    for penalty in PENALTIES:
        regression = LogisticRegression(C=1 / (2 * penalty * 60), tol=1e-8, max_iter=5000)
        regression.fit((features["train"] - mean) / scale, labels["train"])
        known[penalty] = regression.predict_proba((features["val"] - mean) / scale)
    losses = {penalty: log_loss(labels["val"], found) for penalty, found in known.items()}
    penalty = fit(model)
    assert penalty == min(losses, key=losses.__getitem__)
    assert PENALTIES[0] > penalty > PENALTIES[-1]  # not at an end, where any order of them would do
    with torch.no_grad():
        found = model(SPLITS["val"].images).softmax(1)
    torch.testing.assert_close(found.double(), torch.from_numpy(known[penalty]), rtol=0, atol=2e-3)


def test_nothing_but_the_head_moves() -> None:
    model = build(spec("test_efficientnet", image_size=SIZE))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"classifier.weight", "classifier.bias"}


def test_features_that_are_all_the_same_leave_the_shares_of_the_classes() -> None:
    model = build(spec("test_vit", image_size=SIZE))
    same = {name: Noisy(len(part), 1) for name, part in SPLITS.items()}
    for part in same.values():
        part.images = torch.zeros_like(part.images)
    fit(model, same)
    with torch.no_grad():
        shares = model.eval()(torch.zeros(1, 3, SIZE, SIZE)).softmax(1)
    torch.testing.assert_close(shares, torch.full((1, 3), 1 / 3), rtol=0, atol=1e-3)


def test_a_model_of_two_heads_is_refused() -> None:
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=SIZE, num_classes=3)
    with pytest.raises(UserError, match="not one linear layer"):
        fit(model)


@pytest.mark.parametrize("count", [1, MOST, MOST + 1, 5 * MOST - 3])
def test_many_images_are_thinned_out_evenly(count: int) -> None:
    chosen = _spread(count)
    assert 0 < len(chosen) <= MOST
    assert count - chosen[-1] <= chosen.step
    assert chosen.step == 1 or len(chosen) > MOST // 2


def test_a_run_starts_from_the_fitted_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, losses = write_images(tmp_path / "images"), {}
    for name, flags in {"plain": (), "fitted": ("--head-first",)}.items():
        assert train(images, tmp_path / name, "--lr", "1e-5", *flags) == 0
        losses[name] = rows(tmp_path / name, "val")[0]["loss"]
    assert losses["fitted"] < 0.5 * losses["plain"]
    assert "head fitted to the features of the frozen backbone" in capsys.readouterr().out
    assert read(tmp_path / "fitted" / "summary.json")["test"]["top1"] == 1
