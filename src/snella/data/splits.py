"""Splits that a data set lacks: stratified by class and a function of the seed and the images' names alone.

Images are ranked by a hash of seed and name, so a split is the same on every machine and in every folder order, and
one image more or less moves hardly any other.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from snella.data.dataset import CROP
from snella.data.groups import bundled, ranked, shared_out, source_of
from snella.data.listing import Entry, Listing
from snella.errors import UserError, counted, listed

Targets = Mapping[str, tuple[float, ...]]  # by name of an image, whether it has each label: 1 or 0

Stratum = TypeVar("Stratum", bound=Hashable)


@dataclass(frozen=True)
class Division:
    """What a user says of the splits; None leaves it to the data and the seed.

    Args:
        group_column, group_pattern: a column of a table, or a regular expression of paths below the data, that says
            what images belong together; only one of the two.
        file: a table of files and splits that takes the place of the data's own.
        folds, fold: the number of folds, and which of them, from 1, is tested.
        shots: images of each class that stay in train, at most.
    """

    group_column: str | None = None
    group_pattern: str | None = None
    file: str | None = None
    folds: int | None = None
    fold: int | None = None
    shots: int | None = None


AS_IT_IS = Division()


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
    before, groups = splits["train"], listing.groups
    if listing.binary:
        splits |= split_iteratively(before, listing.targets, fractions, seed=seed, groups=groups)
    else:
        splits |= split_off(before, fractions, seed=seed, groups=groups)
    for split in fractions:
        if not splits[split] and (split != "test" or needs_test):
            raise UserError(too_few(before, split, groups=groups, classes=not listing.targets))
    taken = {split: len(splits[split]) for split in fractions if splits[split]}
    note = note_taken(taken, before, seed=seed, by_class=not _has_mixed_sources(before), groups=groups)
    if listing.targets:
        note = note.replace("by class", "by label, iteratively" if listing.binary else "by value")
    return replace(listing, splits=splits, notes=(*listing.notes, note))


def in_shots(listing: Listing, division: Division, *, seed: int) -> Listing:
    """Leave so many images of each class in train, the first by a hash of seed and name, and say so in the notes."""
    shots, train = division.shots, listing.splits["train"]
    if shots is None:
        return listing
    chosen, fewer = set[int](), []
    for label, members in _strata([label for _, label in train]).items():
        chosen.update(members[k] for k in ranked([train[i][0] for i in members], seed)[:shots])
        fewer += [f"{listing.classes[label]} ({len(members)})"] * (len(members) < shots)
    note = f"train: {counted(shots, 'image')} of each class at most, {len(chosen)} of the {len(train)}, seed {seed}"
    if fewer:
        note += f"; {counted(len(fewer), 'class', 'classes')} with fewer: {listed(fewer)}"
    splits = {**listing.splits, "train": [entry for i, entry in enumerate(train) if i in chosen]}
    return replace(listing, splits=splits, notes=(*listing.notes, note))


def too_few(entries: Sequence[Entry], split: str, *, groups: Mapping[str, str], classes: bool = True) -> str:
    """Return the refusal of data out of which a split cannot be taken, since each class keeps an image in train.

    `classes`: whether the labels are classes, and not strata.
    """
    count = len({label for _, label in entries})
    of = f" of {count} classes" if classes and count > 1 else ""
    if groups:
        bundles = counted(len(bundled(entries, groups)), "group")
        return (
            f"{bundles} ({counted(len(entries), 'image')}{of}) are too few to take a {split} split out of them, since "
            f"train keeps one of each class; add images of other groups, or a {split} split"
        )
    return f"{len(entries)} images{of} are too few to take a {split} split out of them; add images, or a {split} split"


def rename_all_to_train(listing: Listing) -> dict[str, list[Entry]]:
    """Return the splits, "all" as "train". Raises UserError where there is neither."""
    splits = dict(listing.splits)
    if "all" in splits:
        splits["train"] = splits.pop("all")
    if "train" not in splits:
        where = listing.folder or f"the {listing.layout} data"
        raise UserError(f"{where} has {' and '.join(splits)} but no train split; add one to train on")
    return splits


def note_taken(
    counts: Mapping[str, int], entries: Sequence[Entry], *, seed: int, by_class: bool, groups: Mapping[str, str]
) -> str:
    """Return the note on splits of so many images, taken out of the entries of train."""
    sizes = " and ".join(f"{split} ({count} images)" for split, count in counts.items())
    how = ", stratified by class" if by_class else ""
    if groups:
        how = f", whole groups of {len(bundled(entries, groups))}{how}{' as far as they allow' if by_class else ''}"
    return f"{sizes} taken out of the {len(entries)} training images{how}, seed {seed}"


def split_off(
    entries: Sequence[Entry], fractions: Mapping[str, float], *, seed: int, groups: Mapping[str, str] | None = None
) -> dict[str, list[Entry]]:
    """Divide entries into the named parts and "train"; each class keeps at least one image in train.

    A class gives each part `fraction` of its images, rounded, at least one if it has more images than parts. Copies of
    one photograph, and what is cut out of one, stay together (`source_of`); where such parts are of several classes
    these are not divided each by itself. With groups, by image's name, those stay together too, and shares are as near
    as they allow.
    """
    part_of = shared_out(entries, groups, fractions, seed=seed) if groups else _by_class(entries, fractions, seed)
    parts: dict[str, list[Entry]] = {"train": [], **{part: [] for part in fractions}}
    for i, entry in enumerate(entries):
        parts[part_of.get(i, "train")].append(entry)
    return parts


def _by_class(entries: Sequence[Entry], fractions: Mapping[str, float], seed: int) -> dict[int, str]:
    """Return position -> the part of each entry that goes into one, class by class."""
    part_of: dict[int, str] = {}
    mixed = _has_mixed_sources(entries)
    for members in _strata([0 if mixed else label for _, label in entries]).values():
        sources: dict[str, list[int]] = defaultdict(list)
        for i in members:
            sources[source_of(entries[i][0])].append(i)
        groups = list(sources.values())
        left = [groups[k] for k in ranked(list(sources), seed)]
        start = 0
        for part, count in _part_sizes(len(groups), fractions).items():
            part_of |= {i: part for group in left[start : start + count] for i in group}
            start += count
    return part_of


def split_iteratively(
    entries: Sequence[Entry],
    targets: Targets,
    fractions: Mapping[str, float],
    *,
    seed: int,
    groups: Mapping[str, str] | None = None,
) -> dict[str, list[Entry]]:
    """Divide entries of several labels each into the named parts and "train", every label in proportion.

    Iterative stratification (Sechidis et al., "On the stratification of multi-label data", 2011): the label with the
    fewest images left is dealt out first, each of its images to the part that lacks most of that label, and of equals
    to the one that lacks most images. Copies of one photograph stay together, as do groups, by image's name. A label
    with one image has it in train.
    """
    found = bundled([(name, None) for name, _ in entries], groups or {})
    bundles = [found[k] for k in ranked([bundle.key for bundle in found], seed)]
    labels = [
        {k for i in bundle.members for k, value in enumerate(targets[entries[i][0]]) if value} for bundle in bundles
    ]
    shares = {"train": 1 - sum(fractions.values()), **fractions}
    counts = Counter(k for of in labels for k in of)
    wanted = {part: {k: share * count for k, count in counts.items()} for part, share in shares.items()}
    room = {part: share * len(bundles) for part, share in shares.items()}
    part_of: dict[int, str] = {}
    left = list(range(len(bundles)))
    while left:
        counts = Counter(k for at in left for k in labels[at])
        rarest = min(counts, key=lambda k: (counts[k], k)) if counts else None
        for at in [at for at in left if rarest is None or rarest in labels[at]]:
            part = max(shares, key=lambda part: (0 if rarest is None else wanted[part][rarest], room[part]))
            part_of |= dict.fromkeys(bundles[at].members, part)
            room[part] -= 1
            for k in labels[at]:
                wanted[part][k] -= 1
        left = [at for at in left if bundles[at].members[0] not in part_of]
    parts: dict[str, list[Entry]] = {part: [] for part in shares}
    for i, entry in enumerate(entries):
        parts[part_of[i]].append(entry)
    return parts


def _has_mixed_sources(entries: Sequence[Entry]) -> bool:
    """Tell whether parts of one image are of several classes."""
    pairs = {(source_of(name), label) for name, label in entries if CROP.search(name)}
    return len(pairs) > len({source for source, _ in pairs})


def split_counts(
    names: Sequence[str], strata: Sequence[Hashable], counts: Mapping[str, int], *, seed: int
) -> dict[str, list[int]]:
    """Return the indices of exactly `counts[part]` names for each part, every stratum in proportion, and the "rest"."""
    groups = _strata(strata)
    sizes = [len(members) for members in groups.values()]
    queues = [[members[k] for k in ranked([names[i] for i in members], seed)] for members in groups.values()]
    parts: dict[str, list[int]] = {}
    for part, count in counts.items():
        taken = _proportional(count, sizes)
        parts[part] = sorted(i for queue, n in zip(queues, taken, strict=True) for i in queue[:n])
        queues = [queue[n:] for queue, n in zip(queues, taken, strict=True)]
    parts["rest"] = sorted(i for queue in queues for i in queue)
    return parts


def drawn_splits(
    names: Sequence[str],
    labels: Sequence[int],
    counts: Mapping[str, int],
    *,
    seed: int,
    strata: Sequence[Hashable] | None = None,
) -> dict[str, list[Entry]]:
    """Return train and val of exactly `counts` images, every stratum (None: class) in proportion; the rest is test."""
    parts = split_counts(names, labels if strata is None else strata, counts, seed=seed)
    parts["test"] = parts.pop("rest")
    return {part: [(names[i], labels[i]) for i in indices] for part, indices in parts.items()}


def _strata(keys: Sequence[Stratum]) -> dict[Stratum, list[int]]:
    groups: defaultdict[Stratum, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        groups[key].append(i)
    return {key: groups[key] for key in sorted(groups, key=repr)}  # not in the order of the listing


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
