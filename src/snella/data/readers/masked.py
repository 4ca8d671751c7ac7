"""Read images with masks: recognise the layout, check every pair, find the classes, complete the splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from snella.data.checks import CHECK_ALL
from snella.data.dataset import SPLITS
from snella.data.folders.choices import NO_CHOICE, Choices
from snella.data.images import ImageReader, Progress, UnreadableImage
from snella.data.layouts import registry, rows
from snella.data.listing import drop_unreadable, groups_by_path, keep_test_split
from snella.data.masks.codes import code_by_name, find_code
from snella.data.masks.files import IGNORE, RGB, MaskCode, MaskData, MaskedImages
from snella.data.masks.listing import MaskListing, Pair
from snella.data.masks.scan import MaskFacts, scan_pairs
from snella.data.readers.division import by_file, in_fold, in_groups
from snella.data.splits import AS_IT_IS, Division, check_fractions, note_taken, split_off, too_few
from snella.errors import UserError, listed


def is_masked(data: str) -> bool:
    """Tell whether a path or name looks like images with masks. No image is opened."""
    return rows.recognised(registry.MASKED, data)


def read_masked_data(
    data: str,
    *,
    seed: int,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    ignore_index: int | None = None,
    needs_test: bool = True,
    division: Division = AS_IT_IS,
    progress: Progress | None = None,
) -> MaskData:
    """Read images with masks of any layout into train, val and test.

    Pairs that cannot be read, or whose sizes differ, are left out and listed in `skipped`. Splits that are missing
    are taken out of train; the same seed gives the same split everywhere.

    Args:
        data: a folder, or a bundled name of the table `registry.MASKED`.
        val_fraction, test_fraction: share of the images for a missing split, above 0 and together below 1.
        ignore_index: a value of the mask files that stands for no class.
        needs_test: whether anything will be tested; else a test split that cannot be had is empty.
        division: what else is said of the splits: groups, a file, folds.
        progress: called with (pairs checked, pairs in all).

    Raises:
        UserError: data that cannot be trained on; one line with the remedy.
    """
    check_fractions(val_fraction, test_fraction)
    listing = by_file(data, _listing(data, seed, Choices(group_column=division.group_column)), division)
    listing, facts, skipped = _drop_unusable(data, listing, progress)
    train = "all" if "all" in listing.splits else "train"
    if train not in listing.splits:
        raise UserError(f"{data} has {' and '.join(listing.splits)} but no train split; add one to train on")
    seen = [*listing.splits[train], *(listing.splits.get("val", ()) if division.folds else ())]
    found = [facts[mask] for _, mask in seen if mask in facts]
    classes, code, palette, notes = find_code(data, found, listing.names, ignore_index)
    listing = replace(listing, notes=(*listing.notes, *notes))
    counts = {mask: known.pixels(code) for mask, known in facts.items()}
    listing = in_groups(data, listing, division)
    listing = in_fold(data, listing, division, lambda entry: "", seed=seed)  # one stratum
    listing = _complete(data, listing, {"val": val_fraction, "test": test_fraction}, seed, needs_test)
    result = _data(data, listing, SPLITS, classes, code, palette, counts, skipped)
    _check_train(result)
    return replace(result, notes=(*result.notes, *_note_absent_classes(result)))


def read_masked_test_data(
    data: str,
    *,
    classes: Sequence[str],
    code: MaskCode,
    palette: Sequence[RGB],
    seed: int,
    progress: Progress | None = None,
) -> MaskData:
    """Read data to evaluate a trained model on: only the split "test", its masks read with the model's code.

    Of data without a test split the only split is taken whole, of train and val the val. Where both name their classes,
    masks are read by the names, whatever values or colours stand for them.

    Args:
        classes, code, palette: the model's.
        seed: draws nothing for images with masks; evaluation calls every reader alike.

    Raises:
        UserError: data that cannot be read; a mask value that the model's code does not know; a class that the model
            does not have.
    """
    listing = keep_test_split(_listing(data, seed))
    if listing.names:
        code, notes = code_by_name(listing.names, classes, code)
        listing = replace(listing, notes=(*listing.notes, *notes))
    listing, facts, skipped = _drop_unusable(data, listing, progress)
    counts = {mask: known.pixels(code) for mask, known in facts.items()}
    result = _data(data, listing, ("test",), classes, code, palette, counts, skipped)
    return replace(result, notes=(*result.notes, *_note_absent_classes(result)))


def _listing(data: str, seed: int, choices: Choices = NO_CHOICE) -> MaskListing:
    holder = "the folder that holds the folders of images and masks"
    return rows.list_data(registry.MASKED, data, seed=seed, holder=holder, choices=choices)


def _drop_unusable(
    data: str, listing: MaskListing, progress: Progress | None
) -> tuple[MaskListing, dict[str, MaskFacts], list[UnreadableImage]]:
    """Return the listing without the pairs that cannot be used, the facts by mask, and the faults."""
    if not listing.files:
        checked = drop_unreadable(data, listing, progress) if isinstance(listing.read, ImageReader) else listing
        return checked, {}, list(checked.skipped)
    pairs = [pair for entries in listing.splits.values() for pair in entries]
    found, whole, seen = scan_pairs([(listing.path(image), listing.path(mask)) for image, mask in pairs], progress)
    faults = {pair: fault for pair, fault in zip(pairs, found, strict=True) if isinstance(fault, UnreadableImage)}
    facts = {pair[1]: known for pair, known in zip(pairs, found, strict=True) if isinstance(known, MaskFacts)}
    splits = {split: [pair for pair in entries if pair not in faults] for split, entries in listing.splits.items()}
    for split, entries in splits.items():
        if not entries:
            first = faults[listing.splits[split][0]]
            of = "" if split in ("all", "test") else f" of {split}"
            count = len(listing.splits[split])
            raise UserError(f"{data}: none of the {count} pairs{of} can be used, the first: {first}; check the files")
    notes = listing.notes
    if not whole:
        notes = (
            *notes,
            f"more than {CHECK_ALL:,} pairs: values and pixels are those of {len(facts)} masks, evenly chosen",
        )
    return replace(listing, splits=splits, notes=notes, facts=seen), facts, list(faults.values())


def _complete(
    data: str, listing: MaskListing, fractions: Mapping[str, float], seed: int, needs_test: bool
) -> MaskListing:
    """Take the splits that are missing out of train, by a hash of seed and image name, and note it."""
    splits = dict(listing.splits)
    if "all" in splits:
        splits["train"] = splits.pop("all")
    lacking = {split: share for split, share in fractions.items() if split not in splits}
    if not lacking:
        return listing
    mask_of = dict(splits["train"])
    before = [(image, 0) for image in mask_of]  # one stratum
    parts = split_off(before, lacking, seed=seed, groups=listing.groups)
    for split in lacking:
        if not parts[split] and (split != "test" or needs_test):
            raise UserError(f"{data}: {too_few(before, split, groups=listing.groups)}")
    pairs: dict[str, list[Pair]] = {
        split: [(image, mask_of[image]) for image, _ in part] for split, part in parts.items()
    }
    taken = {split: len(pairs[split]) for split in lacking if pairs[split]}
    note = note_taken(taken, before, seed=seed, by_class=False, groups=listing.groups)
    return replace(listing, splits=splits | pairs, notes=(*listing.notes, note))


def _data(
    data: str,
    listing: MaskListing,
    splits: Sequence[str],
    classes: Sequence[str],
    code: MaskCode,
    palette: Sequence[RGB],
    counts: Mapping[str, np.ndarray],
    skipped: Sequence[UnreadableImage],
) -> MaskData:
    none = np.zeros(len(classes), dtype=np.int64)
    images, pixels = {}, {}
    for split in splits:
        pairs = listing.splits[split]
        paths, masks = (tuple(listing.path(pair[side]) for pair in pairs) for side in (0, 1))
        images[split] = MaskedImages(paths, masks, code, listing.read, listing.read_mask)
        if listing.files:
            pixels[split] = tuple(sum((counts.get(mask, none) for _, mask in pairs), none).tolist())
        else:
            pixels[split] = _count_pixels(images[split], len(classes))
    return MaskData(
        listing.layout, data, tuple(classes), images, tuple(skipped), listing.notes, listing.caveat,
        listing.facts, groups_by_path(listing), listing.folder, code=code, palette=tuple(palette), pixels=pixels,
    )  # fmt: skip


def _check_train(data: MaskData) -> None:
    present = [name for name, count in zip(data.classes, data.pixels["train"], strict=True) if count]
    if len(present) < 2:
        held = f"only {present[0]!r}" if present else "no class"
        raise UserError(f"{data.root}: the training masks hold {held}; segmentation needs two classes, check the masks")


def _note_absent_classes(data: MaskData) -> list[str]:
    notes = []
    for split, counts in data.pixels.items():
        absent = [name for name, count in zip(data.classes, counts, strict=True) if not count]
        if absent and data.splits[split]:
            count = f"{len(absent)} of {len(data.classes)} classes"
            notes.append(f"{count} have no pixel in {split}: {listed(absent, 5)}")
    return notes


def _count_pixels(images: MaskedImages, classes: int) -> tuple[int, ...]:
    """Read all masks and count the pixels of each class. Raises UserError where one holds an unknown value."""
    counts = np.zeros(classes, dtype=np.int64)
    for name in images.masks:
        try:
            mask = images.read_mask(name, images.code).numpy()
        except UnreadableImage as error:
            raise UserError(f"{error}; the model's classes are others") from None
        counts += np.bincount(mask[mask != IGNORE], minlength=classes)
    return tuple(counts.tolist())
