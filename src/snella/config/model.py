"""The settings of the pre-trained backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from snella.config.fields import between, from_below, setting
from snella.config.tasks import LOOKING

BasePrecision = Literal["fp32", "bf16", "int8", "nf4"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which backbone, and at what size it sees images."""

    backbone: str = setting("vit_base_patch16_224.augreg_in21k")
    """A timm name (also hf-hub:NAME), hf:NAME_OR_FOLDER (transformers), or, in packages, vit_small_focus,
    mobilenetv2_imagenet, efficientnet_lite0_imagenet or efficientnet_lite2_imagenet. The default is the published one.
    To generate: a diffusers pipeline (OWNER/NAME or a folder), or small_unet."""
    pretrained: bool = setting(True)
    """Load the backbone's pre-trained weights; without them only a checkpoint or a test makes sense."""
    checkpoint: str | None = setting(None)
    """File with the backbone's weights (.safetensors, .pth, .npz), instead of the ones its name stands for."""
    image_size: int | None = setting(None, between(1, 2**16))
    """Side of the square the model sees, in pixels. None: the size the backbone was pre-trained at."""
    drop_path: float = setting(0.0, from_below(0, 1), tasks=LOOKING)
    """Drop-path of the backbone itself at its last block, 0 to 1; rises from 0 over depth. Off by default. Not to
    generate."""
    base_precision: BasePrecision = setting("fp32")
    """How the frozen weights are kept: int8 takes a quarter of fp32's memory, nf4 a seventh. Rounding them changes the
    model a little, before and after tuning alike; the tuned model is the rounded one. Not with method full."""
    gradient_checkpointing: bool = setting(False, free=True)
    """Keep the input of each block alone and compute the rest a second time: far less memory, about a third more
    time, the same results to the bit."""
    compile: bool = setting(False)
    """Compile the model's blocks by torch.compile: minutes at the start for faster steps on a GPU, by how much depends
    on method and model. Adapted layers of snella and snell are compiled from their plain formulas, which keep several
    matrices of each weight's size for the backward pass: more memory than without. Not together with
    --gradient-checkpointing."""
