"""Images out of a diffusion model: each one a function of network, prompt or class, seed and settings alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from snella.diffusion.pipeline import Frozen, condition_of
from snella.errors import UserError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class SampleSettings:
    """Settings of how images are made.

    Args:
        size: side of an image, pixels.
        steps: denoising steps, of the pipeline's own scheduler; class-conditional and unconditional models take DDIM.
        guidance: scale of classifier-free guidance; 1 or less is none. None: what is usual for the pipeline.
        batch_size: images at a time.
    """

    size: int
    steps: int = 30
    guidance: float | None = None
    batch_size: int = 4


@torch.no_grad()
def sample(
    frozen: Frozen,
    network: nn.Module,
    asked: Sequence[str | int | None],
    seeds: Sequence[int],
    settings: SampleSettings,
) -> Iterator[Image.Image]:
    """Yield an image for each of the prompts, class labels or Nones (unconditional), with its seed.

    The network stays where it is; the frozen parts come to its device one after the other and go back to the CPU.
    Noise is drawn on the CPU, so that a seed means the same anywhere.

    Raises:
        UserError: more steps than the scheduler was trained with, guidance of a pipeline that has none.
    """
    check_settings(frozen, settings)
    weight = next(network.parameters())
    device, dtype = weight.device, weight.dtype
    embeds: dict[str | int | None, dict[str, Tensor]] = {}
    if frozen.family.encode is not None:
        frozen.to(device, vae=False)
        embeds = {prompt: frozen.encode([str(prompt)], device) for prompt in dict.fromkeys((*asked, ""))}
        frozen.to("cpu", vae=False)
    frozen.to(device, encoders=False)
    was_training = network.training
    network.eval()
    try:
        for start in range(0, len(asked), settings.batch_size):
            part = asked[start : start + settings.batch_size]
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + settings.batch_size]]
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32), _decoding_in_fp32(frozen.vae):
                if embeds:
                    of_part = [embeds[prompt] for prompt in part]
                    pictures = _by_pipeline(frozen, network, of_part, embeds[""], generators, settings)
                else:
                    pictures = _by_ddim(frozen, network, part, generators, settings)
            yield from pictures
    finally:
        network.train(was_training)
        frozen.to("cpu", encoders=False)


@contextmanager
def _decoding_in_fp32(vae: Any) -> Iterator[None]:
    """Let no autocast reach the decoder: SDXL's overflows in fp16, and diffusers looks at its weights' type alone."""
    if vae is None:
        yield
        return
    decode = vae.decode

    def decode_in_fp32(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(latents.device.type, enabled=False):
            return decode(latents.float(), *args, **kwargs)

    vae.decode = decode_in_fp32
    try:
        yield
    finally:
        del vae.decode  # the class's own again


def check_settings(frozen: Frozen, settings: SampleSettings) -> None:
    """Raise UserError for what a pipeline cannot do: more steps than it knows timesteps, guidance by nothing."""
    steps, most = settings.steps, frozen.pipe.scheduler.config.num_train_timesteps
    if steps > most:
        raise UserError(f"{steps} denoising steps are more than the {most} that the scheduler knows; take fewer")
    if frozen.family.guidance == 1 and settings.guidance is not None and settings.guidance > 1:
        kind = type(frozen.pipe).__name__
        raise UserError(
            f"--guidance {settings.guidance:g}: {kind} knows no empty text or class to guide by; leave it out"
        )


def _by_pipeline(
    frozen: Frozen,
    network: nn.Module,
    embeds: list[dict[str, Tensor]],
    empty: dict[str, Tensor],
    generators: list[torch.Generator],
    settings: SampleSettings,
) -> list[Image.Image]:
    """Sample by the pipeline's own call, without its text encoders: their place is not the network's device."""
    family = frozen.family
    guidance = family.guidance if settings.guidance is None else settings.guidance
    parts = {
        name: None if name.startswith(("text_encoder", "tokenizer")) else part
        for name, part in frozen.pipe.components.items()
    }
    kind: Any = type(frozen.pipe)  # of another signature than its base
    pipe = kind(**{**parts, family.network: network}, **_options(frozen.pipe))
    pipe.set_progress_bar_config(disable=True)
    asked: dict[str, Any] = {name: torch.cat([one[name] for one in embeds]) for name in empty}
    if family.negative and guidance > 1:
        asked |= {f"negative_{name}": value.expand(len(embeds), *value.shape[1:]) for name, value in empty.items()}
    if "PixArt" in type(pipe).__name__:
        asked |= {"use_resolution_binning": False, "negative_prompt": None}
    return pipe(
        **asked,
        generator=generators,
        num_inference_steps=settings.steps,
        guidance_scale=guidance,
        height=settings.size,
        width=settings.size,
    ).images


def _options(pipe: DiffusionPipeline) -> dict[str, Any]:
    """Return what the pipeline's class takes besides components."""
    return {"requires_safety_checker": False} if "requires_safety_checker" in pipe.config else {}


def _by_ddim(
    frozen: Frozen,
    network: Any,
    labels: Sequence[str | int | None],
    generators: list[torch.Generator],
    settings: SampleSettings,
) -> list[Image.Image]:
    """Sample by DDIM (Song et al. 2021, eta 0): diffusers' pipelines here know no classes, or ImageNet's alone."""
    from diffusers import DDIMScheduler

    device = next(network.parameters()).device
    scheduler: Any = DDIMScheduler.from_config(frozen.pipe.scheduler.config)
    scheduler.set_timesteps(settings.steps, device=device)
    shape = (network.config.in_channels, *(settings.size // frozen.factor,) * 2)
    x = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)
    known = condition_of(network) == "class"
    classes = torch.tensor(labels, device=device) if known else None
    null = _null_class(network) if known else None
    guidance = frozen.family.guidance if settings.guidance is None else settings.guidance
    for t in scheduler.timesteps:
        timesteps = t.expand(len(x))
        output = frozen.predict(network, x, timesteps, {"class_labels": classes} if classes is not None else {})
        if classes is not None and null is not None and guidance > 1:
            without = frozen.predict(network, x, timesteps, {"class_labels": torch.full_like(classes, null)})
            output = without + guidance * (output - without)
        x = scheduler.step(output, t, x).prev_sample
    if frozen.vae is not None:
        config = frozen.vae.config
        x = frozen.vae.decode(x / config.scaling_factor + (config.get("shift_factor") or 0.0)).sample
    if not x.isfinite().all():
        raise UserError("what the model makes is not finite; its training has diverged: lower --lr")
    pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(one.squeeze(-1) if one.shape[-1] == 1 else one).convert("RGB") for one in pixels]


def _null_class(network: Any) -> int | None:
    """Return the label for "no class" that DiT learns beside the classes; None where it learns none."""
    table = next((part for part in network.modules() if type(part).__name__ == "LabelEmbedding"), None)
    learnt = table is not None and table.embedding_table.weight.shape[0] > table.num_classes
    return table.num_classes if table is not None and learnt else None
