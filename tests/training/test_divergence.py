"""A training that diverges keeps what was finite, says where, and goes on from there with a lower rate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from snella.errors import UserError
from snella.training.checkpoint import checkpoints, read_divergences
from snella.training.interfaces import DeviceBatch
from snella.training.interrupt import Diverged
from snella.training.tuned_weights import tuned_state
from support.toy import SETTINGS, Allocator, Classification, Net, train

LOWER = replace(SETTINGS, lr=SETTINGS.peak_lr / 2)


class Spoilt(Classification):
    """Gives a loss that is not finite from a call on."""

    def __init__(self, call: int) -> None:
        self.left = call

    def loss(self, model: nn.Module, batch: DeviceBatch, /) -> Tensor:
        self.left -= 1
        return super().loss(model, batch) * (1 if self.left >= 0 else torch.nan)


def diverged(folder: Path, call: int = 12) -> tuple[Net, Diverged]:
    """Train, with two batches a step and five an epoch, until the loss is not finite in the third epoch."""
    model = Net()
    with pytest.raises(Diverged) as error:
        train(folder, model=model, task=Spoilt(call))
    return model, error.value


def test_the_best_epoch_before_is_in_the_model_and_the_checkpoints_are_finite(tmp_path: Path) -> None:
    model, error = diverged(tmp_path)
    assert str(error).startswith("the loss is nan at step 8 with learning rate ")
    assert (error.step, error.best_epoch > 0) == (8, True)
    best = load_file(checkpoints(tmp_path)[-1] / "best.safetensors")
    assert all(torch.equal(value, best[name]) for name, value in tuned_state(model).items())
    assert checkpoints(tmp_path)[-1].name == "step-00000006"
    assert read_divergences(tmp_path) == [{"step": 8, "learning_rate": error.rate, "lr": SETTINGS.lr}]


def test_it_goes_on_with_a_lower_rate_and_with_no_other(tmp_path: Path) -> None:
    diverged(tmp_path)
    with pytest.raises(UserError, match=r"was made with lr 0\.02, not 0\.04"):
        train(tmp_path, resume=True, settings=replace(SETTINGS, lr=0.04))
    with pytest.raises(UserError, match=r"was made with clip_grad 0\.5"):
        train(tmp_path, resume=True, settings=replace(LOWER, clip_grad=0.1))
    _, result = train(tmp_path, resume=True, settings=LOWER)
    assert (result.steps, result.epochs_done) == (9, 3)
    rates = [row["lr"] for row in map(json.loads, (tmp_path / "metrics.jsonl").open()) if row["kind"] == "train"]
    assert max(rates[6:]) < SETTINGS.peak_lr / 2
    assert read_divergences(tmp_path)[0]["lr"] == SETTINGS.lr  # what happened stays known


def test_without_a_finite_epoch_there_is_none(tmp_path: Path) -> None:
    _, error = diverged(tmp_path, call=3)
    assert (error.step, error.best_epoch) == (2, 0)
    assert not checkpoints(tmp_path)
    assert train(tmp_path, resume=True, settings=LOWER)[1].steps == 9  # from the beginning


def test_weights_that_are_not_finite_are_in_no_checkpoint_and_no_best_epoch(tmp_path: Path) -> None:
    model = Net()

    def spoil(step: int) -> None:
        if step == 5:
            with torch.no_grad():
                model.head.bias[0] = torch.inf

    with pytest.raises(Diverged, match=r"^diverged: (tuned|ema) head\.bias is not finite at step 6|^the loss is nan"):
        train(tmp_path, model=model, at_step=spoil)
    for checkpoint in checkpoints(tmp_path):
        for file in checkpoint.glob("*.safetensors"):
            assert all(t.isfinite().all() for t in load_file(file).values() if t.is_floating_point())


def test_weights_that_are_not_finite_after_the_last_step_of_an_epoch(tmp_path: Path) -> None:
    model = Net()

    def spoil(step: int) -> None:
        if step == 3:
            with torch.no_grad():
                model.head.bias[0] = torch.nan

    with pytest.raises(Diverged, match=r"^diverged: .*head\.bias is not finite at step 3"):
        train(tmp_path, model=model, at_step=spoil, settings=replace(SETTINGS, checkpoint_every=4))
    assert not checkpoints(tmp_path)


def test_an_allocation_of_what_is_not_finite_is_a_divergence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Allocator, step: int) -> None:
        raise FloatingPointError("diverged: the importance of the weights is not finite")

    monkeypatch.setattr(Allocator, "__call__", broken)
    with pytest.raises(Diverged, match=r"^diverged: the importance of the weights is not finite at step 1 "):
        train(tmp_path)
