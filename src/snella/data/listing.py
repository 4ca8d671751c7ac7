"""Listings: the images that a layout declares, before and after they are checked."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, TypeVar

from PIL import Image

from snella.data.checks import ImageFacts, check_images
from snella.data.dataset import SPLITS, Images, counted_labels
from snella.data.images import ImageFiles, Progress, UnreadableImage, open_image
from snella.data.paths import composed
from snella.errors import UserError, listed

Entry = tuple[str, int]  # an image's name, relative to its listing's folder, and its label


@dataclass(frozen=True)
class Listing:
    """The images that a layout declares, before any is opened.

    `splits` has "all" alone where the layout has no splits, otherwise some of "train", "val", "test".
    """

    layout: str
    folder: str  # joined before every name; "" where names are not files
    classes: tuple[str, ...]
    splits: dict[str, list[Entry]]
    read: Callable[[str], Image.Image] = open_image
    notes: tuple[str, ...] = ()
    skipped: tuple[UnreadableImage, ...] = ()  # found unreadable while listing
    facts: Mapping[str, ImageFacts] = field(default_factory=dict)  # by path, once the images are checked
    fixed_classes: bool = False  # published label set: a class may have no image in train
    caveat: str = ""  # what belongs beside a result on these data
    groups: Mapping[str, str] = field(default_factory=dict)  # by name: what an image shares with others
    levels: tuple[float, ...] = ()  # the numbers that the classes stand for, where they are such
    targets: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # by name; labels are strata then
    binary: bool = False  # the targets say of each class whether the image has it, else they are quantities

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def images(self, split: str) -> Images:
        entries = self.splits[split]
        paths = tuple(self.path(name) for name, _ in entries)
        if self.targets:
            return Images(paths, read=self.read, targets=tuple(self.targets[name] for name, _ in entries))
        return Images(paths, tuple(label for _, label in entries), self.read)

    def counts(self, split: str) -> Counter[int]:
        """Count the images of each class, or of each quantity all."""
        if self.targets and not self.binary:
            return Counter(dict.fromkeys(range(len(self.classes)), len(self.splits[split])))
        return counted_labels(self.targets[name] if self.targets else label for name, label in self.splits[split])


class SplitListing(Protocol):
    """A listing of any kind: a dataclass whose splits hold tuples that an image's name is the first of."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def layout(self) -> str: ...
    @property
    def folder(self) -> str: ...
    @property
    def splits(self) -> Mapping[str, Sequence[tuple[str, Any]]]: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def skipped(self) -> tuple[UnreadableImage, ...]: ...
    @property
    def groups(self) -> Mapping[str, str]: ...
    def path(self, name: str, /) -> str: ...


def groups_by_path(listing: SplitListing) -> dict[str, str]:
    return {listing.path(name): group for name, group in listing.groups.items()}


class CheckableListing(SplitListing, Protocol):
    """A listing of images by name, of any kind; the first of an entry is the image's name."""

    @property
    def read(self) -> Callable[[str], Image.Image]: ...


SplitListingT = TypeVar("SplitListingT", bound=SplitListing)
CheckableListingT = TypeVar("CheckableListingT", bound=CheckableListing)


def natural_order(name: str) -> tuple[list[str | tuple[int, str]], str]:
    """Return a sort key with numbers by value ("class 2" before "class 10"), the same on every system."""
    parts = re.split(r"(\d+)", name.lower())
    return [_by_value(part) if i % 2 else part for i, part in enumerate(parts)], name


def _by_value(digits: str) -> tuple[int, str]:
    """Return a sort key of a number of any length, which int might refuse."""
    plain = digits.lstrip("0")
    return len(plain), plain


def label_entries(names: Sequence[str], labels: Sequence[str]) -> tuple[tuple[str, ...], list[Entry]]:
    """Return the classes, the different labels in natural order, and the entries.

    Labels whose letters are the same in different forms of Unicode are one class.
    """
    labels = [composed(label) for label in labels]
    classes = tuple(sorted(set(labels), key=natural_order))
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError:  # a folder of an old archive
            raise UserError(f"the name of class {name!a} is not UTF-8; rename it") from None
    index = {name: label for label, name in enumerate(classes)}
    return classes, [(name, index[label]) for name, label in zip(names, labels, strict=True)]


def keep_test_split(listing: SplitListingT) -> SplitListingT:
    """Keep the split "test" alone; without one the whole, or val, or train takes its place."""
    split = next(split for split in ("test", "all", "val", "train") if split in listing.splits)
    notes = listing.notes if split in ("test", "all") else (*listing.notes, f"no test split: {split} is used")
    return replace(listing, splits={"test": listing.splits[split]}, notes=notes)


def relabel(data: str, listing: Listing, classes: Sequence[str]) -> Listing:
    """Label the split "test" by the model's classes. Raises UserError for a class that the model does not have."""
    if listing.targets:
        return _retarget(data, listing, classes)
    position = {composed(name): label for label, name in enumerate(classes)}
    entries = []
    for name, label in listing.splits["test"]:
        if composed(listing.classes[label]) not in position:
            raise UserError(
                f"{data}: class {listing.classes[label]!r} of {name} is not among the model's {len(classes)} classes "
                f"({listed(classes, 5)}); rename or remove it"
            )
        entries.append((name, position[composed(listing.classes[label])]))
    return replace(listing, classes=tuple(classes), splits={"test": entries})


def _retarget(data: str, listing: Listing, classes: Sequence[str]) -> Listing:
    """Put the targets in the order of the model's classes; a label that the data do not name is one of no image.

    Raises:
        UserError: a label or quantity that the model has not learnt, or one that it has and the data do not.
    """
    position = {composed(name): k for k, name in enumerate(listing.classes)}
    known = {composed(name) for name in classes}
    unknown = [name for name in listing.classes if composed(name) not in known]
    if unknown:
        raise UserError(
            f"{data}: {unknown[0]!r} is not among what the model has learnt ({listed(classes, 5)}); rename or remove it"
        )
    absent = [name for name in classes if composed(name) not in position]
    if absent and not listing.binary:
        raise UserError(f"{data} has no {absent[0]!r}, which the model has learnt; add it, as numbers")
    notes = [f"labels of the model that no image has: {listed(absent, 5)}"] if absent else []
    places = [position.get(composed(name)) for name in classes]
    targets = {
        name: tuple(0.0 if place is None else row[place] for place in places) for name, row in listing.targets.items()
    }
    return replace(listing, classes=tuple(classes), targets=targets, notes=(*listing.notes, *notes))


def drop_unreadable(data: str, listing: CheckableListingT, progress: Progress | None) -> CheckableListingT:
    """Return the listing without the images that cannot be read. Raises UserError where that leaves a split empty."""
    paths = list(dict.fromkeys(listing.path(name) for entries in listing.splits.values() for name, _ in entries))
    checked = check_images(paths, read=listing.read, progress=progress)
    skipped = checked.unreadable
    if len(skipped) == len(paths):
        raise UserError(
            f"{data}: none of the {len(paths)} images can be read, the first: {skipped[0]}; check the files"
        )
    if len(skipped) > len(paths) // 2:
        files = isinstance(listing.read, ImageFiles)
        missing = [error for error in skipped if files and not os.path.exists(error.path)]
        count, what = (len(missing), "do not exist") if missing else (len(skipped), "cannot be read")
        first = (missing or skipped)[0]
        raise UserError(
            f"{data}: {count} of {len(paths)} images {what}, the first: {first}; mend the names or the files"
        )
    bad = {error.path for error in skipped}
    splits = {
        split: [entry for entry in entries if listing.path(entry[0]) not in bad]
        for split, entries in listing.splits.items()
    }
    empty = next((split for split, entries in splits.items() if listing.splits[split] and not entries), None)
    if empty:
        names = {listing.path(name) for name, _ in listing.splits[empty]}
        first = next(error for error in skipped if error.path in names)
        raise UserError(f"{data}: no image of {empty} can be read, the first: {first}; check the files")
    return replace(listing, splits=splits, skipped=(*listing.skipped, *skipped), facts=checked.facts)


def note_absent_classes(listing: Listing) -> list[str]:
    """Return a note for each split in which a class has no image."""
    notes = []
    for split in [split for split in SPLITS if split in listing.splits]:
        present = listing.counts(split)
        absent = [name for label, name in enumerate(listing.classes) if not present[label]]
        if absent and present:
            count = f"{len(absent)} of {len(listing.classes)} classes"
            notes.append(f"{count} have no image in {split}: {listed(absent, 5)}")
    return notes
