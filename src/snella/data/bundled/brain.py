"""The bundled set for segmentation: slices of a brain, from the files of the package nilearn.

MNI152 (ICBM 2009a, 1 mm): the T1-weighted average of 152 adults, and for each voxel how probably it is grey and white
matter. Fonov et al., "Unbiased average age-appropriate atlases for pediatric studies", NeuroImage 54 (2011). The
package is read as files, never imported.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec

import numpy as np
from PIL import Image
from torch import Tensor

from snella.data.bundled.packages import package_file
from snella.data.masks.class_names import ClassNames
from snella.data.masks.files import RGB, MaskCode, to_classes
from snella.data.masks.listing import MaskListing
from snella.errors import UserError

NAME = "brain"
INSTALL = "pip install nibabel && pip install --no-deps nilearn==0.14.1"
CLASSES = ("background", "grey matter", "white matter")
PALETTE: tuple[RGB, ...] = ((0, 0, 0), (0, 103, 165), (243, 195, 0))
TISSUE = 0.02  # share of grey and white matter from which a slice counts

# Slices (mm steps, upwards) first to last. Neighbours look alike, so 5 between the blocks are left out. Each block has
# a good share of all three classes, and training on 65 slices ends in a minute.
BLOCKS = {"train": (24, 88), "val": (94, 103), "test": (109, 138)}
NOTES = (
    "source: nilearn's files of MNI152 (ICBM 2009a; Fonov et al. 2011), shipped under nilearn's BSD licence",
    "one brain, the average of 152 adults: fit to try a method, not to judge it on patients",
    "classes: the likelier of grey and white matter where it is over 0.5, else background",
    "splits: fixed blocks of axial slices, "
    + ", ".join(f"{split} {first} to {last}" for split, (first, last) in BLOCKS.items())
    + ", 5 slices between them left out",
)


@dataclass(frozen=True)
class Slices:
    """Axial slices by name ("z-021"), front up, the subject's left on the left. Volumes are read once a process."""

    folder: str

    def read(self, name: str) -> Image.Image:
        """Return the T1 image, RGB of three equal channels, 197 x 233 pixels; one scale for all slices."""
        t1, _ = _volumes(self.folder)
        return Image.fromarray(_upright(t1, name)).convert("RGB")

    def read_mask(self, name: str, code: MaskCode) -> Tensor:
        """Return class indices, (233, 197) int16. Raises UnreadableImage where the code lacks one of the three."""
        _, classes = _volumes(self.folder)
        return to_classes(_upright(classes, name).astype(np.uint16), code, name)


def brain(name: str = NAME, *, seed: int) -> MaskListing:
    """List the slices in their blocks, without those that hold hardly any brain.

    Args:
        seed: draws nothing here; every bundled set is listed alike.

    Raises:
        UserError: a package is missing or incomplete.
    """
    slices = Slices(_folder())
    _, classes = _volumes(slices.folder)
    tissue = (classes > 0).mean(axis=(0, 1))
    splits = {
        split: [(f"z-{z:03d}", f"z-{z:03d}") for z in range(first, last + 1) if tissue[z] > TISSUE]
        for split, (first, last) in BLOCKS.items()
    }
    names = ClassNames(name, CLASSES, (0, 1, 2), PALETTE)
    return MaskListing(name, "", splits, names, NOTES, slices.read, slices.read_mask)


def _upright(volume: np.ndarray, name: str) -> np.ndarray:
    """Return a slice of a volume whose axes run right, front, up, as rows from the front and columns from the left."""
    return np.ascontiguousarray(volume[:, ::-1, int(name[2:])].T)


@lru_cache(maxsize=1)
def _volumes(folder: str) -> tuple[np.ndarray, np.ndarray]:
    """Read T1 as 8 bits and the classes 0 to 2, each (197, 233, 189) uint8."""
    import nibabel  # an extra, and slow to import

    t1, grey, white = (
        np.asarray(nibabel.as_closest_canonical(nibabel.load(os.path.join(folder, _file(kind)))).dataobj)  # pyright: ignore[reportAttributeAccessIssue] (FileBasedImage has none)
        for kind in ("t1", "gm", "wm")
    )
    grey, white = (values.astype(np.float32) / values.max() for values in (grey, white))  # the files hold 0 to 255
    classes = np.where(np.maximum(grey, white) > 0.5, np.where(white > grey, 2, 1), 0)
    scaled = t1.astype(np.float32) * (255 / t1.max())
    return scaled.round().astype(np.uint8), classes.astype(np.uint8)


def _folder() -> str:
    files = [package_file("nilearn", "datasets", "data", _file(kind)) for kind in ("t1", "gm", "wm")]
    if find_spec("nibabel") is None or files[0] is None or None in files:
        raise UserError(f"data {NAME!r} needs the packages nibabel and nilearn; install them with: {INSTALL}")
    return os.path.dirname(files[0])


def _file(kind: str) -> str:
    return f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
