"""The settings of the data: where the images are, and how they become batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from snella.config.fields import at_least, between, from_below, inside, setting
from snella.config.tasks import LABELLED, LOOKING, WHOLE_IMAGE

Suspected = Literal[
    "copies", "lookalikes", "groups", "split-names", "spelling", "labels", "one-split", "imbalance", "empty", "dark"
]
SET_ASIDE = 0.15  # share of the images for a split that labelled data lacks


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images are, and how they become batches."""

    source: str | None = setting(None, flag_name="data")
    """Where the images are. Needed; has no default.
    A folder of class folders, or of train, val and test with class folders; a CSV or JSONL manifest;
    a VTAB-1k or FGVC folder; hfds/NAME, torch/NAME or wds/NAME;
    elpv, elpv-levels, elpv-mono, elpv-poly, elpv-type, textiles, faces, digits, mnist or climate (in packages).
    To segment: a folder with images and masks, an ADE20K or Pascal VOC folder, or brain (in a package).
    To generate: a folder with metadata.jsonl or with a .txt beside each image, class folders, images alone;
    photos or photos-new (in packages)."""
    classes: Literal["leaf", "top", "path", "names"] | None = setting(None, tasks=(*WHOLE_IMAGE, "generate"))
    """What the class of an image is, where folders can be read in several ways: leaf, the folder that it lies in; top,
    the first folder below that of the data or of its split; path, all folders between; names, the beginning of its own
    file's name (cat.1.jpg, cat_2.jpg). None: as the folders say, which stops where they can be read in several ways."""
    resize: Literal["squash", "crop", "none"] | None = setting(None)
    """How an image becomes square: squash resizes both sides, as VTAB-1k does; nothing is cut off.
    crop resizes the short side and cuts out the centre, as FGVC does. To segment, crop and none (pixels as they are)
    train on random squares and find the classes of a whole image by sliding a square over it. To generate, crop keeps
    all that fits a square. None: squash; to generate, crop."""
    normalisation: Literal["backbone", "imagenet"] = setting("backbone", tasks=LOOKING)
    """Whose mean and standard deviation of colours the images are given in: the backbone's, as it was pre-trained,
    or ImageNet's, as the published code has it with every backbone. Not to generate."""
    augment: Literal["none", "flip", "crop"] = setting("flip")
    """How training images vary: none, flip (left-right) or crop (random-resized crop and flip, as for FGVC).
    flip changes no scale, so it suits most images; use none where left and right matter. To generate, crop keeps the
    scale: a random square."""
    color_jitter: float = setting(0.0, between(0, 100))
    """Strength of brightness, contrast and saturation changes. Off as published."""
    batch_size: int | Literal["auto"] | None = setting(None, at_least(1))
    """Images per batch; a step takes --accumulate of them. The published recipes use 8 to 32. None: 8 for fewer than
    500 training images, 16 for fewer than 2,000, else 32; to generate, 32.
    auto: the largest power of two that fits the memory (--memory, or what is free) and is not above the number of
    training images."""
    label_smoothing: float = setting(0.0, from_below(0, 1), tasks=LABELLED)
    """Share of the target spread over the other classes, to classify and to segment, 0 to 1. Off as published."""
    class_weights: bool = setting(False, tasks=LABELLED)
    """Weigh classes by the inverse of their frequency, for unbalanced data, to classify and to segment."""
    white: int | None = setting(None, between(1, 65535))
    """The value of 16-bit grey images that is white; no image may have a larger one. It is kept with the run.
    None: the largest value of the bits that the data set uses (4095 for 12 of 16), which is said."""
    trust: tuple[Suspected, ...] | None = setting(None, free=True)
    """Suspicions that are not said, since what looks wrong is meant: copies (equal files in two splits or classes),
    lookalikes (images of two splits that look the same), groups (a group in two splits), split-names (classes called
    train or test), spelling (names that differ in case, spaces or zeros), labels (classes called none or n/a),
    one-split (classes in one split only), imbalance (one class above 95 %), empty (images that show nothing), dark
    (values far below their range)."""
    val_fraction: float | None = setting(None, inside(0, 1))
    """Share of each class set aside for choosing the epoch, where the data has no such split. 0 to 1. None: 0.15; to
    generate, none: all images are trained on, and stand for those set aside."""
    test_fraction: float | None = setting(None, inside(0, 1))
    """Share of each class set aside for the final test, where the data has no split of its own. 0 to 1. None: 0.15; to
    generate, none."""
    shots: int | None = setting(None, at_least(1), tasks=("classify",))
    """Images of each class to train on, at most, to classify: drawn by the seed out of the train split; val and test
    stay. None: all."""
    group_column: str | None = setting(None, tasks=LOOKING)
    """Column of a manifest, or a table of images, that says what images belong together (a patient, a tile, a video):
    they are in one split. Not to generate."""
    group_pattern: str | None = setting(None)
    """The same by a regular expression, which is searched for in the path of each image below the data: its first
    group in parentheses, or all that it matches, such as 'patient_[0-9]+'."""
    splits: str | None = setting(None)
    """Table (.csv, .jsonl) with the columns file and split, such as the splits.csv of a run, that divides the images in
    place of the data's own splits. Files are named by their paths below the data; a split that the table does not have
    is taken out of train."""
    folds: int | None = setting(None, at_least(2))
    """Cross-validation: so many runs, each of which has another part of train and val for its test split, in fold-1,
    fold-2 ... of the folder for the results; then the predictions of all images, by the run that has not trained on
    them, and the mean and spread of the metrics. A test split that the data has is left alone."""
    fold: int | None = setting(None, at_least(1))
    """One of the --folds alone, from 1, as an ordinary run."""
    decode: Literal["whole", "reduced"] = setting("whole", tasks=WHOLE_IMAGE)
    """How JPEG files to train on are decoded, not to segment or to generate. reduced: at a half, a quarter or an eighth
    of their sides where twice what the model sees is left, and all of the smallest random crop: several times as fast
    for a camera's photographs, and nearly the same pixels. Val, test and predictions decode the whole."""
    workers: int | None = setting(None, between(0, 256), free=True)
    """Processes that decode images, at most 256.
    None: one per core up to 8 beside a GPU, none beside a CPU that trains."""
    cache_images: Literal["auto", "on", "off"] = setting("auto", free=True)
    """Keep decoded images in memory, which all workers share: the same results, without decoding in each epoch.
    auto: beside a GPU, where they take at most a quarter of the memory that is free."""

    @property
    def fractions(self) -> dict[str, float]:
        """Return the shares set aside of labelled data, as the readers take them."""
        given = {"val_fraction": self.val_fraction, "test_fraction": self.test_fraction}
        return {name: SET_ASIDE if share is None else share for name, share in given.items()}

    @property
    def images_per_batch(self) -> int:
        """Return the batch size, once what None or `auto` stands for has taken its place."""
        assert isinstance(self.batch_size, int)
        return self.batch_size
