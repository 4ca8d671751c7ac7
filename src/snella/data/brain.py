"""The bundled segmentation data: slices of the MNI152 brain, from the package nilearn.

A T1 template of 197 x 233 x 189 voxels of 1 mm with maps of grey and white matter, each the average of 152 adults
(Fonov et al., "Unbiased average age-appropriate atlases for pediatric studies", NeuroImage 54 (2011)). The package is
read as files, never imported.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from snella.data.masks import RGB, MaskCode
from snella.data.pairs import Pairs
from snella.errors import UserError

NAME = "brain"
INSTALL = "pip install nibabel && pip install --no-deps nilearn==0.14.1"
FILES = {part: f"mni_icbm152_{part}_tal_nlin_sym_09a_converted.nii.gz" for part in ("t1", "gm", "wm")}
CLASSES = ("background", "grey matter", "white matter")
PALETTE: tuple[RGB, ...] = ((0, 0, 0), (230, 159, 0), (86, 180, 233))
# axial slices, counted from below, in blocks with 5 slices between them that no split has
BLOCKS = {"train": (24, 89), "val": (94, 104), "test": (109, 139)}
NOTES = (
    "source: the MNI152 template in nilearn 0.14.1 (Fonov et al. 2011), axial slices; BSD licence",
    "one brain, the average of 152 adults: it shows that segmentation works, not how well it does on other people",
)


def brain() -> Pairs:
    """Slices as images, classes by the larger of the two maps where it is over 0.5.

    Raises:
        UserError: a package is missing or incomplete.
    """
    _files()
    splits = {split: [(name, name) for name in map(_name, range(*block))] for split, block in BLOCKS.items()}
    blocks = ", ".join(f"{split} {start} to {stop - 1}" for split, (start, stop) in BLOCKS.items())
    return Pairs(
        "brain",
        splits,
        CLASSES,
        MaskCode((0, 1, 2)),
        PALETTE,
        notes=(*NOTES, f"blocks of slices with gaps between them: {blocks}"),
        read=_slice,
        read_mask=_mask,
    )


def _name(z: int) -> str:
    return f"slice-{z:03d}"


def _slice(name: str) -> Image.Image:
    return Image.fromarray(_volumes()[0][_index(name)]).convert("RGB")


def _mask(name: str, code: MaskCode) -> Tensor:
    return torch.from_numpy(_volumes()[1][_index(name)].astype(np.int16))


def _index(name: str) -> int:
    return int(name.removeprefix("slice-"))


@cache
def _volumes() -> tuple[np.ndarray, np.ndarray]:
    """Grey values and classes, both (189, 233, 197) uint8: slices from below, the front of the head up."""
    t1, gm, wm = (_volume(file) for file in _files())
    grey = np.clip(t1 * (255 / t1.max()), 0, 255).round()
    tissue = np.maximum(gm, wm) > 0.5 * max(gm.max(), wm.max())
    classes = np.where(tissue, np.where(gm >= wm, 1, 2), 0)
    return _axial(grey), _axial(classes)


def _axial(volume: np.ndarray) -> np.ndarray:
    # voxels run to the right, the front and the top; rows of an image run down
    return np.ascontiguousarray(volume.transpose(2, 1, 0)[:, ::-1]).astype(np.uint8)


def _volume(file: str) -> np.ndarray:
    import nibabel

    image: Any = nibabel.load(file)  # type: ignore[attr-defined]
    return np.asarray(image.dataobj, dtype=np.float32)


def _files() -> list[str]:
    spec = find_spec("nilearn")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        files = [os.path.join(place, "datasets", "data", file) for file in FILES.values()]
        if all(map(os.path.isfile, files)) and find_spec("nibabel") is not None:
            return files
    missing = "nibabel" if spec and find_spec("nibabel") is None else "nilearn"
    raise UserError(f"data {NAME!r} needs the package {missing}; install it with: {INSTALL}")
