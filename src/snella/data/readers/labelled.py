"""Read image data: recognise the layout, check the images, complete the splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from snella.data.dataset import SPLITS, ImageData, Images
from snella.data.folders.choices import NO_CHOICE, Choices
from snella.data.images import Progress, UnreadableImage
from snella.data.layouts import registry, rows
from snella.data.listing import Listing, drop_unreadable, groups_by_path, keep_test_split, note_absent_classes, relabel
from snella.data.readers.division import by_file, in_fold, in_groups
from snella.data.splits import AS_IT_IS, Division, check_fractions, complete_splits, in_shots
from snella.errors import UserError

Lister = Callable[[str, int, Choices], Listing]  # of data, with the seed of splits that a layout draws


def labelled(data: str, seed: int, choices: Choices) -> Listing:
    """List images of one class each, by the layouts of `registry.LABELLED`. Raises UserError."""
    holder = "the folder that holds the class folders"
    listing = rows.list_data(registry.LABELLED, data, seed=seed, holder=holder, choices=choices)
    if not any(listing.splits.values()):
        raise UserError(f"{data} names no image; add images")
    return listing


def read_data(
    data: str,
    *,
    seed: int,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    needs_test: bool = True,
    choices: Choices = NO_CHOICE,
    division: Division = AS_IT_IS,
    lister: Lister = labelled,
    progress: Progress | None = None,
) -> ImageData[Images]:
    """Read a labelled image data set of any layout into train, val and test.

    Unreadable images are left out and listed in `skipped`. Splits that are missing are taken out of train, stratified
    by class; the same seed gives the same split everywhere.

    Args:
        data: a path, or a name of the table `registry.LABELLED`: a bundled set, `hfds/...`, `torch/...`, `wds/...`.
        val_fraction, test_fraction: share of the images for a missing split, above 0 and together below 1.
        needs_test: whether anything will be tested; else a test split that cannot be had is empty.
        choices: which reading is meant, where there are several.
        division: what else is said of the splits: groups, a file, folds, shots.
        lister: what lists the data; of another task with targets.
        progress: called with (images checked, images in all).

    Raises:
        UserError: data that cannot be trained on; one line with the remedy.
    """
    check_fractions(val_fraction, test_fraction)
    listing = lister(data, seed, replace(choices, group_column=division.group_column, splits=division.file))
    listing = by_file(data, listing, division)
    _check_classes(data, listing)
    listing = drop_unreadable(data, listing, progress)
    _check_classes(data, listing)
    listing = in_groups(data, listing, division)
    names = () if listing.targets else listing.classes  # labels of entries with targets are strata
    listing = in_fold(data, listing, division, lambda entry: names[entry[1]] if names else str(entry[1]), seed=seed)
    fractions = {"val_fraction": val_fraction, "test_fraction": test_fraction}
    listing = in_shots(complete_splits(listing, seed=seed, **fractions, needs_test=needs_test), division, seed=seed)
    notes = (*listing.notes, *note_absent_classes(listing))
    splits = {split: listing.images(split) for split in SPLITS}
    return _data(data, replace(listing, notes=notes), splits)


def read_test_data(
    data: str,
    classes: Sequence[str],
    *,
    seed: int,
    choices: Choices = NO_CHOICE,
    lister: Lister = labelled,
    progress: Progress | None = None,
) -> ImageData[Images]:
    """Read data to evaluate a trained model on: only the split "test", labelled by the model's classes.

    Of data without a test split the only split is taken whole, of train and val the val. Classes are matched by name
    and need not all occur.

    Raises:
        UserError: data that cannot be read; a class that the model does not have.
    """
    listing = lister(data, seed, replace(choices, of_run=True))
    listing = drop_unreadable(data, relabel(data, keep_test_split(listing), classes), progress)
    listing = replace(listing, notes=(*listing.notes, *note_absent_classes(listing)))
    return _data(data, listing, {"test": listing.images("test")})


def _data(data: str, listing: Listing, splits: dict[str, Images]) -> ImageData[Images]:
    return ImageData(
        listing.layout, data, listing.classes, splits, listing.skipped, listing.notes, listing.caveat, listing.facts,
        groups_by_path(listing), listing.folder,
    )  # fmt: skip


def _check_classes(data: str, listing: Listing) -> None:
    """Refuse fewer than two classes, or a class without an image to train on."""
    if len(listing.classes) < 2 and not listing.targets:
        only = f" ({listing.classes[0]!r})" if listing.classes else ""
        raise UserError(
            f"{data} has one class only{only}; classification needs two or more; if names of files hold the labels, "
            "add --label-pattern and a regular expression that finds them"
        )
    split = "all" if "all" in listing.splits else "train"
    if listing.fixed_classes or split not in listing.splits:
        return
    counts = listing.counts(split)
    empty = [name for label, name in enumerate(listing.classes) if not counts[label]]
    if empty:
        where = "" if split == "all" else " in train"
        readable = "readable " if listing.skipped else ""
        more = f" (nor have {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise UserError(
            f"{data}: class {empty[0]!r} has no {readable}image{where}{more}; add images or remove the class"
        )


__all__ = ["ImageData", "Images", "UnreadableImage", "read_data", "read_test_data"]
