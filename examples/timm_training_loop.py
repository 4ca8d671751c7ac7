"""Tune a timm model in your own training loop; save the adapter, load it, merge it.

    python examples/timm_training_loop.py --out runs/timm --steps 60

The model is tiny and untrained and the images are made up (the brightest channel is the class), so it takes seconds on
a CPU. For real use give `create_model` a real name with `pretrained=True`, and bring your own images.
"""

import argparse
from pathlib import Path
from typing import cast

import peft
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snella import SnellaConfig, SnellaModel


def make_base() -> nn.Module:
    """Return the model to tune, with the same weights at every call, as a pre-trained one has."""
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=3, img_size=32)


def make_batch(size: int) -> tuple[Tensor, Tensor]:
    """Return images (size, 3, 32, 32) and labels (size,)."""
    images, labels = torch.randn(size, 3, 32, 32), torch.randint(3, (size,))
    images[torch.arange(size), labels] += 1
    return images, labels


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/timm"), help="folder for the adapter (runs/timm)")
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps (60)")
    args = parser.parse_args()

    config = SnellaConfig(r=8, target_sparsity=0.7, total_step=args.steps, final_warmup=args.steps // 4)
    model = peft.get_peft_model(make_base(), config)
    model.print_trainable_parameters()
    tuner = cast(SnellaModel, model.base_model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for step in range(1, args.steps + 1):
        images, labels = make_batch(16)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        record = tuner.update_and_allocate(step)  # after the step, before the gradients are cleared
        optimizer.zero_grad()
        if record is not None and step % 10 == 9:  # None where budgets stay, as after the last step
            print(f"step {step}: sparsity {1 - sum(record['kept'].values()) / sum(record['size'].values()):.3f}")
    model.save_pretrained(str(args.out))  # factors, budgets and the head

    images, labels = make_batch(256)
    with torch.no_grad():
        tuned = model.eval()(images)
        loaded = peft.PeftModel.from_pretrained(make_base(), args.out)  # PEFT knows the method: snella is imported
        merged = loaded.eval().merge_and_unload()  # a timm model again
        print(f"accuracy: {(merged(images).argmax(1) == labels).float().mean():.2f}")
        print(f"largest difference of the merged logits: {(merged(images) - tuned).abs().max():.1e}")


if __name__ == "__main__":
    main()
