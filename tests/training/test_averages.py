"""What is averaged over the last steps, and that the last epoch can be kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from snella.config.schema import TrainConfig
from snella.config.validation import validate
from snella.errors import UserError
from snella.training.interrupt import Interrupted
from snella.training.tuned_weights import copied, tuned_state
from support.runs import same
from support.toy import EVERY_STEP, SETTINGS, Net, interrupt_at, train

TAIL = replace(SETTINGS, ema=None, average=0.5, keep="last")
STEPS = len(EVERY_STEP)


@pytest.mark.parametrize(("share", "steps"), [(0.5, 4), (0.34, 3), (0.01, 1), (0.99, 9)])
def test_the_average_is_the_mean_of_the_weights_after_the_last_steps(share: float, steps: int, tmp_path: Path) -> None:
    model, after = Net(), []
    train(
        tmp_path,
        settings=replace(TAIL, average=share),
        model=model,
        at_step=lambda step: after.append(copied(tuned_state(model))),
    )
    assert len(after) == STEPS
    for name, value in tuned_state(model).items():
        if value.is_floating_point():
            mean = torch.stack([state[name].double() for state in after[-steps:]]).mean(0)
            torch.testing.assert_close(value.double(), mean, rtol=1e-5, atol=1e-6)
        else:  # budgets and counters are those of the end
            assert torch.equal(value, after[-1][name])


@pytest.mark.parametrize("step", [3, 6, 8])
def test_it_goes_on_to_the_bit_before_at_and_in_the_average(step: int, tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", settings=TAIL)[0]
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", settings=TAIL, at_step=interrupt_at(step))
    assert same(tuned_state(train(tmp_path / "cut", settings=TAIL, resume=True)[0]), tuned_state(whole))


def test_before_the_last_steps_the_model_itself_is_validated(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", settings=replace(TAIL, average=0.0))[1]
    averaged = train(tmp_path / "averaged", settings=TAIL)[1]
    assert averaged.history[0] == plain.history[0]
    assert averaged.history[-1]["loss"] != plain.history[-1]["loss"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"average": 0.25, "ema": 0.9}, "--average and --ema"),
        ({"keep": "last", "early_stopping": 2}, "--early-stopping"),
        ({"average": 1.0}, r"--average 1.0 is outside \[0, 1\)"),
    ],
)
def test_what_contradicts_itself_is_refused(values: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        validate(TrainConfig.of(data="images", **values))
