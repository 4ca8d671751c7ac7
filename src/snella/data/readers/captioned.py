"""Read images to fine-tune a generative model on: recognise the layout, check the images, complete the splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from snella.data.dataset import SPLITS, Example, ImageData
from snella.data.folders.choices import NO_CHOICE, Choices
from snella.data.images import Progress, open_image
from snella.data.layouts import registry, rows
from snella.data.layouts.caption_folders import Captions
from snella.data.listing import Listing, drop_unreadable, groups_by_path, keep_test_split, note_absent_classes, relabel
from snella.data.readers.division import by_file, in_fold, in_groups
from snella.data.splits import AS_IT_IS, Division, check_fractions, note_taken, rename_all_to_train, split_off
from snella.errors import UserError

CLASS = "{class}"  # in a prompt
SEEN = "the losses on {} are those of images that the model has trained on"


@dataclass(frozen=True)
class CaptionedImages:
    """The images of one split: `images[i]` is `{"image": 8-bit RGB PIL image, "caption": str, "label": int}`.

    Without captions or labels the examples lack them.

    >>> images = CaptionedImages(("cat.jpg", "dog.jpg"), ("a cat, asleep", "a dog in the snow"))
    """

    paths: tuple[str, ...]
    captions: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()
    read: Callable[[str], Image.Image] = open_image

    def __post_init__(self) -> None:
        for name in ("captions", "labels"):
            values = getattr(self, name)
            if values and len(values) != len(self.paths):
                raise ValueError(f"{len(self.paths)} paths but {len(values)} {name}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        """Read the example. Raises UnreadableImage."""
        example: Example = {"image": self.read(self.paths[index])}
        if self.captions:
            example["caption"] = self.captions[index]
        if self.labels:
            example["label"] = self.labels[index]
        return example


def is_captioned(data: str) -> bool:
    """Tell whether data is a folder of images with captions, or the name of a bundled set. No image is opened."""
    return rows.recognised(registry.CAPTIONED, data)


def read_captioned_data(
    data: str,
    *,
    seed: int,
    prompt: str | None = None,
    val_fraction: float | None = 0.15,
    test_fraction: float | None = 0.15,
    choices: Choices = NO_CHOICE,
    division: Division = AS_IT_IS,
    progress: Progress | None = None,
) -> ImageData[CaptionedImages]:
    """Read images with captions, in class folders or alone, into train, val and test.

    Unreadable images are left out and listed in `skipped`. Splits that are missing are taken out of train, stratified
    by class; the same seed gives the same split everywhere. Where train is too small, they are train itself.

    Args:
        data: a folder, or a bundled name of the table `registry.CAPTIONED`.
        prompt: the caption of every image that has none of its own; "{class}" in it stands for the class's name,
            which alone is the caption in class folders otherwise.
        val_fraction, test_fraction: share of the images for a missing split, above 0 and together below 1; None for
            none: the training images stand for it.
        choices: which reading is meant, where there are several.
        division: what else is said of the splits: groups, a file, folds.
        progress: called with (images checked, images in all).

    Raises:
        UserError: data that cannot be trained on, a prompt besides captions; one line with the remedy.
    """
    check_fractions(val_fraction, test_fraction)
    listing, own = _listing(data, seed, choices)
    if own and prompt is not None:
        raise UserError(f"{data} has {listing.layout} and a prompt is given; drop the prompt, or remove the captions")
    captions = own or _caption_by_prompt(data, listing, prompt)
    listing = drop_unreadable(data, by_file(data, listing, division), progress)
    listing = in_groups(data, listing, division)
    names = listing.classes or ("",)
    listing = in_fold(data, listing, division, lambda entry: names[entry[1]], seed=seed)
    listing = _complete(listing, {"val": val_fraction, "test": test_fraction}, seed)
    listing = replace(listing, notes=(*listing.notes, *note_absent_classes(listing)))
    return _data(data, listing, captions, SPLITS)


def read_captioned_test_data(
    data: str,
    *,
    classes: Sequence[str],
    prompt: str | None,
    seed: int,
    choices: Choices = NO_CHOICE,
    progress: Progress | None = None,
) -> ImageData[CaptionedImages]:
    """Read data to evaluate a trained model on: only the split "test", labelled by the model's classes.

    Of data without a test split the only split is taken whole, of train and val the val. Captions of the data's own
    go before the prompt.

    Args:
        classes, prompt: the model's; without classes the labels of class folders are left out.
        seed: draws nothing here; evaluation calls every reader alike.

    Raises:
        UserError: data that cannot be read; a class that the model does not have.
    """
    listing, own = _listing(data, seed, replace(choices, of_run=True))
    captions = own or _caption_by_prompt(data, listing, prompt)
    listing = keep_test_split(listing)
    if own and prompt is not None:
        listing = replace(listing, notes=(*listing.notes, "the data's captions are used, not the model's prompt"))
    if listing.classes and classes:
        listing = relabel(data, listing, classes)
    else:
        listing = replace(listing, classes=())
    listing = drop_unreadable(data, listing, progress)
    listing = replace(listing, notes=(*listing.notes, *note_absent_classes(listing)))
    return _data(data, listing, captions, ("test",))


def _listing(data: str, seed: int, choices: Choices) -> tuple[Listing, Captions]:
    return rows.list_data(registry.CAPTIONED, data, seed=seed, holder="the folder that holds it", choices=choices)


def _caption_by_prompt(data: str, listing: Listing, prompt: str | None) -> Captions:
    """Caption images that have no caption: by their class, or the prompt."""
    if prompt is not None and not prompt.strip():
        raise UserError("the prompt is empty; write one, or leave it out")
    entries = [entry for split in listing.splits.values() for entry in split]
    if listing.classes:
        pattern = (prompt or CLASS).strip()
        return {name: pattern.replace(CLASS, _caption_of_class(listing.classes[label])) for name, label in entries}
    if prompt is None:
        return {}
    if CLASS in prompt:
        raise UserError(
            f"the prompt {prompt!r} has {CLASS}, and {data} has no class folders; sort its images into some, add "
            f"captions, or train with the name in its place"
        )
    return {name: prompt.strip() for name, _ in entries}


def _caption_of_class(name: str) -> str:
    """Turn a class's name into a caption: golden_retriever -> golden retriever."""
    return " ".join(name.replace("_", " ").replace("-", " ").split()) or name


def _complete(listing: Listing, fractions: Mapping[str, float | None], seed: int) -> Listing:
    """Take the splits that are missing and asked for out of train; where none can be spared, they are it.

    A model that learns one subject from a few pictures needs all of them, and is not evaluated by the like of them.
    """
    splits = rename_all_to_train(listing)
    lacking = [split for split in fractions if split not in splits]
    asked = {split: share for split in lacking if (share := fractions[split]) is not None}
    whole_train = splits["train"]
    before = len(whole_train)
    if asked and before >= 3:
        splits |= split_off(whole_train, asked, seed=seed, groups=listing.groups)
    counts = {split: len(splits[split]) for split in lacking if splits.get(split)}
    notes = listing.notes
    if counts:
        by_class = len(listing.classes) > 1
        notes = (*notes, note_taken(counts, whole_train, seed=seed, by_class=by_class, groups=listing.groups))
    same = [split for split in lacking if split not in counts]
    if same:
        splits |= dict.fromkeys(same, splits["train"])
        those, count = " and ".join(same), len(splits["train"])
        few = f"{before} image{'s are' if before > 1 else ' is'} too few to take {those} out of"
        whole = f"all {count} images are trained on, and stand for {those} (--val-fraction and --test-fraction divide)"
        notes = (*notes, f"{few}: the {count} training images stand for them" if asked.keys() & same else whole)
        listing = replace(listing, caveat=listing.caveat or SEEN.format(those))
    return replace(listing, splits=splits, notes=notes)


def _data(data: str, listing: Listing, captions: Captions, splits: Sequence[str]) -> ImageData[CaptionedImages]:
    images = {}
    for split in splits:
        entries = listing.splits[split]
        images[split] = CaptionedImages(
            tuple(listing.path(name) for name, _ in entries),
            tuple(captions[name] for name, _ in entries) if captions else (),
            tuple(label for _, label in entries) if listing.classes else (),
            listing.read,
        )
    return ImageData(
        listing.layout, data, listing.classes, images, listing.skipped, listing.notes, listing.caveat, listing.facts,
        groups_by_path(listing), listing.folder,
    )  # fmt: skip


__all__ = ["CaptionedImages", "is_captioned", "read_captioned_data", "read_captioned_test_data"]
