"""Splits that a data set lacks: stratified by class and a function of the seed and the images' names alone.

Images are ranked by a hash of seed and name, so a split is the same on every machine and in every folder order, and
one image more or less moves hardly any other.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import TypeVar

from snella.data.listing import Entry, Listing
from snella.errors import UserError

Targets = Mapping[str, tuple[float, ...]]  # by name of an image, whether it has each label: 1 or 0
COPY = re.compile(r"(?P<source>.+)\.rf\.\w{16,}\.\w+")
CROP = re.compile(r"#\d+,\d+,\d+,\d+$")  # of the names of crops, after the image's

Stratum = TypeVar("Stratum", bound=Hashable)


def check_fractions(val_fraction: float | None, test_fraction: float | None) -> None:
    """Check the shares. Raises UserError where they leave nothing to train on."""
    for name, share in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if share is not None and not 0 < share < 1:
            raise UserError(f"{name} is {share}; use a share above 0 and below 1, such as 0.15")
    both = (val_fraction or 0) + (test_fraction or 0)
    if both >= 1:
        raise UserError(f"val_fraction + test_fraction is {both}; keep it below 1")


def complete_splits(
    listing: Listing, *, seed: int, val_fraction: float, test_fraction: float, needs_test: bool = True
) -> Listing:
    """Take the splits that are missing out of train (or out of the one split there is) and say so in the notes.

    Where nothing will be tested, a test split that cannot be had is empty.

    Raises:
        UserError: no train split, or too few images for a split.
    """
    splits = rename_all_to_train(listing)
    wanted = {"val": val_fraction, "test": test_fraction}
    fractions = {split: share for split, share in wanted.items() if split not in splits}
    if not fractions:
        return listing
    before = len(splits["train"])
    if listing.binary:
        splits |= split_iteratively(splits["train"], listing.targets, fractions, seed=seed)
    else:
        splits |= split_off(splits["train"], fractions, seed=seed)
    for split in fractions:
        if not splits[split] and (split != "test" or needs_test):
            raise UserError(too_few(before, split, 1 if listing.targets else len({k for _, k in splits["train"]})))
    taken = {split: len(splits[split]) for split in fractions if splits[split]}
    by_class = not _has_mixed_sources(listing.splits.get("all", listing.splits.get("train", [])))
    note = note_taken(taken, before, seed=seed, by_class=by_class)
    if listing.targets:
        note = note.replace("by class", "by label, iteratively" if listing.binary else "by value")
    return replace(listing, splits=splits, notes=(*listing.notes, note))


def too_few(images: int, split: str, classes: int = 1) -> str:
    """Return the refusal of data out of which a split cannot be taken, since each class keeps an image in train."""
    of = f" of {classes} classes" if classes > 1 else ""
    return f"{images} images{of} are too few to take a {split} split out of them; add images, or a {split} split"


def rename_all_to_train(listing: Listing) -> dict[str, list[Entry]]:
    """Return the splits, "all" as "train". Raises UserError where there is neither."""
    splits = dict(listing.splits)
    if "all" in splits:
        splits["train"] = splits.pop("all")
    if "train" not in splits:
        where = listing.folder or f"the {listing.layout} data"
        raise UserError(f"{where} has {' and '.join(splits)} but no train split; add one to train on")
    return splits


def note_taken(counts: Mapping[str, int], before: int, *, seed: int, by_class: bool) -> str:
    """Return the note on splits of so many images, taken out of the `before` images of train."""
    sizes = " and ".join(f"{split} ({count} images)" for split, count in counts.items())
    how = ", stratified by class" if by_class else ""
    return f"{sizes} taken out of the {before} training images{how}, seed {seed}"


def split_off(entries: Sequence[Entry], fractions: Mapping[str, float], *, seed: int) -> dict[str, list[Entry]]:
    """Divide entries into the named parts and "train"; each class keeps at least one image in train.

    A class gives each part `fraction` of its images, rounded, at least one if it has more images than parts. Copies of
    one photograph, and what is cut out of one, stay together (`source_of`); where such parts are of several classes
    these are not divided each by itself.
    """
    part_of: dict[int, str] = {}
    mixed = _has_mixed_sources(entries)
    for members in _strata([0 if mixed else label for _, label in entries]).values():
        sources: dict[str, list[int]] = defaultdict(list)
        for i in members:
            sources[source_of(entries[i][0])].append(i)
        groups = list(sources.values())
        left = [groups[k] for k in _ranked(list(sources), seed)]
        start = 0
        for part, count in _part_sizes(len(groups), fractions).items():
            part_of |= {i: part for group in left[start : start + count] for i in group}
            start += count
    parts: dict[str, list[Entry]] = {"train": [], **{part: [] for part in fractions}}
    for i, entry in enumerate(entries):
        parts[part_of.get(i, "train")].append(entry)
    return parts


def split_iteratively(
    entries: Sequence[Entry], targets: Targets, fractions: Mapping[str, float], *, seed: int
) -> dict[str, list[Entry]]:
    """Divide entries of several labels each into the named parts and "train", every label in proportion.

    Iterative stratification (Sechidis et al., "On the stratification of multi-label data", 2011): the label with the
    fewest images left is dealt out first, each of its images to the part that lacks most of that label, and of equals
    to the one that lacks most images. Copies of one photograph stay together. A label with one image has it in train.
    """
    sources: dict[str, list[int]] = defaultdict(list)
    for i, (name, _) in enumerate(entries):
        sources[source_of(name)].append(i)
    names = list(sources)
    left = [names[k] for k in _ranked(names, seed)]
    labels = {
        source: {k for i in members for k, value in enumerate(targets[entries[i][0]]) if value}
        for source, members in sources.items()
    }
    shares = {"train": 1 - sum(fractions.values()), **fractions}
    counts = Counter(k for source in left for k in labels[source])
    wanted = {part: {k: share * count for k, count in counts.items()} for part, share in shares.items()}
    room = {part: share * len(left) for part, share in shares.items()}
    part_of: dict[str, str] = {}
    while left:
        counts = Counter(k for source in left for k in labels[source])
        rarest = min(counts, key=lambda k: (counts[k], k)) if counts else None
        for source in [source for source in left if rarest is None or rarest in labels[source]]:
            part = max(shares, key=lambda part: (0 if rarest is None else wanted[part][rarest], room[part]))
            part_of[source] = part
            room[part] -= 1
            for k in labels[source]:
                wanted[part][k] -= 1
        left = [source for source in left if source not in part_of]
    parts: dict[str, list[Entry]] = {part: [] for part in shares}
    for entry in entries:
        parts[part_of[source_of(entry[0])]].append(entry)
    return parts


def _has_mixed_sources(entries: Sequence[Entry]) -> bool:
    """Tell whether parts of one image are of several classes."""
    pairs = {(source_of(name), label) for name, label in entries if CROP.search(name)}
    return len(pairs) > len({source for source, _ in pairs})


def source_of(name: str) -> str:
    """Return the photograph that an image is a copy of, by the names that Roboflow gives augmented copies, or the image
    that a crop is cut out of; else the name itself.

    >>> source_of("dogs/photo_jpg.rf.0123456789abcdef0123456789abcdef.jpg"), source_of("a.jpg#0,0,9,9")
    ('photo_jpg', 'a.jpg')
    """
    whole = CROP.sub("", name)
    found = COPY.fullmatch(whole.rpartition("/")[2])
    return found["source"] if found else whole


def split_counts(
    names: Sequence[str], strata: Sequence[Hashable], counts: Mapping[str, int], *, seed: int
) -> dict[str, list[int]]:
    """Return the indices of exactly `counts[part]` names for each part, every stratum in proportion, and the "rest"."""
    groups = _strata(strata)
    sizes = [len(members) for members in groups.values()]
    queues = [[members[k] for k in _ranked([names[i] for i in members], seed)] for members in groups.values()]
    parts: dict[str, list[int]] = {}
    for part, count in counts.items():
        taken = _proportional(count, sizes)
        parts[part] = sorted(i for queue, n in zip(queues, taken, strict=True) for i in queue[:n])
        queues = [queue[n:] for queue, n in zip(queues, taken, strict=True)]
    parts["rest"] = sorted(i for queue in queues for i in queue)
    return parts


def _strata(keys: Sequence[Stratum]) -> dict[Stratum, list[int]]:
    groups: defaultdict[Stratum, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        groups[key].append(i)
    return {key: groups[key] for key in sorted(groups, key=repr)}  # not in the order of the listing


def _ranked(names: Sequence[str], seed: int) -> list[int]:
    digests = [blake2b(f"{seed}:{name}".encode(errors="surrogateescape")).digest() for name in names]
    return sorted(range(len(names)), key=lambda i: (digests[i], i))


def _part_sizes(size: int, fractions: Mapping[str, float]) -> dict[str, int]:
    sizes = {part: max(1, round(share * size)) for part, share in fractions.items()}
    while sum(sizes.values()) >= size and any(sizes.values()):  # train keeps one
        largest = max(reversed(list(sizes)), key=lambda part: sizes[part])
        sizes[largest] -= 1
    return sizes


def _proportional(total: int, sizes: Sequence[int]) -> list[int]:
    """Share `total` out in proportion to `sizes`, largest remainders first (Hamilton's method)."""
    everything = sum(sizes)
    shares = [total * size // everything for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (-(total * sizes[i] % everything), i))
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares
