"""`wds/FOLDER`: WebDataset shards, read once into memory because they have no access by index."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from PIL import Image, ImageOps

from snella.data.bundled.timm_entries import create, indexed_entries, known_splits
from snella.data.folders.names import SPLIT_NAMES
from snella.data.images import UnreadableImage, decode, to_rgb
from snella.data.listing import Listing
from snella.data.paths import check_exists
from snella.errors import UserError

MOST_SHARDS = 100_000
_LOGGER = "timm.data.readers.reader_wds"
# how timm's reader logs a sample that it leaves out
_FAILURE, _FAILURE_END = "Handling webdataset error (", "). Ignoring."


@dataclass(frozen=True)
class _Images:
    """Opens "SPLIT#INDEX" from PNG bytes."""

    encoded: dict[str, bytes]

    def __call__(self, path: str) -> Image.Image:
        return decode(io.BytesIO(self.encoded[path]), path)


def read(folder: str) -> Listing:
    """List all shards of a folder: by its info file, or *.tar with train, val or test in their names (or none).

    Raises:
        UserError: package or folder missing, no shard, no readable sample in a split.
    """
    if find_spec("webdataset") is None:
        raise UserError(f"wds/{folder} needs the package webdataset; install it with: pip install 'snella[wds]'")
    folder = os.path.expanduser(folder)
    check_exists(folder, remedy="write wds/FOLDER, a folder of .tar shards")
    encoded: dict[str, bytes] = {}
    labels: dict[str, list[int]] = {}
    skipped: list[UnreadableImage] = []
    for split, shards in _splits(folder).items():
        _check_count(folder, shards)
        labels[split] = []
        with _logged() as problems:  # timm logs what it cannot read and goes on
            # no mode: timm would clip 16-bit images to convert them
            for image, label in create("wds/", folder, shards, input_img_mode=""):
                name = f"{split}#{len(labels[split])}"
                try:
                    encoded[name] = _png(image, name)
                except UnreadableImage as error:
                    skipped.append(error)
                else:
                    labels[split].append(label)
        failures = [problem for problem in problems if problem.startswith(_FAILURE)]
        skipped += [
            UnreadableImage(f"{split} sample", failure.removeprefix(_FAILURE).removesuffix(_FAILURE_END))
            for failure in failures
        ]
        if not labels[split]:
            reason = str(skipped[-1]) if skipped else "the shards are empty"
            raise UserError(
                f"wds/{folder} has no readable sample in {split} ({reason}); expected NAME.jpg and NAME.cls"
            )
    size = sum(map(len, encoded.values())) / 1e6
    note = f"the shards are read once and held in memory: {len(encoded)} images, {size:.1f} MB"
    classes, entries = indexed_entries(f"wds/{folder}", labels, None)
    return Listing("wds", "", classes, entries, read=_Images(encoded), notes=(note,), skipped=tuple(skipped))


def _png(image: Image.Image, name: str) -> bytes:
    buffer = io.BytesIO()
    to_rgb(ImageOps.exif_transpose(image), name).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _splits(folder: str) -> dict[str, str]:
    """Map our split names to what timm's reader takes: a split of the info file, or shards joined by "::"."""
    from timm.data.readers.reader_wds import _load_info

    with _logged():
        info = _load_info(folder).get("splits", {})
    if info:
        splits, _ = known_splits(list(info))
        if not splits:
            raise UserError(f"wds/{folder} has no train split (its info file has {', '.join(info)}); name one train")
        return splits
    shards: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".tar"):
            words = name.lower().replace("_", "-").replace(".", "-").split("-")
            split = next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "all")
            shards.setdefault(split, []).append(name)
    if not shards:
        raise UserError(f"wds/{folder} holds no .tar shard; give the folder that does")
    if "all" in shards and len(shards) > 1:
        raise UserError(f"wds/{folder}: {shards['all'][0]} names no split as the others do; call it train-..., val-...")
    return {split: "::".join(names) for split, names in shards.items()}


def _check_count(folder: str, shards: str) -> None:
    """Refuse names whose braces stand for more shards than anybody has: they are written out in memory."""
    for name in shards.split("::"):
        stands_for = math.prod(_alternatives(braces) for braces in re.findall(r"\{([^{}]*)\}", name))
        if stands_for > MOST_SHARDS:
            raise UserError(
                f"wds/{folder}: {name} stands for {stands_for} shards, more than {MOST_SHARDS}; name those there are"
            )


def _alternatives(braces: str) -> int:
    """Return how many texts 0..9, 0..9..2, a..z or a,b,c between braces stands for."""
    first, _, last = braces.partition("..")
    last = last.partition("..")[0]
    if first.isdecimal() and last.isdecimal():
        return abs(int(last[:18]) - int(first[:18])) + 1
    return 26 if last else braces.count(",") + 1


@contextlib.contextmanager
def _logged() -> Iterator[list[str]]:
    """Collect what timm's reader logs inside, instead of its being printed."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger(_LOGGER)
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
