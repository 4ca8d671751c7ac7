"""`wds/FOLDER`: WebDataset shards, read once into memory because they have no access by index."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from PIL import Image

from snella.data.bundled.timm_entries import create, indexed_entries, known_splits
from snella.data.folders.names import SPLIT_NAMES
from snella.data.images import SUFFIXES, ImageReader, UnreadableImage, decode
from snella.data.listing import Listing
from snella.data.paths import check_exists
from snella.errors import UserError, short_reason
from snella.machine import free_memory

MOST_SHARDS = 100_000
IMAGES = tuple(dict.fromkeys(("jpg", "png", "webp", *(suffix[1:] for suffix in SUFFIXES))))  # timm's order first
_LOGGER = "timm.data.readers.reader_wds"


@dataclass(frozen=True)
class _Images(ImageReader):
    """Opens "SPLIT#INDEX" from the bytes of files."""

    encoded: Mapping[str, bytes] = field(default_factory=dict)

    def decoded(self, name: str) -> Image.Image:
        return decode(io.BytesIO(self.encoded[name]), name)


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
        for sample, key in _samples(folder, shards):
            name = f"{split}#{len(labels[split])}"
            try:
                label, content = _parts(sample, key)
                decode(io.BytesIO(content), name)
            except UnreadableImage as error:
                skipped.append(UnreadableImage(f"{split} sample {sample.get('__key__', '')}".strip(), error.reason))
            else:
                if label is not None:
                    encoded[name] = content
                    labels[split].append(label)
        if not labels[split]:
            reason = str(skipped[-1]) if skipped else "the shards are empty"
            raise UserError(
                f"wds/{folder} has no readable sample in {split} ({reason}); expected NAME.jpg and NAME.cls"
            )
    size = sum(map(len, encoded.values())) / 1e6
    note = f"the shards are read once and held in memory: {len(encoded)} images, {size:.1f} MB"
    classes, entries = indexed_entries(f"wds/{folder}", labels, None)
    return Listing("wds", "", classes, entries, read=_Images(encoded=encoded), notes=(note,), skipped=tuple(skipped))


def _samples(folder: str, shards: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each sample as the bytes of its files by ending, and the JSON's key of the label, "" for the .cls file.

    timm says which files those are; its own decoding would clip 16-bit images and take one frame of several.
    """
    webdataset: Any = import_module("webdataset")  # an extra
    try:
        with _quiet():
            chosen = create("wds/", folder, shards).reader.split_info
            paths = [os.path.join(folder, name) for name in chosen.filenames]
            key = str(chosen.alt_label or "")
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"wds/{folder}: its info file is not one of shards ({short_reason(error)}); mend it") from None
    size, free = sum(os.path.getsize(path) for path in paths if os.path.isfile(path)), free_memory()
    if size > free:
        raise UserError(
            f"wds/{folder}: the shards, which are held in memory, are {size / 1e9:,.1f} GB; {free / 1e9:,.1f} GB are "
            "free: unpack them into class folders"
        )
    faults: list[Exception] = []
    source = webdataset.DataPipeline(
        webdataset.SimpleShardList(paths),
        webdataset.tarfile_to_samples(handler=lambda error: faults.append(error) or True),
    )
    for sample in source:
        yield sample, key
    for error in faults:
        yield {"__fault__": f"a shard that is not whole: {error.args[0] if error.args else error}"}, key


def _parts(sample: Mapping[str, Any], key: str) -> tuple[int | None, bytes]:
    """Return a sample's label, None where it has none (-1), and its image. Raises UnreadableImage for one without."""
    if "__fault__" in sample:
        raise UnreadableImage("", sample["__fault__"])
    try:
        label = int(json.loads(sample["json"])[key] if key else sample["cls"])
    except (KeyError, ValueError, TypeError, RecursionError):
        where = f"{key!r} in its .json" if key else "its .cls file"
        raise UnreadableImage("", f"{where} does not hold a class number") from None
    content = next((sample[ending] for ending in IMAGES if ending in sample), None)
    if not content:
        raise UnreadableImage("", f"no image (.{', .'.join(IMAGES[:3])} ...)")
    return None if label < 0 and key else label, content


def _splits(folder: str) -> dict[str, str]:
    """Map our split names to what timm's reader takes: a split of the info file, or shards joined by "::"."""
    from timm.data.readers.reader_wds import _load_info

    with _quiet():
        found = _load_info(folder)
    info = found.get("splits", {}) if isinstance(found, dict) else None
    if not isinstance(info, dict):
        raise UserError(f"wds/{folder}: its info file is not one of shards; mend it, or remove it")
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
def _quiet() -> Iterator[None]:
    """Keep what timm's reader logs inside from being printed."""
    logger = logging.getLogger(_LOGGER)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
