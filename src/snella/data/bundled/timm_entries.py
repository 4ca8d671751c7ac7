"""Data sets that timm's readers open, by its names `hfds/...`, `torch/...`, `wds/...`: their making, splits, labels.

timm's own data set class replaces an image that it cannot read by the next one. So only its readers are used, and
images are opened as everywhere else. Entries are named "SPLIT#INDEX".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from snella.data.folders.names import SPLIT_NAMES
from snella.data.listing import Entry, natural_order
from snella.errors import UserError


def create(name: str, root: str | None, split: str, **options: Any) -> Any:
    """Make timm's data set of one split; which class that is depends on the name, and timm declares none."""
    from timm.data.dataset_factory import create_dataset

    return create_dataset(name, root=root, split=split, **options)


def known_splits(found: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Map our split names to the data set's; also return those left out, unknown or second for one of ours."""
    splits: dict[str, str] = {}
    left_out = []
    for name in found:
        ours = SPLIT_NAMES.get(name.lower())
        if ours and ours not in splits:
            splits[ours] = name
        else:
            left_out.append(name)
    if len(found) == 1 and not splits:
        return {"all": found[0]}, []
    return splits, left_out


def indexed_entries(
    data: str, labels: Mapping[str, Sequence[int | str]], names: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, list[Entry]]]:
    """Return classes, and entries "SPLIT#INDEX", from each split's labels.

    Labels index the class names; where there are none, the labels found are the names.

    Raises:
        UserError: a label out of range.
    """
    limit = len(names) if names is not None else None
    for split, values in labels.items():
        for index, label in enumerate(values):
            if isinstance(label, int) and (label < 0 or (limit is not None and label >= limit)):
                bounds = "0 or more" if limit is None else f"0 to {limit - 1}"
                raise UserError(
                    f"{data}: label {label} of image {index} of {split} is out of range ({bounds}); correct the data"
                )
    if names is None:
        names = sorted({str(label) for values in labels.values() for label in values}, key=natural_order)
        position = {name: label for label, name in enumerate(names)}
        labels = {split: [position[str(label)] for label in values] for split, values in labels.items()}
    return tuple(names), {
        split: [(f"{split}#{index}", cast(int, label)) for index, label in enumerate(values)]
        for split, values in labels.items()
    }
