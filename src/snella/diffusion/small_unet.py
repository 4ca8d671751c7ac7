"""The small class-conditional UNet that a laptop trains from nothing in minutes: `small_unet`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import DDPMPipeline, UNet2DModel

NAME = "small_unet"
SIZE = 32  # pixels


def small_unet(num_classes: int) -> UNet2DModel:
    """Build an untrained `UNet2DModel` for images (3, 32, 32): 1.1 M parameters, which torch's generator draws."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=SIZE,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=16,
        num_class_embeds=num_classes,
    )


def small_pipeline() -> DDPMPipeline:
    """Build the rest of its pipeline: v-prediction on the linear schedule of DDPM."""
    from diffusers import DDPMPipeline, DDPMScheduler

    network: Any = None  # it is tuned, and so none of the frozen parts
    return DDPMPipeline(unet=network, scheduler=DDPMScheduler(prediction_type="v_prediction"))
