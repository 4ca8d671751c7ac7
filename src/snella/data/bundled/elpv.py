"""The bundled data sets `elpv...`: electroluminescence images of solar cells, from the package elpv-dataset.

2,624 grey images of 300 x 300 pixels with a defect probability (0, 1/3, 2/3, 1) and a cell type (mono- or
polycrystalline). Deitsch et al., "Automatic classification of defective photovoltaic module cells in
electroluminescence images", Solar Energy 185 (2019). The package is read as files, never imported.
"""

from __future__ import annotations

import os

from snella.data.bundled.packages import data_file
from snella.data.listing import Listing
from snella.data.splits import drawn_splits

INSTALL = "pip install --no-deps elpv-dataset==1.0.0.post1"
TRAIN, VAL = 800, 200  # images; the rest is test
TYPE_TRAIN = 100  # for the cell type, which few images teach
ONE_TYPE = {"train": 300, "val": 150}  # of the cells of one type

CLASSES = {
    "elpv": ("functional", "defective"),
    "elpv-levels": ("functional", "probably-functional", "probably-defective", "defective"),
    "elpv-type": ("mono", "poly"),
    "elpv-mono": ("functional", "defective"),
    "elpv-poly": ("functional", "defective"),
}
LEVELS = (0.0, 1 / 3, 2 / 3, 1.0)  # the probabilities that the classes of elpv-levels stand for
NOTES = (
    "source: elpv-dataset 1.0.0.post1, electroluminescence images of solar cells",
    "licence: CC BY-NC-SA 4.0 (not for commercial use)",
)
BASELINE = (
    "published baseline for defective or not: 88.4 % accuracy (Deitsch et al. 2019, a fine-tuned VGG-19, "
    f"trained on 1,968 images in a split of its own; here {TRAIN})"
)
EASY_TYPE = "easy: a linear probe of a pre-trained ViT finds 99 % of the cell types from 20 images"


def elpv(name: str, *, seed: int) -> Listing:
    """List `elpv` (defective: probability above 1/2), `elpv-levels` (the four probabilities), `elpv-type`, or the cells
    of one type as `elpv` labels them (`elpv-mono`, `elpv-poly`).

    800 train, 200 val, the rest test, stratified by probability and cell type; one split for the first two names.
    The cell type is learnt from 100; of the cells of one type 300 train and 150 val.

    Raises:
        UserError: the package is missing or incomplete.
    """
    folder = os.path.dirname(data_file(name, "elpv-dataset", INSTALL, "elpv_dataset", "data", "labels.csv"))
    names, levels, types = [], [], []
    with open(os.path.join(folder, "labels.csv"), encoding="utf-8") as file:
        for line in file:
            image, probability, cell_type = line.split()
            if name in ("elpv-mono", "elpv-poly") and cell_type != name.removeprefix("elpv-"):
                continue
            names.append(image)
            levels.append(round(3 * float(probability)))
            types.append(CLASSES["elpv-type"].index(cell_type))
    labels = {"elpv-levels": levels, "elpv-type": types}.get(name, [int(level >= 2) for level in levels])
    counts = {"train": TYPE_TRAIN if name == "elpv-type" else TRAIN, "val": VAL}
    counts = ONE_TYPE if name in ("elpv-mono", "elpv-poly") else counts
    splits = drawn_splits(names, labels, counts, seed=seed, strata=list(zip(levels, types, strict=True)))
    sizes = f"{counts['train']} train, {counts['val']} val, the rest test"
    made = f"{sizes}, stratified by defect probability and cell type, seed {seed}"
    notes = (*NOTES, made, EASY_TYPE) if name == "elpv-type" else (*NOTES, made)
    levels = LEVELS if name == "elpv-levels" else ()
    caveat = BASELINE if name == "elpv" else ""
    return Listing("elpv", folder, CLASSES[name], splits, notes=notes, caveat=caveat, levels=levels)
