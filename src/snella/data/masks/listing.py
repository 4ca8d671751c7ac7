"""What a layout of images with masks says it holds, before any of them is opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

from snella.data.checks import ImageFacts
from snella.data.images import UnreadableImage, open_image
from snella.data.masks.class_names import ClassNames
from snella.data.masks.files import MaskCode, read_mask

Pair = tuple[str, str]  # names of image and mask, relative to the listing's folder, with "/"


@dataclass(frozen=True)
class MaskListing:
    """The pairs that a layout of images with masks declares, before any file is opened; `splits` as in a `Listing`."""

    layout: str
    folder: str
    splits: dict[str, list[Pair]]
    names: ClassNames | None = None
    notes: tuple[str, ...] = ()
    read: Callable[[str], Image.Image] = open_image
    read_mask: Callable[[str, MaskCode], Tensor] = read_mask
    caveat: str = ""
    skipped: tuple[UnreadableImage, ...] = ()  # found unusable while listing
    facts: Mapping[str, ImageFacts] = field(default_factory=dict)  # of the images, once they are checked
    groups: Mapping[str, str] = field(default_factory=dict)  # by image's name, as in a `Listing`

    @property
    def files(self) -> bool:
        """Tell whether masks are files; others are drawn, or those of a package, which `read_mask` knows by name."""
        return self.read_mask is read_mask

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)
