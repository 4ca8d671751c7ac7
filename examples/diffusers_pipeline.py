"""Tune the UNet of a diffusers pipeline, put the adapter into the pipeline at a scale, and take it out again.

    pip install "snella[diffusers]"
    python examples/diffusers_pipeline.py --out runs/pipeline

The pipeline is tiny and untrained and its one image is made up, so it takes seconds on a CPU. For real use load a
pipeline by its name; what follows stays the same for any that has a `unet` or a `transformer`.
"""

import argparse
from typing import cast

import diffusers
import peft
import torch
import torch.nn.functional as F
from torch import Tensor

import snella

STEPS = 40
TUNED = r".*(to_[qkv]|conv[12])"  # of a trained UNet the default, attention, is enough, with nothing in modules_to_save


def make_pipeline() -> diffusers.DDPMPipeline:
    """Return an unconditional pipeline of 16 x 16 images, with the same weights at every call."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())


@torch.no_grad()
def predict_noise(pipe: diffusers.DDPMPipeline, images: Tensor) -> Tensor:
    """Return the noise (b, 3, 16, 16) that the UNet sees in images (b, 3, 16, 16) at the middle of the schedule."""
    return pipe.unet(images, torch.tensor(500)).sample


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="runs/pipeline", help="folder for the adapter (runs/pipeline)")
    out = parser.parse_args().out

    pipe = make_pipeline()
    config = snella.SnellaConfig(r=4, total_step=STEPS, target_modules=TUNED, modules_to_save=["conv_out"])
    unet = peft.get_peft_model(pipe.unet, config)
    tuner = cast(snella.SnellaModel, unet.base_model)
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=1e-2)
    image = torch.linspace(-1, 1, 16).expand(8, 3, 16, 16)  # dark on the left, bright on the right
    losses = []
    for step in range(1, STEPS + 1):
        noise, times = torch.randn_like(image), torch.randint(1000, (8,))
        loss = F.mse_loss(unet(pipe.scheduler.add_noise(image, noise, times), times).sample, noise)
        loss.backward()
        optimizer.step()
        tuner.update_and_allocate(step)
        optimizer.zero_grad()
        losses.append(loss.item())
    print(f"loss of the first and the last steps: {sum(losses[:5]) / 5:.2f}, {sum(losses[-5:]) / 5:.2f}")
    unet.save_pretrained(out)

    pipe = make_pipeline()
    before = predict_noise(pipe, image)
    snella.load_into_pipeline(pipe, out, scale=0.8)  # a run folder of `snella train` will do as well
    print(f"the adapter changes the predicted noise by up to {(predict_noise(pipe, image) - before).abs().max():.2f}")
    pipe(num_inference_steps=5, return_dict=False)[0][0].save(f"{out}/image.png")
    snella.unload_from_pipeline(pipe)
    print(f"without the adapter it is as it was before, to the bit: {torch.equal(predict_noise(pipe, image), before)}")


if __name__ == "__main__":
    main()
