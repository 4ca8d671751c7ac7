"""Tune a model of transformers with its `Trainer`: a callback divides the budget among the layers after each step.

    pip install "snella[transformers]"
    python examples/transformers_trainer.py --out runs/trainer --epochs 3

The ViT is tiny and untrained and the images are made up (the brightest channel is the class), so it takes seconds on a
CPU. For real use take `AutoModelForImageClassification.from_pretrained(NAME, num_labels=...)` and your own data set.
"""

import argparse

import peft
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from snella import AllocationCallback, SnellaConfig


class BrightChannel(Dataset[dict[str, Tensor]]):
    """Noise with one brighter channel, the image's class; items have the names of the model's arguments."""

    def __init__(self, count: int) -> None:
        self.labels = torch.arange(count) % 3
        self.images = torch.randn(count, 3, 32, 32)
        self.images[torch.arange(count), self.labels] += 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="runs/trainer", help="folder for checkpoints and the adapter (runs/trainer)")
    parser.add_argument("--epochs", type=int, default=3, help="passes over the images (3)")
    args = parser.parse_args()

    torch.manual_seed(0)
    vit = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    vit.num_labels = 3
    base = ViTForImageClassification(vit)
    before = {name: parameter.clone() for name, parameter in base.named_parameters()}
    # total_step stays None: the callback takes the Trainer's number of steps
    model = peft.get_peft_model(base, SnellaConfig(r=8, target_sparsity=0.7, final_warmup=5))
    arguments = TrainingArguments(args.out, num_train_epochs=args.epochs, learning_rate=3e-3, report_to="none")
    data = BrightChannel(240)
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data, callbacks=[AllocationCallback()])
    trainer.train()
    print(f"loss: {trainer.evaluate()['eval_loss']:.3f}")
    trainer.save_model(args.out)

    merged = dict(model.merge_and_unload().named_parameters())
    same = [merged[name] == old for name, old in before.items() if old.ndim == 2 and "classifier" not in name]
    print(f"share of the weights left as they were: {torch.cat([t.flatten() for t in same]).float().mean():.3f}")


if __name__ == "__main__":
    main()
