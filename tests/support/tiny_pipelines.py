"""Tiny random diffusion pipelines, saved to folders that diffusers' `from_pretrained` loads.

Images are (3, 16, 16) and latents (4, 8, 8), but for `write_unet`, which has no latents. The same seed gives the same
weights. Prompts are words of `WORDS` or any lower-case letters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from snella.models.backbone import BackboneSpec
from support import transformers4

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        T5EncoderModel,
    )


OLD_TRANSFORMERS = version("transformers").startswith("4.")
WIDTH = 16  # of every text encoder
LATENTS = 8  # side; the images' is twice that
WORDS = ("a", "photo", "of", "cat", "dog", "red", "blue", "sks")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def write_sd(folder: str | Path, prediction_type: str = "epsilon", *, seed: int = 0) -> Path:
    """A StableDiffusionPipeline with a UNet2DConditionModel and DDIM, "epsilon" or "v_prediction"."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    without_checker: dict[str, Any] = dict.fromkeys(("safety_checker", "feature_extractor"))
    without_checker["requires_safety_checker"] = False
    with _seeded(seed):
        pipe = StableDiffusionPipeline(
            unet=UNet2DConditionModel(**_cross_attention(WIDTH)),
            vae=_vae(),
            text_encoder=_clip_text(),
            tokenizer=_clip_tokenizer(),
            scheduler=_scheduler("DDIMScheduler", prediction_type, clip_sample=False, steps_offset=1),
            **without_checker,
        )
    return _saved(pipe, folder)


def write_sdxl(folder: str | Path, *, seed: int = 0) -> Path:
    """A StableDiffusionXLPipeline: two text encoders, the second projected, and sizes as a condition."""
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    with _seeded(seed):
        unet = UNet2DConditionModel(
            **_cross_attention(2 * WIDTH),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        )
        pipe = StableDiffusionXLPipeline(
            unet=unet,
            vae=_vae(),
            text_encoder=_clip_text(),
            text_encoder_2=_clip_text_projected(),
            tokenizer=_clip_tokenizer(),
            tokenizer_2=_clip_tokenizer(),
            scheduler=_scheduler("EulerDiscreteScheduler", "epsilon"),
        )
    return _saved(pipe, folder)


def write_sd3(folder: str | Path, *, seed: int = 0) -> Path:
    """A StableDiffusion3Pipeline: flow matching, two CLIP encoders and a T5."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    with _seeded(seed):
        transformer = SD3Transformer2DModel(
            sample_size=LATENTS,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * WIDTH,  # the two CLIPs side by side; T5's states are padded to it
            caption_projection_dim=16,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=LATENTS,
        )
        pipe = StableDiffusion3Pipeline(
            transformer=transformer,
            vae=_vae(quant=False, shift_factor=0.06, scaling_factor=1.5),
            text_encoder=_clip_text_projected(),
            text_encoder_2=_clip_text_projected(),
            text_encoder_3=_t5(2 * WIDTH),
            tokenizer=_clip_tokenizer(),
            tokenizer_2=_clip_tokenizer(),
            tokenizer_3=_t5_tokenizer(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
    return _saved(pipe, folder)


def write_flux(folder: str | Path, guidance_embeds: bool = False, *, seed: int = 0) -> Path:
    """A FluxPipeline: flow matching, CLIP and T5; with `guidance_embeds` as of the model "dev"."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    with _seeded(seed):
        transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=4 * 4,  # 2 x 2 latents are one token
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            axes_dims_rope=(2, 2, 4),
            guidance_embeds=guidance_embeds,
        )
        pipe = FluxPipeline(
            transformer=transformer,
            vae=_vae(quant=False, shift_factor=0.06, scaling_factor=1.5),
            text_encoder=_clip_text(),
            text_encoder_2=_t5(WIDTH),
            tokenizer=_clip_tokenizer(),
            tokenizer_2=_t5_tokenizer(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guidance_embeds),
        )
    return _saved(pipe, folder)


def write_pixart(folder: str | Path, *, seed: int = 0) -> Path:
    """A PixArtSigmaPipeline with a T5; the transformer predicts the variance besides (8 channels)."""
    from diffusers import PixArtSigmaPipeline, PixArtTransformer2DModel

    with _seeded(seed):
        transformer = PixArtTransformer2DModel(
            **_patches(),
            cross_attention_dim=16,
            caption_channels=WIDTH,
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            use_additional_conditions=False,
        )
        pipe = PixArtSigmaPipeline(
            transformer=transformer,
            vae=_vae(),
            text_encoder=_t5(WIDTH),
            tokenizer=_t5_tokenizer(),
            scheduler=_scheduler("DPMSolverMultistepScheduler", "epsilon"),
        )
    return _saved(pipe, folder)


def write_dit(folder: str | Path, classes: int = 1000, *, seed: int = 0) -> Path:
    """A DiTPipeline, whose classes are called "class 0" ... in id2label.

    The pipeline's guidance takes label 1000 for "no class": with other than 1000 classes call it with
    guidance_scale=1.
    """
    from diffusers import DiTPipeline, DiTTransformer2DModel

    with _seeded(seed):
        transformer = DiTTransformer2DModel(**_patches(), num_embeds_ada_norm=classes, norm_type="ada_norm_zero")
        pipe = DiTPipeline(transformer=transformer, vae=_vae(), scheduler=_scheduler("DDIMScheduler", "epsilon"))
    _saved(pipe, folder)
    index = Path(folder) / "model_index.json"
    names = {str(label): f"class {label}" for label in range(classes)}
    index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": names}, indent=2))
    return Path(folder)


def write_unet(folder: str | Path, classes: int | None = None, size: int = 16, *, seed: int = 0) -> Path:
    """A DDPMPipeline on images (3, size, size), with a UNet2DModel that has attention at size / 2.

    With classes its network takes `class_labels`, which calling the pipeline itself does not give.
    """
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    with _seeded(seed):
        unet = UNet2DModel(
            sample_size=size,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=8,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            num_class_embeds=classes,
        )
        pipe = DDPMPipeline(unet=unet, scheduler=DDPMScheduler(num_train_timesteps=1000))
    return _saved(pipe, folder)


# ---- parts


def _cross_attention(cross_attention_dim: int) -> dict[str, Any]:
    return dict(
        sample_size=LATENTS,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=(2, 2),  # heads: diffusers keeps this old name
        cross_attention_dim=cross_attention_dim,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )


def _patches() -> dict[str, Any]:
    return dict(
        sample_size=LATENTS,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
    )


def _scheduler(name: str, prediction_type: str, **options: Any) -> Any:  # diffusers' annotations fit no scheduler
    import diffusers

    return getattr(diffusers, name)(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        **options,
    )


def _vae(quant: bool = True, shift_factor: float | None = None, scaling_factor: float = 0.18215) -> AutoencoderKL:
    from diffusers import AutoencoderKL

    blocks: dict[str, Any] = dict(  # annotated as tuples of one
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    return AutoencoderKL(
        **blocks,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=2 * LATENTS,
        shift_factor=shift_factor,
        scaling_factor=scaling_factor,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
        force_upcast=False,
    )


def _clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Letters, and the merges that make each word of WORDS out of them."""
    tokens, merges = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)], []
    for word in WORDS:
        *letters, last = word
        parts = [*letters, f"{last}</w>"]
        while len(parts) > 1:
            merge = (parts[0], parts[1])
            if merge not in merges:
                merges.append(merge)
            parts[:2] = ["".join(merge)]
            if parts[0] not in tokens:
                tokens.append(parts[0])
    tokens += ["<|startoftext|>", "<|endoftext|>"]  # last, as in CLIP: the encoders look for the largest number
    return {token: i for i, token in enumerate(tokens)}, merges


def _clip_tokenizer() -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    vocabulary, merges = _clip_vocabulary()
    if OLD_TRANSFORMERS:
        return transformers4.clip_tokenizer(vocabulary, merges, 16)
    pairs: Any = merges  # annotated as the lines of a file
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=16)


def _clip_config() -> CLIPTextConfig:
    from transformers import CLIPTextConfig

    vocabulary, _ = _clip_vocabulary()
    return CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        pad_token_id=vocabulary["<|endoftext|>"],
    )


def _clip_text() -> CLIPTextModel:
    from transformers import CLIPTextModel

    return CLIPTextModel(_clip_config())


def _clip_text_projected() -> CLIPTextModelWithProjection:
    from transformers import CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(_clip_config())


def _t5_vocabulary() -> list[tuple[str, float]]:
    """Tokens and log-probabilities: words are likelier than their letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return pieces + [(f"▁{word}", -1.0) for word in WORDS] + [(letter, -4.0) for letter in LETTERS]


def _t5_tokenizer() -> Any:
    from transformers import T5TokenizerFast  # pyright: ignore[reportAttributeAccessIssue]  (since 5 at run time only)

    if OLD_TRANSFORMERS:
        return transformers4.t5_tokenizer(_t5_vocabulary(), 32)
    return T5TokenizerFast(vocab=_t5_vocabulary(), extra_ids=0, model_max_length=32)


def _t5(width: int) -> T5EncoderModel:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(_t5_vocabulary()), d_model=width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=2
    )
    return T5EncoderModel(config)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The weights' randomness, without a change of the test's own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _saved(pipe: Any, folder: str | Path) -> Path:
    """The layers that start at zero get numbers, so that all of the network is seen in what it gives."""
    network: nn.Module = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.1, generator=generator)
    pipe.save_pretrained(folder, safe_serialization=True)
    return Path(folder)


# ---- tables


Folders = Callable[[str], Path]  # name of a pipeline in WRITERS -> its folder
WRITERS: dict[str, Callable[[Path], Path]] = {
    "sd": write_sd,
    "sd-v": lambda folder: write_sd(folder, "v_prediction"),
    "sdxl": write_sdxl,
    "sd3": write_sd3,
    "flux": write_flux,
    "flux-dev": lambda folder: write_flux(folder, guidance_embeds=True),
    "pixart": write_pixart,
    "dit": lambda folder: write_dit(folder, classes=4),
    "unet": write_unet,
    "unet-classes": lambda folder: write_unet(folder, classes=3),
}
TEXT = ("sd", "sd-v", "sdxl", "sd3", "flux", "flux-dev", "pixart")


def network_spec(folder: Path | str, num_classes: int = 0, **options: Any) -> BackboneSpec:
    """The spec of a folder's network."""
    options = {"pretrained": True, "checkpoint": None, "image_size": None} | options
    return BackboneSpec(str(folder), num_classes=num_classes, **options)
