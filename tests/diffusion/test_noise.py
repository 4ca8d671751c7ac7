"""Noising and targets against the papers' formulas, out of betas that are computed here."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from snella.diffusion.noise import Objective, with_offset
from snella.errors import UserError

STEPS = 1000
SD = {  # scheduler_config.json of Stable Diffusion's model zoo
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
}
LEVELS = torch.tensor([0.0, 0.2495, 0.5, 0.9005, 0.9999])
X, NOISE = torch.randn(2, 5, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def linear(start: float, end: float, steps: int = STEPS) -> Tensor:
    return torch.tensor([start + (end - start) * i / (steps - 1) for i in range(steps)], dtype=torch.float64)


def scaled_linear(start: float, end: float, steps: int = STEPS) -> Tensor:
    return linear(math.sqrt(start), math.sqrt(end), steps).square()


def squaredcos(steps: int = STEPS) -> Tensor:
    """Nichol and Dhariwal 2021, equation 17."""
    bar = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
    return torch.tensor([min(1 - bar[i + 1] / bar[i], 0.999) for i in range(steps)], dtype=torch.float64)


def zero_snr(betas: Tensor) -> Tensor:
    """Lin et al. 2024, algorithm 1; in alpha-bar."""
    root = (1 - betas).cumprod(0).sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()


SCHEDULES: dict[str, tuple[dict[str, Any], Tensor]] = {
    "linear": ({"beta_schedule": "linear"}, (1 - linear(1e-4, 0.02)).cumprod(0)),
    "few": ({"beta_schedule": "linear", "num_train_timesteps": 7}, (1 - linear(1e-4, 0.02, 7)).cumprod(0)),
    "scaled_linear": (SD, (1 - scaled_linear(0.00085, 0.012)).cumprod(0)),
    "squaredcos": ({"beta_schedule": "squaredcos_cap_v2"}, (1 - squaredcos()).cumprod(0)),
    "zero snr": (SD | {"rescale_betas_zero_snr": True}, zero_snr(scaled_linear(0.00085, 0.012))),
}


def ddpm(prediction: Any = "epsilon", **config: Any) -> Objective:
    return Objective(diffusers.DDPMScheduler(prediction_type=prediction, **config))


def flow(shift: float = 1.0) -> Objective:
    return Objective(diffusers.FlowMatchEulerDiscreteScheduler(shift=shift))


OBJECTIVES = {
    "epsilon": ddpm("epsilon", **SD),
    "v_prediction": ddpm("v_prediction", **SD),
    "sample": ddpm("sample", **SD),
    "flow": flow(3.0),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_noising_and_target(schedule: str, prediction: str) -> None:
    config, bars = SCHEDULES[schedule]
    found = ddpm(prediction, **config).noisy(X, NOISE, LEVELS)
    steps = (LEVELS.double() * len(bars)).floor().long()
    bar = bars[steps].view(-1, 1, 1, 1)
    signal, spread = bar.sqrt(), (1 - bar).sqrt()
    target = {"epsilon": NOISE, "v_prediction": signal * NOISE - spread * X, "sample": X}[prediction]
    assert torch.equal(found.timesteps, steps)
    torch.testing.assert_close(found.x.double(), signal * X + spread * NOISE, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.target.double(), target.double(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.snr.double(), (bar / (1 - bar)).flatten(), atol=1e-7, rtol=2e-3)


def test_rescaled_betas_end_in_noise_alone() -> None:
    found = ddpm(**SD, rescale_betas_zero_snr=True).noisy(X[:1], NOISE[:1], torch.tensor([0.9999]))
    torch.testing.assert_close(found.x, NOISE[:1], atol=1e-6, rtol=0)
    assert found.snr.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_flow_matching(shift: float) -> None:
    scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    found = Objective(scheduler).noisy(X, NOISE, LEVELS)
    places = torch.tensor([999, 750, 500, 99, 0])  # most noise is first
    s = scheduler.sigmas[places].view(-1, 1, 1, 1)
    assert s[-1] == 1
    torch.testing.assert_close(found.x, (1 - s) * X + s * NOISE)
    torch.testing.assert_close(found.target, NOISE - X)
    torch.testing.assert_close(found.timesteps, scheduler.timesteps[places])
    torch.testing.assert_close(found.snr, ((1 - s) / s).square().flatten())
    plain = 0.5 * STEPS  # level 0.5 before the shift: s = shift u / (1 + (shift - 1) u)
    expected = STEPS * shift * (plain / STEPS) / (1 + (shift - 1) * plain / STEPS)
    assert found.timesteps[2].item() == pytest.approx(expected, rel=1e-5)


@given(st.lists(st.floats(0, 1, exclude_max=True, width=32), min_size=2, max_size=8), st.sampled_from([*OBJECTIVES]))
def test_more_level_is_more_noise(levels: list[float], name: str) -> None:
    count = len(levels)
    found = OBJECTIVES[name].noisy(
        torch.ones(count, 1, 1, 1), torch.zeros(count, 1, 1, 1), torch.tensor(levels).sort()[0]
    )
    assert (found.timesteps.diff() >= 0).all()
    assert (found.snr.diff() <= 0).all()
    assert (found.x.flatten().diff() <= 0).all()
    assert ((found.timesteps >= 0) & (found.timesteps <= STEPS)).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_levels_cover_the_range(name: str) -> None:
    levels = OBJECTIVES[name].draw_levels(20_000, torch.device("cpu"))
    assert levels.shape == (20_000,)
    assert 0 <= levels.min() < 0.03
    assert 0.97 < levels.max() < 1
    assert levels.mean().item() == pytest.approx(0.5, abs=0.01)
    spread = {"flow": 0.2083}.get(name, 1 / math.sqrt(12))  # of the logit-normal; of the uniform
    assert levels.std().item() == pytest.approx(spread, rel=0.02)
    OBJECTIVES[name].noisy(levels.view(-1, 1, 1, 1), levels.view(-1, 1, 1, 1), levels)


def implied(name: str, noisy: Any, predicted: Tensor) -> Tensor:
    """x, from what is predicted of a noised value; by its signal-to-noise ratio."""
    snr = noisy.snr.double()
    bar = snr / (snr + 1)
    if name == "epsilon":
        return (noisy.x - (1 - bar).sqrt() * predicted) / bar.sqrt()
    if name == "v_prediction":
        return bar.sqrt() * noisy.x - (1 - bar).sqrt() * predicted
    if name == "flow":
        return noisy.x - predicted / (1 + snr.sqrt())
    return predicted


@given(
    name=st.sampled_from([*OBJECTIVES]),
    level=st.floats(0, 0.95),
    gamma=st.floats(0.1, 30),
    error=st.floats(0.1, 3),
    values=st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
)
def test_min_snr_weighs_the_error_of_x(
    name: str, level: float, gamma: float, error: float, values: tuple[float, float]
) -> None:
    x, noise = (torch.tensor(value, dtype=torch.float64).view(1, 1, 1, 1) for value in values)
    objective = OBJECTIVES[name]
    noisy = objective.noisy(x, noise, torch.tensor([level]))
    wrong = noisy.target + error
    of_x = (implied(name, noisy, wrong) - implied(name, noisy, noisy.target)).square().item()
    weighted = objective.min_snr_weights(noisy.snr, gamma).item() * error**2
    assert weighted == pytest.approx(min(noisy.snr.item(), gamma) * of_x, rel=1e-4)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_is_implied_by_the_target_is_x(name: str) -> None:
    noisy = OBJECTIVES[name].noisy(X[:1].double(), NOISE[:1].double(), torch.tensor([0.4]))
    torch.testing.assert_close(implied(name, noisy, noisy.target), X[:1].double(), atol=1e-5, rtol=1e-5)


def test_min_snr_of_noise_alone_is_finite() -> None:
    for objective in OBJECTIVES.values():
        assert objective.min_snr_weights(torch.tensor([0.0]), 5.0).isfinite().all()


def test_offset_noise_has_a_mean_for_each_channel() -> None:
    noise = torch.randn(200, 4, 16, 16)
    assert torch.equal(with_offset(noise, 0.0), noise)
    moved = with_offset(noise, 0.5) - noise
    means = moved.mean((2, 3))
    assert (moved - means[..., None, None]).abs().max() < 1e-5  # one value for each channel of each image
    assert means.std().item() == pytest.approx(0.5, rel=0.1)
    assert means.mean().item() == pytest.approx(0, abs=0.06)
    assert abs(torch.corrcoef(means.T)[0, 1].item()) < 0.25


ZOO: dict[str, dict[str, Any]] = {
    "PNDMScheduler": SD | {"set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "clip_sample": False},
    "EulerDiscreteScheduler": SD | {"timestep_spacing": "leading", "steps_offset": 1, "use_karras_sigmas": False},
    "EulerAncestralDiscreteScheduler": SD,
    "DPMSolverMultistepScheduler": SD | {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True},
    "DDIMScheduler": SD | {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    "UniPCMultistepScheduler": SD,
    "LMSDiscreteScheduler": SD,
    "HeunDiscreteScheduler": SD,
}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ZOO)
def test_schedulers_of_the_model_zoo(name: str, prediction: str) -> None:
    scheduler = getattr(diffusers, name).from_config(ZOO[name] | {"prediction_type": prediction})
    found = Objective(scheduler).noisy(X, NOISE, LEVELS)
    expected = OBJECTIVES[prediction].noisy(X, NOISE, LEVELS)
    for field in ("x", "timesteps", "target", "snr"):
        assert torch.equal(getattr(found, field), getattr(expected, field))


def test_a_scheduler_of_an_old_pipeline_predicts_noise() -> None:
    scheduler = diffusers.PNDMScheduler.from_config(ZOO["PNDMScheduler"])
    assert isinstance(scheduler, diffusers.PNDMScheduler)
    assert Objective(scheduler).prediction == "epsilon"


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_solvers_of_flows_have_their_shift(name: str) -> None:
    scheduler = getattr(diffusers, name)(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    found, expected = (o.noisy(X, NOISE, LEVELS) for o in (Objective(scheduler), flow(3.0)))
    torch.testing.assert_close(found.x, expected.x)
    torch.testing.assert_close(found.timesteps, expected.timesteps)


def test_schedulers_that_are_not_known() -> None:
    with pytest.raises(UserError, match="EDMEulerScheduler") as caught:
        Objective(diffusers.EDMEulerScheduler())
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="prediction_type other"):
        ddpm("other")
