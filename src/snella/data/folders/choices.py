"""What a user chooses where a data set can be read in several ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ClassesFrom = Literal["leaf", "top", "path", "names"]


@dataclass(frozen=True)
class Choices:
    """How to read labelled images; None and False leave it to the layout, which stops where it cannot be sure.

    Args:
        classes: what the class of an image is: the folder that it lies in, the first folder below the root or the
            split, all folders between, or the beginning of its own name.
        label_column: the column of a table or a list that holds the labels: its name, or its number, the image's
            being 0.
        label_pattern: a regular expression that is searched for in the path of each image, whose group is its label.
        crops: each box of a detection data set becomes an image of its class.
        group_column: the column of a table that says what images belong together, in one split.
        splits: the table of splits that a user names, which says no labels.
        of_run: they are those of a run that is tested on other data: what does not apply there is passed over.
    """

    classes: ClassesFrom | None = None
    label_column: str | None = None
    label_pattern: str | None = None
    crops: bool = False
    group_column: str | None = None
    splits: str | None = None
    of_run: bool = False


NO_CHOICE = Choices()
