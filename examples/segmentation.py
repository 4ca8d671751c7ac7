"""Tune the encoder of a segmentation model sparsely, and train its decoder and head as a whole.

    pip install "snella[segment]"
    python examples/segmentation.py --steps 60

The U-Net (segmentation-models-pytorch) is small and untrained and the images are made up (bright and dark discs), so it
takes seconds on a CPU. For real use pass `encoder_weights="imagenet"` and your own images and masks.
"""

import argparse
from typing import cast

import peft
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor

from snella import SnellaConfig, SnellaModel

SIDE = 32  # pixels


def make_batch(size: int) -> tuple[Tensor, Tensor]:
    """Return images (size, 3, SIDE, SIDE) and masks (size, SIDE, SIDE): 0 ground, 1 dark disc, 2 bright disc."""
    places = torch.arange(SIDE).float()
    masks = torch.zeros(size, SIDE, SIDE, dtype=torch.long)
    for label in (1, 2):
        x, y = (torch.randint(8, SIDE - 8, (size, 1, 1)) for _ in range(2))
        masks[(places - x) ** 2 + (places[:, None] - y) ** 2 < 40] = label
    shades = torch.tensor([0.0, -1.0, 1.0])[masks]
    return shades[:, None] + 0.3 * torch.randn(size, 3, SIDE, SIDE), masks


def mean_iou(predicted: Tensor, masks: Tensor) -> float:
    """Return the mean over the classes of intersection over union, from masks of the same shape."""
    pairs = [(predicted == label, masks == label) for label in range(3)]
    return sum(float((ours & theirs).sum() / (ours | theirs).sum()) for ours, theirs in pairs) / len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps (60)")
    args = parser.parse_args()

    torch.manual_seed(0)
    base = smp.Unet("resnet18", encoder_weights=None, classes=3, encoder_depth=3, decoder_channels=(32, 16, 16))
    config = SnellaConfig(
        r=8,
        total_step=args.steps,
        target_modules=r"encoder\.layer\d.*conv\d",  # the convolutions of the encoder's blocks
        modules_to_save=["decoder", "segmentation_head"],
    )
    model = peft.get_peft_model(base, config)
    model.print_trainable_parameters()
    tuner = cast(SnellaModel, model.base_model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for step in range(1, args.steps + 1):
        images, masks = make_batch(8)
        F.cross_entropy(model(images), masks).backward()
        optimizer.step()
        tuner.update_and_allocate(step)
        optimizer.zero_grad()

    images, masks = make_batch(64)
    with torch.no_grad():
        print(f"mIoU: {mean_iou(model.eval()(images).argmax(1), masks):.2f}")


if __name__ == "__main__":
    main()
