"""fastai as its documentation tells a beginner: `ImageDataLoaders.from_folder`, `vision_learner`, `fine_tune(epochs)`.

    ENV/bin/python with_fastai.py BED SECONDS SEED     prints a line of JSON

Batches of 64, augmentation by `aug_transforms` (without flips where the task is one in which left and right matter),
rates of `fine_tune`'s default. The epochs fill the time, the frozen one before them included.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import fastai  # pyright: ignore[reportMissingImports] (in an environment of its own)
import timm
import torch
from fastai.vision.all import (  # pyright: ignore[reportMissingImports]
    ImageDataLoaders,
    Normalize,
    Resize,
    ResizeMethod,
    accuracy,
    aug_transforms,
    get_image_files,
    set_seed,
    vision_learner,
)
from safetensors.torch import load_file

from benchmarks.programs.filling import filled


def learner(bed: Path, about: dict, seed: int):
    """Return a learner of the bed's data and weights, with the body frozen as for pre-trained ones."""
    set_seed(seed, reproducible=True)
    size = about["image_size"]
    loaders = ImageDataLoaders.from_folder(
        bed,
        train="train",
        valid="val",
        item_tfms=Resize(size, ResizeMethod.Squish),
        batch_tfms=aug_transforms(do_flip=about["augment"] != "none"),
        bs=min(64, about["images"]["train"]),
        num_workers=0,
        device=torch.device("cpu"),
    )
    loaders.add_tfms([Normalize.from_stats(about["mean"], about["std"], cuda=False)], "after_batch")
    options = {"img_size": size} if "vit" in about["architecture"] else {}
    found = vision_learner(loaders, about["architecture"], pretrained=False, metrics=accuracy, **options)
    state = load_file(bed / "weights.safetensors")
    body = found.model[0].model
    missing, unexpected = body.load_state_dict(state, strict=False)
    assert not missing, (missing, unexpected)
    found.freeze()
    return found


def main(bed: Path, seconds: float, seed: int) -> None:
    about = json.loads((bed / "bed.json").read_text())

    def train(epochs: int):
        tuned = learner(bed, about, seed)
        with tuned.no_bar(), tuned.no_logging():
            tuned.fine_tune(epochs)
        return tuned

    tuned, epochs, took = filled(train, seconds)
    with tuned.no_bar():
        loader = tuned.dls.test_dl(get_image_files(bed / "test"), with_labels=True)
        predictions, labels = tuned.get_preds(dl=loader)
    top1 = (predictions.argmax(1) == labels).float().mean().item()
    versions = {"fastai": fastai.__version__, "torch": torch.__version__, "timm": timm.__version__}
    print(json.dumps({"top1": top1, "epochs": epochs, "seconds": took, "versions": versions}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
