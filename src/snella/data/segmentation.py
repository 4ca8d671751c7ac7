"""Read images with masks: recognise the layout, check every pair, find out how the masks say classes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from snella.data import brain
from snella.data.class_names import FILE, ClassNames, find_names
from snella.data.dataset import SPLITS
from snella.data.images import CHECK_ALL, Progress, UnreadableImage, image_size, is_image, open_image
from snella.data.masks import (
    IGNORE,
    RGB,
    MaskCode,
    MaskData,
    MaskedImages,
    default_palette,
    encoded,
    file_palette,
    mask_values,
    size_difference,
)
from snella.data.pairs import Pair, Pairs, find_pairs, is_paired
from snella.data.paths import existing
from snella.data.splits import ranked
from snella.errors import UserError

BINARY_NAMES = ("background", "foreground")
COUNTED = 5_000  # masks of a split whose pixels are counted, where there are more than CHECK_ALL pairs
ACCEPTED = f"a folder with images/ and masks/, an ADE20K or Pascal VOC folder, or {brain.NAME}"


@dataclass(frozen=True)
class _Seen:
    """One pair, looked at: how often each value or colour occurs in its mask, or why it cannot be used."""

    pair: Pair
    counts: Mapping[int | RGB, int] | None = None
    error: UnreadableImage | None = None


def is_masked(data: str) -> bool:
    """Whether a path or name looks like images with masks; no file is opened."""
    path = os.path.expanduser(data)
    return is_paired(path) if os.path.isdir(path) else data == brain.NAME and not os.path.exists(path)


def read_masked_data(
    data: str,
    *,
    seed: int,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    ignore_index: int | None = None,
    progress: Progress | None = None,
) -> MaskData:
    """Read images with masks into train, val and test.

    Pairs that cannot be read, or differ in size, are left out and listed in `skipped`. Without a names file the classes
    are the values in the training masks, which must be 0 to K-1. Splits that are missing are taken out of train.

    Args:
        data: a folder, or `brain`.
        val_fraction, test_fraction: share of the images for a missing split, above 0 and together below 1.
        ignore_index: a value in the masks that stands for no class.
        progress: called with (pairs checked, pairs in all).

    Raises:
        UserError: data that cannot be trained on; one line with the remedy.
    """
    pairs = _pairs(data)
    names = find_names(pairs.names_beside)
    seen, skipped = _look(data, pairs, progress)
    usable = {split: [look.pair for look in found] for split, found in seen.items()}
    splits = _complete(data, usable, seed, val_fraction, test_fraction)
    kept = {look.pair: look for found in seen.values() for look in found}
    train = [kept[pair] for pair in splits.parts["train"]]
    code, classes, palette, notes = _classes(data, pairs, names, train, ignore_index)
    pixels = {split: _pixels([kept[pair] for pair in part], code) for split, part in splits.parts.items()}
    if sum(count > 0 for count in pixels["train"]) < 2:
        only = classes[int(np.argmax(pixels["train"]))]
        raise UserError(f"{data}: the training masks hold one class only ({only}); segmentation needs two or more")
    return MaskData(
        pairs.layout,
        data,
        classes,
        {split: _images(part, pairs, code) for split, part in splits.parts.items()},
        tuple(skipped),
        (*pairs.notes, *notes, *splits.notes),
        code,
        palette,
        pixels,
    )


def read_masked_test_data(
    data: str,
    *,
    classes: Sequence[str],
    code: MaskCode,
    palette: Sequence[RGB],
    seed: int,
    progress: Progress | None = None,
) -> MaskData:
    """Read data to evaluate a trained model on: only the split "test", its masks read by the model's code.

    Of data without a test split the only split is taken whole, of train and val the val.

    Raises:
        UserError: data that cannot be read; a value in a mask that the model does not know.
    """
    pairs = _pairs(data)
    split = next(split for split in ("test", "all", "val", "train") if split in pairs.splits)
    pairs = replace(pairs, splits={"test": pairs.splits[split]})
    notes = () if split in ("test", "all") else (f"no test split: {split} is used",)
    seen, skipped = _look(data, pairs, progress)
    pixels = _pixels(seen["test"], code)
    images = _images([look.pair for look in seen["test"]], pairs, code)
    return MaskData(
        pairs.layout, data, tuple(classes), {"test": images}, tuple(skipped), (*pairs.notes, *notes),
        code, tuple(palette), {"test": pixels},
    )  # fmt: skip


def _pairs(data: str) -> Pairs:
    path = os.path.expanduser(data)
    try:
        if not os.path.exists(path):
            if data == brain.NAME:
                return brain.brain()
            existing(path, others=(brain.NAME,), remedy=f"give {ACCEPTED}")
        if os.path.isdir(path):
            return find_pairs(path)
    except OSError as error:
        raise UserError(f"{error.filename or data} cannot be read: {error.strerror or error}; check it") from None
    if is_image(os.path.basename(path)):
        raise UserError(f"{path} is a single image; give the folder that holds images/ and masks/")
    if path.lower().endswith((".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")):
        raise UserError(f"{path} is an archive; unpack it and give the folder")
    raise UserError(f"{path} is no folder of images with masks; give {ACCEPTED}")


# ---- looking at every pair


def _look(data: str, pairs: Pairs, progress: Progress | None) -> tuple[dict[str, list[_Seen]], list[UnreadableImage]]:
    """The pairs that can be used, by split, and what is wrong with the others."""
    total = sum(map(len, pairs.splits.values()))
    if not total:
        raise UserError(f"{data} names no image; add images with masks")
    many = total > CHECK_ALL
    step = {split: -(-len(found) // COUNTED) if many else 1 for split, found in pairs.splits.items()}
    items = [
        (split, pair, i % step[split] == 0) for split, found in pairs.splits.items() for i, pair in enumerate(found)
    ]

    def look(item: tuple[str, Pair, bool]) -> _Seen:
        _, pair, count = item
        try:
            return _Seen(pair, _checked(pair, pairs, count))
        except UnreadableImage as error:
            return _Seen(pair, error=error)

    usable: dict[str, list[_Seen]] = {split: [] for split in pairs.splits}
    skipped = []
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for done, ((split, _, _), seen) in enumerate(zip(items, pool.map(look, items), strict=True), start=1):
            if seen.error:
                skipped.append(seen.error)
            else:
                usable[split].append(seen)
            if progress:
                progress(done, len(items))
    for split, found in usable.items():
        if pairs.splits[split] and not found:
            where = "" if split == "all" else f" of {split}"
            raise UserError(f"{data}: no image{where} can be used, the first: {skipped[0]}; check the files")
    return usable, skipped


def _checked(pair: Pair, pairs: Pairs, count: bool) -> dict[int | RGB, int]:
    """How often each value of the mask occurs; {} where it is not counted."""
    image, mask = pair
    if pairs.read is not open_image:
        values, size = pairs.read_mask(mask, MaskCode((0,))).numpy().astype(np.int32), pairs.read(image).size
    elif not count:
        size, shape = image_size(image), image_size(mask)
        if size != shape:
            raise UnreadableImage(mask, size_difference(shape[::-1], size))
        return {}
    else:
        values, size = mask_values(mask), open_image(image).size
    if values.shape[:2] != size[::-1]:
        raise UnreadableImage(mask, size_difference(values.shape, size))
    return _counts(values)


def _counts(values: np.ndarray) -> dict[int | RGB, int]:
    if values.ndim == 2:
        counts = np.bincount(values.ravel())
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    numbers, counts = np.unique(values[..., 0] << 16 | values[..., 1] << 8 | values[..., 2], return_counts=True)
    return {(n >> 16, n >> 8 & 255, n & 255): count for n, count in zip(numbers.tolist(), counts.tolist(), strict=True)}


def _pixels(seen: Sequence[_Seen], code: MaskCode) -> tuple[int, ...]:
    """Pixels of each class. Raises UserError where a value stands for none."""
    total = np.zeros(len(code.values), dtype=np.int64)
    for look in seen:
        if not look.counts:
            continue
        keys = list(look.counts)
        values = np.array(keys, dtype=np.int32).reshape(1, len(keys), -1)
        try:
            classes = encoded(values[..., 0] if values.shape[2] == 1 else values, code, look.pair[1])[0].numpy()
        except UnreadableImage as error:
            raise UserError(f"{error}; correct the mask, name the classes in {FILE}, or pass --ignore-index") from None
        counts = np.array(list(look.counts.values()))
        np.add.at(total, classes[classes != IGNORE], counts[classes != IGNORE])
    return tuple(total.tolist())


# ---- which classes there are


def _classes(
    data: str, pairs: Pairs, names: ClassNames | None, train: Sequence[_Seen], ignore_index: int | None
) -> tuple[MaskCode, tuple[str, ...], tuple[RGB, ...], list[str]]:
    """How the masks say the classes, the classes' names and colours, and what there is to say about it."""
    ignore = () if ignore_index is None else (ignore_index,)
    first = train[0].pair[1]
    if pairs.code is not None and pairs.names is not None:
        code = replace(pairs.code, ignore=tuple(sorted({*pairs.code.ignore, *ignore})))
        palette = pairs.palette or _palette(first, code, background=pairs.names[0] == "background")
        return code, pairs.names, palette, []
    found = {value for look in train for value in look.counts or ()}
    if names is not None:
        return _named(names, first, ignore)
    colored = next((value for value in found if isinstance(value, tuple)), None)
    if colored is not None:
        place = next(look.pair[1] for look in train if colored in (look.counts or ()))
        raise UserError(
            f"{place} is colour-coded ({colored}, for one); write {FILE} beside the folders, "
            '[{"name": "sky", "color": [70, 130, 180]}, ...]'
        )
    values = sorted(value for value in found if isinstance(value, int) and value not in ignore)
    jpeg = any(look.pair[1].lower().endswith((".jpg", ".jpeg")) for look in train)
    if pairs.read is open_image and (jpeg or values in ([0, 255], [255])) and not ignore:
        note = "masks are read as two classes: grey levels above half are foreground"
        return MaskCode((0, 1), binary=True), BINARY_NAMES, default_palette(2, background=True), [note]
    if values != list(range(len(values))):
        shown = ", ".join(map(str, values[:12])) + (", ..." if len(values) > 12 else "")
        raise UserError(
            f"{data}: the training masks have the values {shown}; number the classes 0 to {len(values) - 1}, name them "
            f"in {FILE}, or pass --ignore-index N for a value that is no class"
        )
    code = MaskCode(tuple(values), ignore=ignore)
    classes = BINARY_NAMES if len(values) == 2 else tuple(map(str, values))
    return code, classes, _palette(first, code, background=True), []


def _named(
    names: ClassNames, first: str, ignore: tuple[int, ...]
) -> tuple[MaskCode, tuple[str, ...], tuple[RGB, ...], list[str]]:
    background = names.names[0].lower() in ("background", "unlabeled", "other")
    colors = names.colors or default_palette(len(names.names), background=background)
    if names.values is None:
        return MaskCode(tuple(range(len(names.names))), colors, ignore), names.names, colors, []
    kept = [i for i, value in enumerate(names.values) if value not in ignore]
    code = MaskCode(tuple(names.values[i] for i in kept), ignore=ignore)
    palette = tuple(colors[i] for i in kept) if names.colors else _palette(first, code, background=background)
    return code, tuple(names.names[i] for i in kept), palette, []


def _palette(mask: str, code: MaskCode, *, background: bool) -> tuple[RGB, ...]:
    """The colours that a mask file has for the values, or our own where it has none."""
    found = file_palette(mask) if os.path.isfile(mask) else None
    if found and max(code.values) < len(found):
        colors = tuple(found[value] for value in code.values)
        if len(set(colors)) == len(colors):
            return colors
    return default_palette(len(code.values), background=background)


# ---- splits


@dataclass(frozen=True)
class _Splits:
    parts: dict[str, list[Pair]]
    notes: tuple[str, ...] = ()


def _complete(
    data: str, splits: dict[str, list[Pair]], seed: int, val_fraction: float, test_fraction: float
) -> _Splits:
    """Take the splits that are missing out of train, or out of the one split there is."""
    if "all" in splits:
        splits["train"] = splits.pop("all")
    if not splits.get("train"):
        raise UserError(f"{data} has {' and '.join(splits)} but no train split; add one to train on")
    before = splits["train"]
    order = [before[i] for i in ranked([os.path.basename(image) for image, _ in before], seed)]
    notes = []
    for split, share in (("val", val_fraction), ("test", test_fraction)):
        if split in splits:
            continue
        count = max(1, round(share * len(before)))
        splits[split], order = sorted(order[:count]), order[count:]
        notes.append(f"{split} ({count} images)")
    if not order:
        raise UserError(f"{data}: {len(before)} images are too few to take {' and '.join(notes)} out of; add images")
    if not notes:
        return _Splits({split: splits[split] for split in SPLITS})
    splits["train"] = sorted(order)
    said = f"{' and '.join(notes)} taken out of the {len(before)} training images, seed {seed}"
    return _Splits({split: splits[split] for split in SPLITS}, (said,))


def _images(part: Sequence[Pair], pairs: Pairs, code: MaskCode) -> MaskedImages:
    images, masks = tuple(image for image, _ in part), tuple(mask for _, mask in part)
    return MaskedImages(images, masks, code, pairs.read, pairs.read_mask)
