"""What a diffusion model learns: noisy images and the target, as its scheduler's configuration says.

A level u in [0, 1) says how far the noising goes, as a share of the scheduler's training timesteps. x is an image or
its latents, (b, c, h, w); noise has its shape.

    prediction_type epsilon, v_prediction, sample     DDPM (Ho et al. 2020), v-prediction (Salimans and Ho 2022)
    flow matching schedulers                          noise - x (rectified flow, as in Stable Diffusion 3)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from snella.errors import UserError

if TYPE_CHECKING:
    from diffusers import ConfigMixin

FLOW = "flow"
PREDICTIONS = ("epsilon", "v_prediction", "sample", FLOW)


@dataclass(frozen=True)
class Noisy:
    """A noised batch and what the model has to predict for it."""

    x: Tensor  # (b, c, h, w)
    timesteps: Tensor  # (b,), as the model takes them
    target: Tensor  # (b, c, h, w)
    snr: Tensor  # (b,) signal-to-noise ratio


class Objective:
    """Noising and target of a pipeline's scheduler.

    Args:
        scheduler: the pipeline's, any of diffusers'; its betas or sigmas and its `prediction_type` are read.

    Raises:
        UserError: the scheduler is of an unknown kind.
    """

    def __init__(self, scheduler: ConfigMixin) -> None:
        from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

        config = dict(scheduler.config)
        self.flow = type(scheduler).__name__.startswith("FlowMatch") or bool(config.get("use_flow_sigmas"))
        if self.flow:
            shift = config.get("shift", config.get("flow_shift", 1.0))  # the latter: of solvers that know flows too
            config |= {"shift": shift, "use_dynamic_shifting": False}
            self._flow: Any = FlowMatchEulerDiscreteScheduler.from_config(config)
            self.prediction = FLOW
        elif "beta_schedule" in config:
            self._ddpm: Any = DDPMScheduler.from_config(config)
            self.prediction = config.get("prediction_type", "epsilon")
        else:
            raise UserError(
                f"scheduler {type(scheduler).__name__} has no betas and is not a flow-matching one: not known here"
            )
        if self.prediction not in PREDICTIONS:
            raise UserError(f"prediction_type {self.prediction} is not known here ({', '.join(PREDICTIONS)})")

    def draw_levels(self, count: int, device: torch.device) -> Tensor:
        """Draw levels (count,) for a training step: uniform, or logit-normal for flow matching (Esser et al. 2024)."""
        if self.flow:
            return torch.randn(count, device=device).sigmoid().clamp(max=1 - 1e-6)
        return torch.rand(count, device=device)

    def noisy(self, x: Tensor, noise: Tensor, levels: Tensor) -> Noisy:
        """Add noise to a batch at the given levels (b,)."""
        if self.flow:
            count = len(self._flow.timesteps)
            place = ((1 - levels) * count).long().clamp(0, count - 1)  # the scheduler counts from most noise
            sigma = self._flow.sigmas.to(x.device)[place].to(x.dtype)
            s = sigma.view(-1, 1, 1, 1)
            timesteps = self._flow.timesteps.to(x.device)[place]
            return Noisy((1 - s) * x + s * noise, timesteps, noise - x, ((1 - sigma) / sigma).square())
        count = self._ddpm.config["num_train_timesteps"]
        timesteps = (levels * count).long().clamp(max=count - 1)  # a level just below 1 may round to it
        noised = self._ddpm.add_noise(x, noise, timesteps)
        if self.prediction == "epsilon":
            target = noise
        elif self.prediction == "sample":
            target = x
        else:
            target = self._ddpm.get_velocity(x, noise, timesteps)
        signal = self._ddpm.alphas_cumprod.to(x.device)[timesteps]
        return Noisy(noised, timesteps, target, signal / (1 - signal))

    def min_snr_weights(self, snr: Tensor, gamma: float) -> Tensor:
        """Return the weights (b,) of min-SNR-gamma (Hang et al. 2023, section 3.4), for what the model predicts.

        min(snr, gamma) weighs the error of x; divided by snr that of the noise, by snr + 1 that of the velocity, and by
        (sqrt(snr) + 1)^2 that of the flow, in which an error of the target moves x by sigma times as much.
        """
        least = snr.clamp(max=gamma)
        if self.prediction == "epsilon":
            return least / snr.clamp(min=1e-8)
        if self.prediction == "v_prediction":
            return least / (snr + 1)
        if self.prediction == FLOW:
            return least / (snr.sqrt() + 1).square()
        return least


def with_offset(noise: Tensor, strength: float) -> Tensor:
    """Give the channels of noise a mean each (offset noise), so that very dark and very bright images are learnt."""
    return noise + strength * torch.randn(*noise.shape[:2], 1, 1, device=noise.device, dtype=noise.dtype)
