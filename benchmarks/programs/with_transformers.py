"""transformers' Trainer as two guides tell a beginner, over the same backbone of timm.

    ENV/bin/python with_transformers.py trainer|peft BED SECONDS SEED     prints a line of JSON

trainer: the guide on image classification (everything is tuned, rate 5e-5, batches of 16, warm-up 0.1).
peft: PEFT's guide on image classification with LoRA (rank and alpha 16, dropout 0.1, the attention's query and value,
rate 5e-3, batches of 128). timm keeps query, key and value in one matrix, which is adapted whole; of a network without
attention its pointwise convolutions are. Both: random resized crops and flips (no flips where left and right matter),
the best epoch on val kept. Both guides add up the gradients of 4 batches, which would leave less than a step an epoch
on a few hundred images: they are not added up.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import peft
import timm
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.programs.filling import filled


class Classifier(nn.Module):
    """A timm model as the Trainer calls one."""

    def __init__(self, bed: Path, about: dict[str, Any]) -> None:
        super().__init__()
        options = {"img_size": about["image_size"]} if "vit" in about["architecture"] else {}
        self.model = timm.create_model(about["architecture"], num_classes=about["classes"], **options)
        missing, unexpected = self.model.load_state_dict(load_file(bed / "weights.safetensors"), strict=False)
        head = tuple(f"{name}." for name in ("head", "classifier"))
        assert not unexpected, unexpected
        assert all(name.startswith(head) for name in missing), missing

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.model(pixel_values)
        found = {"logits": logits}
        return found if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), **found}


def datasets(bed: Path, about: dict[str, Any]) -> dict[str, ImageFolder]:
    """Return the splits, each with its transform."""
    size = about["image_size"]
    last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(about["mean"], about["std"])]
    flip = [] if about["augment"] == "none" else [v2.RandomHorizontalFlip()]
    to_train = v2.Compose([v2.RandomResizedCrop(size), *flip, *last])
    to_see = v2.Compose([v2.Resize(size), v2.CenterCrop(size), *last])
    return {name: ImageFolder(bed / name, to_train if name == "train" else to_see) for name in ("train", "val", "test")}


def adapted(model: Classifier) -> nn.Module:
    names = [name for name, _ in model.named_modules()]
    targets = ["qkv"] if any(name.endswith("qkv") for name in names) else ["conv_pw", "conv_pwl"]
    head = "head" if "model.head" in names else "classifier"
    config = peft.LoraConfig(
        r=16, lora_alpha=16, target_modules=targets, lora_dropout=0.1, bias="none", modules_to_save=[head]
    )
    return peft.get_peft_model(model, config)


def trained(guide: str, bed: Path, about: dict[str, Any], splits: dict, epochs: int, seed: int) -> transformers.Trainer:
    transformers.set_seed(seed)
    model: nn.Module = Classifier(bed, about)
    if guide == "peft":
        model = adapted(model)
    rate, batch = {"trainer": (5e-5, 16), "peft": (5e-3, 128)}[guide]
    arguments = transformers.TrainingArguments(
        tempfile.mkdtemp(),
        learning_rate=rate,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        num_train_epochs=epochs,
        warmup_steps=0.1 if guide == "trainer" else 0,  # a share of all where below 1
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=seed,
    )
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=splits["train"],
        eval_dataset=splits["val"],
        data_collator=lambda rows: {
            "pixel_values": torch.stack([image for image, _ in rows]),
            "labels": torch.tensor([label for _, label in rows]),
        },
        compute_metrics=lambda found: {"accuracy": np.mean(np.argmax(found.predictions, 1) == found.label_ids).item()},
    )
    trainer.train()
    return trainer


def main(guide: str, bed: Path, seconds: float, seed: int) -> None:
    about = json.loads((bed / "bed.json").read_text())
    splits = datasets(bed, about)
    trainer, epochs, took = filled(lambda count: trained(guide, bed, about, splits, count, seed), seconds)
    top1 = trainer.evaluate(splits["test"])["eval_accuracy"]
    versions = {module.__name__: module.__version__ for module in (transformers, peft, timm, torch)}
    print(json.dumps({"top1": top1, "epochs": epochs, "seconds": took, "versions": versions}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
