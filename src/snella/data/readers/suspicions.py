"""What looks wrong in data that can be read: said before training, since the numbers after it look the same.

Nothing is left out or changed for a suspicion, and none depends on time or chance.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np

from snella.data.checks import ImageFacts
from snella.data.dataset import SPLITS, ImageData, counted_labels, white_in
from snella.data.folders.names import SPLIT_NAMES
from snella.data.groups import source_of
from snella.data.threads import in_threads
from snella.errors import listed

HASHED = 20_000  # files of equal size whose bytes are compared, at most
COMPARED = 20_000  # images whose looks are compared, at most
NEAR = 5  # of 64: bits in which fingerprints of copies of one picture differ
SAME_LOOK = 0.055  # of their contrast: by how much the thumbnails of copies in other sizes and formats differ
DOMINANT = 0.95  # share of the images in one class, from which on guessing looks good
DARK = 64  # of 256: where no image is brighter, values do not use their range
NO_LABELS = ("none", "n/a", "na", "unknown", "unlabeled", "unlabelled", "undefined", "missing", "?", "-")


@dataclass(frozen=True)
class Suspicion:
    """What looks wrong, in a line with how often and an example; `kind` is what `--trust` takes to silence it."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"suspicion: {self.text} (--trust {self.kind} if that is meant)"


@dataclass(frozen=True)
class _Seen:
    """The images of a data set, split by split."""

    data: ImageData[Any]
    paths: list[str]
    splits: list[str]
    labels: list[int]  # -1 where there are none
    known: list[int | tuple[float, ...]]  # the label, or the targets

    @cached_property
    def equal(self) -> list[list[int]]:
        """Groups of images whose files hold the same bytes."""
        return equal_files(self.paths, limit=HASHED)

    @cached_property
    def counts(self) -> Counter[int]:
        """Images of each class; of several labels each they count for all."""
        return counted_labels(self.known)

    def example(self, i: int) -> str:
        return f"{self.paths[i]} ({self.splits[i]})"


def suspicions(data: ImageData[Any], trusted: Collection[str] = ()) -> list[Suspicion]:
    """Return what looks wrong in the data, but for the kinds that are trusted."""
    seen = _Seen(data, [], [], [], [])
    for i, name in enumerate(names := [split for split in SPLITS if split in data.splits]):
        split = data.splits[name]
        if any(split.paths == data.splits[before].paths for before in names[:i]):
            continue  # the training images stand for it, which the notes say
        seen.paths.extend(split.paths)
        seen.splits.extend([name] * len(split))
        seen.labels.extend(getattr(split, "labels", ()) or [-1] * len(split))
        seen.known.extend(getattr(split, "targets", ()) or seen.labels[-len(split) :] if len(split) else ())
    return [Suspicion(kind, text) for kind, find in KINDS.items() if kind not in trusted for text in find(seen)]


def _copies(seen: _Seen) -> Iterator[str]:
    """Files that are equal byte for byte, in two splits or in two classes."""
    several = any(isinstance(known, tuple) for known in seen.known)
    for parts, of in ((seen.splits, "splits"), (seen.known, "sets of labels" if several else "classes")):
        parted = [group for group in seen.equal if len({parts[i] for i in group}) > 1]
        if parted:
            i, j = parted[0][0], next(j for j in parted[0] if parts[j] != parts[parted[0][0]])
            count = sum(map(len, parted))
            yield f"{count} files in two {of} are equal byte for byte: {seen.example(i)} and {seen.example(j)}"


def _lookalikes(seen: _Seen) -> Iterator[str]:
    """Pictures that look the same, or are named as copies of one photograph, in two splits."""
    named: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    for i, path in enumerate(seen.paths):
        source = source_of(path)
        if source != path:
            named[seen.labels[i], source].append(i)
    parted = [group for group in named.values() if len({seen.splits[i] for i in group}) > 1]
    if parted:
        first = seen.example(parted[0][0])
        yield f"{len(parted)} photographs have augmented copies in two splits, by their names, as {first}"
    pairs = _alike(seen)
    if pairs:
        later = len({j for _, j in pairs})
        i, j = pairs[0]
        yield f"{later} images look like one of another split: {seen.example(i)} and {seen.example(j)}"


def _groups(seen: _Seen) -> Iterator[str]:
    """Groups of images (a patient, a video) in two splits."""
    places: defaultdict[str, dict[str, int]] = defaultdict(dict)  # group -> split -> an image
    for i, path in enumerate(seen.paths):
        if path in seen.data.groups:
            places[seen.data.groups[path]].setdefault(seen.splits[i], i)
    parted = [group for group, splits in places.items() if len(splits) > 1]
    if parted:
        i, j, *_ = places[parted[0]].values()
        example = f"{parted[0]!r} as {seen.example(i)} and {seen.example(j)}"
        yield f"{len(parted)} of {len(places)} groups are in two splits, so tests see what was trained on: {example}"


def _split_names(seen: _Seen) -> Iterator[str]:
    named = [name for name in seen.data.classes if name.lower() in SPLIT_NAMES]
    if named:
        yield f"{len(named)} classes are called as splits are: {listed(named, 5)}; give the folder above, or its splits"


def _spelling(seen: _Seen) -> Iterator[str]:
    """Classes whose names differ only in case, spaces, dashes, forms of Unicode or leading zeros."""
    counts = seen.counts
    alike: defaultdict[str, list[int]] = defaultdict(list)
    for label, name in enumerate(seen.data.classes):
        alike[_bare(name)].append(label)
    groups = [labels for labels in alike.values() if len(labels) > 1]
    if groups:
        first = " and ".join(f"{seen.data.classes[k]!r} ({counts[k]} images)" for k in groups[0][:3])
        yield f"{len(groups)} names of classes are spelt in two ways: {first}"


def _labels(seen: _Seen) -> Iterator[str]:
    """Classes that are called as missing labels are."""
    counts = seen.counts
    named = [k for k, name in enumerate(seen.data.classes) if name.strip().lower() in NO_LABELS]
    if named:
        first = f"{seen.data.classes[named[0]]!r} ({counts[named[0]]} images)"
        yield f"{len(named)} classes are called as missing labels are: {first}"


def _one_split(seen: _Seen) -> Iterator[str]:
    places: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for label, split in zip(seen.labels, seen.splits, strict=True):
        places[label][split] += 1
    alone = [label for label, found in sorted(places.items()) if label >= 0 and len(found) == 1 and found.total() > 1]
    if alone and len(set(seen.splits)) > 1 and len(seen.data.classes) > 1:
        split, count = next(iter(places[alone[0]].items()))
        name = seen.data.classes[alone[0]]
        yield f"{len(alone)} of {len(seen.data.classes)} classes are in one split only: {name!r} ({count} in {split})"


def _imbalance(seen: _Seen) -> Iterator[str]:
    counts = Counter(label for label in seen.labels if label >= 0)
    if len(seen.data.classes) < 2 or not counts:
        return
    label, count = counts.most_common(1)[0]
    if count > DOMINANT * counts.total():
        share = f"{count / counts.total():.1%}"
        yield f"{share} of the images ({count} of {counts.total()}) are of one class, {seen.data.classes[label]!r}"


def _empty(seen: _Seen) -> Iterator[str]:
    facts = seen.data.facts
    empty = [i for i, path in enumerate(seen.paths) if path in facts and facts[path].empty]
    if empty:
        yield f"{len(empty)} images show nothing (one colour, or transparent): {seen.example(empty[0])}"


def _dark(seen: _Seen) -> Iterator[str]:
    narrow = [found for found in seen.data.facts.values() if found.widest is None and not found.empty]
    brightest = max((found.brightest for found in narrow), default=255)
    if narrow and brightest < DARK:
        example = next(path for path, found in seen.data.facts.items() if found is narrow[0])
        yield f"{len(narrow)} images have no value above {brightest} of 255, as {example}"
    wide = {path: found.widest for path, found in seen.data.facts.items() if found.widest is not None}
    white = white_in(seen.data) or 0
    if wide and max(wide.values()) < DARK / 256 * white:
        yield f"{len(wide)} images of 16 bits have no value above {max(wide.values())}, and {white} is white"


# what `--trust` takes -> what finds it
KINDS: dict[str, Callable[[_Seen], Iterator[str]]] = {
    "copies": _copies,
    "lookalikes": _lookalikes,
    "groups": _groups,
    "split-names": _split_names,
    "spelling": _spelling,
    "labels": _labels,
    "one-split": _one_split,
    "imbalance": _imbalance,
    "empty": _empty,
    "dark": _dark,
}


def equal_files(paths: Sequence[str], *, limit: int | None) -> list[list[int]]:
    """Return groups of files that hold the same bytes; only files of equal size are read, at most `limit`."""
    by_size: defaultdict[int, list[int]] = defaultdict(list)
    for i, path in enumerate(paths):
        try:
            by_size[os.stat(path).st_size].append(i)
        except OSError:  # not a file
            continue
    candidates = [i for group in by_size.values() if len(group) > 1 for i in group][:limit]
    by_bytes: defaultdict[bytes, list[int]] = defaultdict(list)
    for i, digest in zip(candidates, in_threads(_digest, [paths[i] for i in candidates]), strict=True):
        by_bytes[digest].append(i)
    return [group for group in by_bytes.values() if len(group) > 1]


def _digest(path: str) -> bytes:
    digest = blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def _alike(seen: _Seen) -> list[tuple[int, int]]:
    """Return pairs of images of two splits that look the same, the later split's once each; not equal files."""
    facts = seen.data.facts
    group_of = {i: k for k, group in enumerate(seen.equal) for i in group}
    known = [i for i, path in enumerate(seen.paths) if path in facts and facts[path].fingerprint is not None]
    known = known[:: -(-len(known) // COMPARED)] if known else []
    found: list[tuple[int, int]] = []
    for split in SPLITS[1:]:
        before = [i for i in known if SPLITS.index(seen.splits[i]) < SPLITS.index(split)]
        if not before:
            continue
        marks = np.array([facts[seen.paths[i]].fingerprint for i in before], dtype=np.uint64)
        for j in (i for i in known if seen.splits[i] == split):
            mark = np.uint64(facts[seen.paths[j]].fingerprint or 0)
            near = np.flatnonzero(_ones(marks ^ mark) <= NEAR)
            others = [before[k] for k in near if before[k] not in group_of or group_of[before[k]] != group_of.get(j)]
            found += [(i, j) for i in others if _same_look(facts, seen.paths[i], seen.paths[j])][:1]
    return found


def _same_look(facts: Mapping[str, ImageFacts], one: str, other: str) -> bool:
    first, second = (np.frombuffer(facts[path].thumbnail, np.uint8).astype(float) for path in (one, other))
    return float(np.abs(first - second).mean()) <= SAME_LOOK * float(first.std())


def _ones(marks: np.ndarray) -> np.ndarray:
    """Count the bits that are set in each of (n,) uint64."""
    return _table()[marks.view(np.uint16).reshape(-1, 4)].sum(axis=1)


@lru_cache(maxsize=1)
def _table() -> np.ndarray:
    return np.array([value.bit_count() for value in range(1 << 16)], dtype=np.uint8)


def _bare(name: str) -> str:
    """Return what is left of a name without case, spaces, dashes, accents' forms and leading zeros."""
    plain = re.sub(r"[\s_\-]+", "", unicodedata.normalize("NFKC", name).casefold())
    return re.sub(r"(?<!\d)0+(?=\d)", "", plain)
