"""Images that belong to one split, and how what belongs together is shared out among splits.

Copies of one photograph, crops of one image and what a user calls a group (a patient, a tile, a video) are one thing
here: an image is in the bundle of every other that shares any of them with it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeVar

import numpy as np

from snella.data.dataset import CROP
from snella.errors import UserError, brief, counted

COPY = re.compile(r"(?P<source>.+)\.rf\.\w{16,}\.\w+")
PARTNERS, EXCHANGES = 200, 200_000  # bundles that each is tried in exchange for, at most; and of all
SWEEPS = 20  # over all bundles; two or three are usual
LARGEST = 1.5  # of what a part is to have: a bundle above it goes there only where the part would stay empty
LEAST = 1e-9  # change that counts: below it is rounding, which differs between machines

Key = TypeVar("Key", bound=Hashable)
NamedEntry = tuple[str, Hashable]  # an image's name and its class


@dataclass(frozen=True)
class Bundle:
    """Images that stay together: their positions, and what they are ranked by."""

    key: str
    members: tuple[int, ...]


def source_of(name: str) -> str:
    """Return the photograph that an image is a copy of, by the names that Roboflow gives augmented copies, or the image
    that a crop is cut out of; else the name itself.

    >>> source_of("dogs/photo_jpg.rf.0123456789abcdef0123456789abcdef.jpg"), source_of("a.jpg#0,0,9,9")
    ('photo_jpg', 'a.jpg')
    """
    whole = CROP.sub("", name)
    found = COPY.fullmatch(whole.rpartition("/")[2])
    return found["source"] if found else whole


def groups_by_pattern(pattern: str, names: Sequence[str]) -> dict[str, str]:
    """Return name -> its group, what the pattern's first capture group holds, or else all that it matches.

    Names that it does not match are left out.

    Raises:
        UserError: it matches no name.
    """
    compiled = re.compile(pattern)
    found = {name: match for name in names if (match := compiled.search(name))}
    if not found and names:
        raise UserError(
            f"--group-pattern {brief(pattern)} matches none of the {counted(len(names), 'image')}, such as {names[0]}; "
            "it is searched for in their paths below the data"
        )
    return {
        name: next((part for part in match.groups() if part is not None), match[0]) for name, match in found.items()
    }


def put_in_group(groups: dict[Key, str], key: Key, group: str, place: str, name: str) -> None:
    """Note the group of an image. Raises UserError, with place and name, where it has another one already."""
    if groups.setdefault(key, group) != group:
        raise UserError(f"{place}: {name} is of two groups, {groups[key]} and {group}; keep one")


def bundled(entries: Sequence[NamedEntry], groups: Mapping[str, str]) -> list[Bundle]:
    """Return the images in bundles, which do not depend on their order.

    Args:
        entries: names and classes; copies of one photograph are those of one class.
        groups: the group of an image by name, where it has one.
    """
    parent = list(range(len(entries)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[Hashable, int] = {}
    for i, (name, label) in enumerate(entries):
        source = source_of(name)
        shared: list[Hashable] = [(source, None if CROP.search(name) or source == name else label)]
        shared += [groups[name]] if name in groups else []
        for key in shared:
            parent[root(i)] = root(first.setdefault(key, i))
    members: defaultdict[int, list[int]] = defaultdict(list)
    for i in range(len(entries)):
        members[root(i)].append(i)
    found = []
    for inside in members.values():
        names = [entries[i][0] for i in inside]
        key = min((groups[name] for name in names if name in groups), default=min(map(source_of, names)))
        found.append(Bundle(key, tuple(inside)))
    return sorted(found, key=lambda bundle: (bundle.key, min(entries[i][0] for i in bundle.members)))


def shared_out(
    entries: Sequence[NamedEntry], groups: Mapping[str, str], fractions: Mapping[str, float], *, seed: int
) -> dict[int, str]:
    """Return position -> the part of each image that goes into one; the others stay in train.

    Every class keeps an image in train. A part is empty where no bundle can be spared for it.
    """
    bundles = bundled(entries, groups)
    counts = _counts(entries, bundles)
    shares = np.array([1 - sum(fractions.values()), *fractions.values()])
    start = np.zeros(len(bundles), dtype=np.int64)
    found = _exchanged(counts, shares, start, ranked([bundle.key for bundle in bundles], seed), keeps=True)
    parts = ["train", *fractions]
    return {i: parts[k] for bundle, k in zip(bundles, found, strict=True) if k for i in bundle.members}


def folds_of(entries: Sequence[NamedEntry], groups: Mapping[str, str], folds: int, *, seed: int) -> list[int]:
    """Return the fold of each image, from 0: as equal as bundles allow, in all and in each class.

    Raises:
        UserError: fewer bundles than folds, or a class whose images are all in one.
    """
    bundles = bundled(entries, groups)
    what, many = ("group", "groups") if groups else ("image", "images")
    if len(bundles) < folds:
        fewer = f"; use --folds {len(bundles)}" if len(bundles) > 1 else ""
        raise UserError(f"{counted(len(bundles), what, many)} are too few for {folds} folds{fewer}")
    ranks = ranked([bundle.key for bundle in bundles], seed)
    usual = [repr(Counter(entries[i][1] for i in bundle.members).most_common(1)[0][0]) for bundle in bundles]
    fold = np.zeros(len(bundles), dtype=np.int64)
    fold[sorted(ranks, key=lambda k: usual[k])] = np.arange(len(bundles)) % folds  # class by class, in turn
    if len(bundles) < len(entries):
        fold = _exchanged(_counts(entries, bundles), np.full(folds, 1 / folds), fold, ranks, keeps=False)
    found = [0] * len(entries)
    for bundle, k in zip(bundles, fold, strict=True):
        for i in bundle.members:
            found[i] = int(k)
    return found


def _counts(entries: Sequence[NamedEntry], bundles: Sequence[Bundle]) -> np.ndarray:
    """Return how many images of each class a bundle has, and of all: (bundles, classes + 1)."""
    classes = {label: k for k, label in enumerate(sorted({label for _, label in entries}, key=repr))}
    counts = np.zeros((len(bundles), len(classes) + 1))
    for row, bundle in zip(counts, bundles, strict=True):
        for i in bundle.members:
            row[classes[entries[i][1]]] += 1
        row[-1] = len(bundle.members)
    return counts


def _exchanged(
    counts: np.ndarray, shares: np.ndarray, part: np.ndarray, ranks: list[int], *, keeps: bool
) -> np.ndarray:
    """Return the part of each bundle, after moves and exchanges for as long as one brings the shares nearer.

    What is made small is the sum of (have - wanted)² over parts and classes, each relative to the class. Bundles are
    taken in the order of their ranks, so the seed decides between what is equally good.

    Args:
        counts: (bundles, classes) images.
        shares: (parts,) that add up to 1.
        part: (bundles,) to begin with.
        ranks: the order in which bundles are looked at.
        keeps: every class keeps an image in part 0, which no move may empty; parts that are empty get a bundle.
    """
    trial = _Trial(counts, shares, part.copy(), np.array(ranks), keeps)
    for _ in range(max(2, min(SWEEPS, EXCHANGES // 2 // len(part)))):
        before = trial.part.copy()
        for g in ranks:
            change, to = trial.changes(g, LARGEST)
            chosen = int(change.argmin())
            if change[chosen] < -LEAST:
                trial.exchange(g, chosen, int(to[chosen]))
        if (trial.part == before).all():
            break
    for empty in (p for p in range(len(shares)) if not (trial.part == p).any()):
        moves = np.array([trial.changes(g, np.inf)[0][empty] for g in ranks])
        if moves.min() < np.inf:
            trial.exchange(ranks[int(moves.argmin())], empty, empty)
    return trial.part


class _Trial:
    """An assignment of bundles to parts, and what each exchange of a bundle for another, or for nothing, changes."""

    def __init__(self, counts: np.ndarray, shares: np.ndarray, part: np.ndarray, ranks: np.ndarray, keeps: bool):
        self.counts, self.part, self.keeps = counts, part, keeps
        self.totals = counts.sum(axis=0)
        self.wanted = shares[:, None] * self.totals  # (parts, classes)
        self.have = np.stack([counts[part == p].sum(axis=0) for p in range(len(shares))])
        self.partners = ranks[: max(1, min(PARTNERS, EXCHANGES // len(part)))]
        self.given = np.concatenate([np.zeros_like(self.wanted), counts[self.partners]])  # nothing, for a move

    def changes(self, g: int, largest: float) -> tuple[np.ndarray, np.ndarray]:
        """Return how each exchange of g changes the sum, and the part that g goes to; inf for what is not allowed.

        `largest`: of what a part is to have, how large a bundle may be that comes to it.
        """
        p, to, limits = self.part[g], np.concatenate([np.arange(len(self.have)), self.part[self.partners]]), self.wanted
        gain, off = self.given - self.counts[g], self.have - self.wanted
        change = ((gain * (off[p] - off[to]) + gain**2) / self.totals**2).sum(axis=1)
        fits = (self.counts[g, -1] <= largest * limits[to, -1]) & (self.given[:, -1] <= largest * limits[p, -1])
        allowed = (to != p) & fits
        allowed[: len(self.have)] &= (self.part == p).sum() > 1
        if self.keeps:
            sign = np.where(p == 0, 1, np.where(to == 0, -1, 0))[:, None]
            allowed &= (self.have[0] + sign * gain > 0).all(axis=1)
        return np.where(allowed, change.round(12), np.inf), to

    def exchange(self, g: int, chosen: int, to: int) -> None:
        gain, p, moves = self.given[chosen] - self.counts[g], self.part[g], len(self.have)
        self.have[p] += gain
        self.have[to] -= gain
        self.part[g] = to
        if chosen >= moves:
            self.part[self.partners[chosen - moves]] = p


def ranked(names: Sequence[str], seed: int) -> list[int]:
    """Return the positions of names in the order of a hash of seed and name."""
    digests = [blake2b(f"{seed}:{name}".encode(errors="surrogateescape")).digest() for name in names]
    return sorted(range(len(names)), key=lambda i: (digests[i], i))
