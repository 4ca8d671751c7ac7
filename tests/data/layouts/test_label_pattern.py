"""Labels that a regular expression finds in the names of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from snella.config.schema import TrainConfig
from snella.config.validation import validate
from snella.data.folders.choices import Choices
from snella.data.readers.labelled import read_data, read_test_data
from snella.errors import UserError
from snella.tasks.regression.listing import lister
from support.downloads import lay, photos

FACES = {f"UTKFace/{20 + 5 * (i % 3)}_{i % 2}_{i}_2017.jpg.chip.jpg": None for i in range(24)}


def test_an_age_is_a_number_or_a_class(tmp_path: Path) -> None:
    root = lay(tmp_path, {**FACES, "UTKFace/notes.jpg": None})
    with pytest.raises(UserError, match=r"one class only.*add --label-pattern"):
        read_data(root, seed=0)
    data = read_data(root, seed=0, lister=lister(None), choices=Choices(label_pattern=r"(\d+)_[01]_"))
    assert "1 image that it does not match left out: UTKFace/notes.jpg" in data.notes
    for images in data.splits.values():
        assert images.targets == tuple((float(Path(path).name.split("_")[0]),) for path in images.paths)
    assert sum(map(len, data.splits.values())) == 24
    sexes = read_data(root, seed=0, choices=Choices(label_pattern=r"/\d+_(?P<label>[01])_"))
    assert sexes.classes == ("0", "1")
    assert sexes.splits["train"].labels == tuple(int(Path(p).name.split("_")[1]) for p in sexes.splits["train"].paths)


def test_folders_say_the_splits(tmp_path: Path) -> None:
    files = {f"{s}/{('cat', 'dog')[i % 2]}_{i}.jpg": None for s in ("train", "test") for i in range(8)}
    data = read_data(lay(tmp_path, {**files, "cat_9.jpg": None}), seed=0, choices=Choices(label_pattern="cat|dog"))
    assert {Path(path).parts[-2] for path in data.splits["test"].paths} == {"test"}
    assert len(data.splits["test"]) == 8
    assert "1 image outside the splits left out: cat_9.jpg" in data.notes


def test_a_pattern_that_matches_nothing_is_refused_but_for_tests(tmp_path: Path) -> None:
    root = lay(tmp_path, photos("cat", "dog"))
    with pytest.raises(UserError, match=r"--label-pattern .* matches none of the 16 images"):
        read_data(root, seed=0, choices=Choices(label_pattern="horse"))
    assert (
        len(read_test_data(root, ("cat", "dog"), seed=0, choices=Choices(label_pattern="horse")).splits["test"]) == 16
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"label_pattern": "("}, r"--label-pattern \( is not a regular expression"),
        ({"label_pattern": "a", "classes": "top"}, "pass one of them"),
        ({"label_pattern": "a", "task": "segment"}, "--task classify or regress only"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        validate(TrainConfig.of(data="x", **values))
