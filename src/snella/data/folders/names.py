"""What the names of folders and lists say: a split, that images are in it, that masks are."""

from __future__ import annotations

import re
from collections.abc import Iterable

SPLIT_NAMES = {  # in columns, and as hubs call them
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
SPLIT_COLUMNS = ("split", "subset", "fold", "set", "partition")  # of tables
UNLABELLED = "unlabelled"
_SPLIT_WORDS = SPLIT_NAMES | {
    **dict.fromkeys(("trn", "trainval"), "train"),
    **dict.fromkeys(("tst", "eval", "evaluation"), "test"),
    **dict.fromkeys(("unlabeled", "unlabelled", "unsup", "unsupervised", "pred", "submission"), UNLABELLED),
}
_OF_SPLITS = frozenset(
    ("set", "sets", "split", "image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "data", "seg")
)
IMAGE_WORDS = frozenset(
    (
        *("image", "images", "img", "imgs", "jpegimages", "photo", "photos", "picture", "pictures"),
        *("jpg", "jpgs", "jpeg", "png", "pngs", "tif", "tiff"),
        *("original", "originals", "x", "input", "inputs", "rgb", "frames"),
    )
)
MASK_WORDS = frozenset(
    (
        *("mask", "masks", "label", "labels", "annot", "annots", "ann", "anno", "annotation", "annotations"),
        *("gt", "gts", "groundtruth", "truth", "manual", "seg", "segmentation", "segmentations", "segmentationclass"),
        *("y", "target", "targets", "labelmap", "labelmaps"),
    )
)
VAGUE = frozenset(("x", "y", "target", "targets", "input", "inputs"))  # words of both that may be classes as well
_SPLIT_FIRST = re.compile(rf"(?:{'|'.join(sorted(_SPLIT_WORDS, key=len, reverse=True))})(?=[a-z]{{2}})")


def split_of(name: str) -> str | None:
    """Return the split that a name means, in any spelling, or None; besides train, val and test "unlabelled".

    >>> split_of("Training"), split_of("test1"), split_of("seg_train"), split_of("train_station")
    ('train', 'test', 'train', None)
    """
    split, rest = split_and_rest(name)
    return split if all(word in _OF_SPLITS or word.isdecimal() for word in rest) else None


def splits_among(names: Iterable[str]) -> dict[str, str]:
    """Return the split of each name that means one, by itself or beside others that are called alike but for theirs.

    >>> splits_among(["cars_train", "cars_test"]), splits_among(["train_station", "harbour"])
    ({'cars_train': 'train', 'cars_test': 'test'}, {})
    """
    found = {name: (split_of(name), *split_and_rest(name)) for name in names}
    alike: dict[tuple[str, ...], set[str]] = {}
    for _, part, rest in found.values():
        alike.setdefault(rest, set()).add(part or "")
    own = {
        name: split or (part if {"train", part} <= alike[rest] and len(alike[rest]) > 1 else None)
        for name, (split, part, rest) in found.items()
    }
    return {name: split for name, split in own.items() if split}


def split_and_rest(name: str) -> tuple[str | None, tuple[str, ...]]:
    """Return the split that is in a name, or None, and the name's other words in lower case.

    >>> split_and_rest("train_labels"), split_and_rest("trainannot"), split_and_rest("Ground-Truth")
    (('train', ('labels',)), ('train', ('annot',)), (None, ('ground', 'truth')))
    """
    words = re.findall(r"[^\W\d_]+|\d+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())
    at = next((i for i, word in enumerate(words) if word in _SPLIT_WORDS), None)
    if at is not None:
        return _SPLIT_WORDS[words[at]], (*words[:at], *words[at + 1 :])
    first = _SPLIT_FIRST.match(words[0]) if words else None
    if first and words[0][first.end() :] in IMAGE_WORDS | MASK_WORDS | _OF_SPLITS:
        return _SPLIT_WORDS[first[0]], (words[0][first.end() :], *words[1:])
    return None, tuple(words)


def holds_images(name: str) -> bool:
    """Tell whether a folder is named after the images in it, as `imgs` and `JPEGImages` are, and after no class."""
    words = split_and_rest(name)[1]
    named = any(word in IMAGE_WORDS for word in words)
    return named and all(word in IMAGE_WORDS | _OF_SPLITS or word.isdecimal() for word in words)
