"""Makes of diffusion pipelines: which network is tuned, how it reads text, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Condition = Mapping[str, Tensor]  # what a network is given besides x and the timestep, each (b, ...)


@dataclass(frozen=True)
class PipelineFamily:
    """Pipelines of one make.

    Args:
        pipelines: class names in diffusers.
        network: the component that is tuned.
        guidance: usual guidance scale of sampling.
        predict: the network's output for x (b, c, h, w), timesteps (b,) and a condition.
        encode: prompts to the tensors named in `embeddings`, as the pipeline's call takes them; None without text.
        negative: whether the call takes the same names with negative_ before them.
    """

    pipelines: tuple[str, ...]
    network: str
    guidance: float
    predict: Callable[[nn.Module, Tensor, Tensor, Condition], Tensor]
    encode: Callable[[DiffusionPipeline, list[str], torch.device], dict[str, Tensor]] | None = None
    embeddings: tuple[str, ...] = ()
    negative: bool = True


def _text_sd(pipe: DiffusionPipeline, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    embeds, _ = pipe.encode_prompt(prompts, device, 1, False)
    return {"prompt_embeds": embeds}


def _text_sdxl(pipe: DiffusionPipeline, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    embeds, _, pooled, _ = pipe.encode_prompt(prompts, None, device, 1, False)
    if pipe.config["force_zeros_for_empty_prompt"]:  # as it was trained, and as the pipeline does without guidance
        said = torch.tensor([bool(prompt) for prompt in prompts], device=embeds.device)
        embeds, pooled = embeds * said.view(-1, 1, 1), pooled * said.view(-1, 1)
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


def _text_sd3(pipe: DiffusionPipeline, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    embeds, _, pooled, _ = pipe.encode_prompt(prompts, None, None, device, 1, False)
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


def _text_flux(pipe: DiffusionPipeline, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    embeds, pooled, _ = pipe.encode_prompt(prompts, None, device, 1)
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


def _text_pixart(pipe: DiffusionPipeline, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    embeds, mask, _, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False, device=device)
    return {"prompt_embeds": embeds, "prompt_attention_mask": mask}


def _predict_sd(network: nn.Module, x: Tensor, t: Tensor, c: Condition) -> Tensor:
    return network(x, t, encoder_hidden_states=c["prompt_embeds"]).sample


def _predict_sdxl(network: nn.Module, x: Tensor, t: Tensor, c: Condition) -> Tensor:
    added = {"text_embeds": c["pooled_prompt_embeds"], "time_ids": c["time_ids"]}
    return network(x, t, encoder_hidden_states=c["prompt_embeds"], added_cond_kwargs=added).sample


def _predict_sd3(network: nn.Module, x: Tensor, t: Tensor, c: Condition) -> Tensor:
    return network(
        x, timestep=t, encoder_hidden_states=c["prompt_embeds"], pooled_projections=c["pooled_prompt_embeds"]
    ).sample


def _predict_flux(network: nn.Module, x: Tensor, t: Tensor, c: Condition) -> Tensor:
    from diffusers import FluxPipeline

    b, channels, h, w = x.shape
    text, config = c["prompt_embeds"], network.config
    output = network(
        FluxPipeline._pack_latents(x, b, channels, h, w),
        timestep=t / 1000,
        encoder_hidden_states=text,
        pooled_projections=c["pooled_prompt_embeds"],
        txt_ids=x.new_zeros(text.shape[1], 3),
        img_ids=FluxPipeline._prepare_latent_image_ids(b, h // 2, w // 2, x.device, x.dtype),
        guidance=x.new_ones(b) if config.guidance_embeds else None,  # pyright: ignore
    ).sample
    return FluxPipeline._unpack_latents(output, h, w, 1)


def _predict_pixart(network: nn.Module, x: Tensor, t: Tensor, c: Condition) -> Tensor:
    sides: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
    if network.config.sample_size == 128:  # pyright: ignore[reportAttributeAccessIssue]  (PixArt-alpha at 1024 px)
        scale = 8.0  # pixels a latent
        sides["resolution"] = scale * x.new_tensor(x.shape[2:]).expand(len(x), 2)
        sides["aspect_ratio"] = x.new_full((len(x), 1), x.shape[2] / x.shape[3])
    mask = c["prompt_attention_mask"]
    return network(
        x, encoder_hidden_states=c["prompt_embeds"], encoder_attention_mask=mask, timestep=t, added_cond_kwargs=sides
    ).sample


def _predict_classes(network: nn.Module, x: Tensor, t: Tensor, c: Condition) -> Tensor:
    return network(x, timestep=t, class_labels=c.get("class_labels")).sample


POOLED, MASKED = ("prompt_embeds", "pooled_prompt_embeds"), ("prompt_embeds", "prompt_attention_mask")
FAMILIES = (
    PipelineFamily(("StableDiffusionPipeline",), "unet", 7.5, _predict_sd, _text_sd, ("prompt_embeds",)),
    PipelineFamily(("StableDiffusionXLPipeline",), "unet", 5.0, _predict_sdxl, _text_sdxl, POOLED),
    PipelineFamily(("StableDiffusion3Pipeline",), "transformer", 7.0, _predict_sd3, _text_sd3, POOLED),
    PipelineFamily(("FluxPipeline",), "transformer", 3.5, _predict_flux, _text_flux, POOLED, negative=False),
    PipelineFamily(
        ("PixArtAlphaPipeline", "PixArtSigmaPipeline"), "transformer", 4.5, _predict_pixart, _text_pixart, MASKED
    ),
    PipelineFamily(("DiTPipeline",), "transformer", 4.0, _predict_classes),
    PipelineFamily(("DDPMPipeline", "DDIMPipeline"), "unet", 1.0, _predict_classes),
)
