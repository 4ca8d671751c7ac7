"""`hfds/NAME`: data sets of the Hugging Face hub, or a local folder in their format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from PIL import Image

from snella.data.bundled.timm_entries import create, indexed_entries, known_splits
from snella.data.images import ImageReader, UnreadableImage, decode
from snella.data.listing import Listing
from snella.errors import UserError, short_reason


class Reader(Protocol):
    """timm's reader of one split: (open file, label) by index, and the hub's own data set."""

    dataset: Mapping[str, Iterable[int | str]]

    def __getitem__(self, index: int, /) -> tuple[BinaryIO, object]: ...


@dataclass(frozen=True)
class _Images(ImageReader):
    """Opens "SPLIT#INDEX" from timm's readers of the splits."""

    readers: Mapping[str, Reader] = field(default_factory=dict)

    def decoded(self, name: str) -> Image.Image:
        split, _, index = name.rpartition("#")
        try:
            file = self.readers[split][int(index)][0]
        except OSError as error:
            raise UnreadableImage(name, short_reason(error)) from None
        except (AssertionError, TypeError):  # as timm's reader meets a row without an image
            raise UnreadableImage(name, "the row has no image") from None
        with file:
            return decode(file, name)


def read(name: str) -> Listing:
    """List every labelled split; image and label columns are found by their types.

    Raises:
        UserError: package missing, data set not found, no image or label column, no split to train on.
    """
    data = f"hfds/{name}"
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(f"{data} needs the package datasets; install it with: pip install 'snella[hfds]'") from None
    try:
        found = datasets.get_dataset_split_names(name)
        features = datasets.load_dataset_builder(name).info.features
        if features is None:  # as for folders of images, until they are loaded
            features = datasets.load_dataset(name, split=found[0]).features
        image_key, label_key, notes = _columns(data, features)
        splits, left_out = known_splits(found)
        readers: dict[str, Reader] = {
            ours: create(data, None, theirs, input_key=image_key, target_key=label_key).reader
            for ours, theirs in splits.items()
        }
    except UserError:
        raise
    except Exception as error:  # hub, network and file errors of many kinds
        raise UserError(f"{data} cannot be loaded: {short_reason(error)}; check the name") from None
    if left_out:
        notes.append(f"splits left out: {', '.join(left_out)}")
    labels = {split: list(reader.dataset[label_key]) for split, reader in readers.items()}
    for split in [split for split, values in labels.items() if set(values) <= {-1, None}]:
        notes.append(f"{split} has no labels and is left out")  # as hub test sets often are
        del labels[split]
    if not labels:
        raise UserError(f"{data} has no labelled train split (found: {', '.join(found)}); use another data set")
    classes, entries = indexed_entries(data, labels, getattr(features[label_key], "names", None))
    return Listing("hfds", "", classes, entries, read=_Images(readers=readers), notes=tuple(notes))


def _columns(data: str, features: Mapping[str, object]) -> tuple[str, str, list[str]]:
    images = [key for key, feature in features.items() if type(feature).__name__ == "Image"]
    labels = [key for key, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    if "label" in features:
        labels = ["label", *(key for key in labels if key != "label")]
    if not images or not labels:
        raise UserError(
            f"{data} has no column of {'class labels' if images else 'images'} (found: {', '.join(features)}); "
            "it is not a data set of labelled images"
        )
    notes = []
    for what, keys in (("images", images), ("labels", labels)):
        if len(keys) > 1:
            notes.append(f"{what} are read from column {keys[0]} (others: {', '.join(keys[1:])})")
    return images[0], labels[0], notes
