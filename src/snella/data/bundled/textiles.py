"""The bundled data set `textiles`: simulated pictures of woven fabric, from the package conformal-clip-data.

2,000 grey images of 250 x 250 pixels made by the R package spc4sts: 1,000 of nominal weave, 500 with a local defect,
500 whose two parameters are 5 % lower all over. Megahed et al., "Adapting OpenAI's CLIP Model for Few-Shot Image
Inspection in Manufacturing Quality Control", arXiv 2501.12596. The package is read as files, never imported.
"""

from __future__ import annotations

import os

from snella.data.bundled.packages import package_file
from snella.data.listing import Listing
from snella.data.splits import split_counts
from snella.errors import UserError

NAME = "textiles"
INSTALL = "pip install --no-deps conformal-clip-data==0.1.4"
COUNTS = {"nominal": 1000, "local": 500, "global": 500}  # images of each class
TRAIN, VAL = 200, 200  # images; the rest is test
NOTES = (
    "source: conformal-clip-data 0.1.4, textiles simulated by spc4sts (Bui and Apley 2020; Megahed et al. 2025)",
    "licence: MIT",
    "a local defect is some 10 x 20 of the 250 x 250 pixels: small inputs lose it",
)


def textiles(name: str = NAME, *, seed: int) -> Listing:
    """List the three classes, stratified: 200 train, 200 val, the rest test.

    Raises:
        UserError: the package is missing or incomplete.
    """
    folder = package_file("conformal_clip_data", "data", "textile_images", "simulated")
    if folder is None:
        raise UserError(f"data {name!r} needs the package conformal-clip-data; install it with: {INSTALL}")
    names, labels = [], []
    for label, (kind, count) in enumerate(COUNTS.items()):
        place = os.path.join(folder, kind)
        files = sorted(file for file in os.listdir(place) if file.endswith(".jpg")) if os.path.isdir(place) else []
        if len(files) != count:
            raise UserError(f"{place} holds {len(files)} images for {count}; install it anew with: {INSTALL}")
        names += [f"{kind}/{file}" for file in files]
        labels += [label] * count
    parts = split_counts(names, labels, {"train": TRAIN, "val": VAL}, seed=seed)
    parts["test"] = parts.pop("rest")
    splits = {part: [(names[i], labels[i]) for i in indices] for part, indices in parts.items()}
    made = f"{TRAIN} train, {VAL} val, the rest test, stratified by class, seed {seed}"
    return Listing(NAME, folder, tuple(COUNTS), splits, notes=(*NOTES, made))
