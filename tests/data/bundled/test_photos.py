"""The bundled photographs: crops that stay in their strips, named alike everywhere."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from snella.data.bundled import packages, photos
from snella.data.bundled.photos import COUNTS, SETS, SIZE, Crops, crops
from snella.data.readers.captioned import is_captioned, read_captioned_data, read_captioned_test_data
from snella.errors import UserError

Box = tuple[int, int, int, int]  # top, left, bottom, right
SPLITS = ("train", "val", "test")


def boxes(found: Crops, split: str, kind: str) -> list[Box]:
    corners = [name.split("-") for name, label in found.names(split) if found.classes[label] == kind]
    assert {corner[0] for corner in corners} == {kind}
    return [(int(top), int(left), int(top) + SIZE, int(left) + SIZE) for _, top, left in corners]


def around(several: list[Box]) -> Box:
    low, high = np.min(several, axis=0), np.max(several, axis=0)
    return int(low[0]), int(low[1]), int(high[2]), int(high[3])


def overlap(first: Box, second: Box) -> bool:
    return all(max(first[i], second[i]) < min(first[i + 2], second[i + 2]) for i in (0, 1))


@pytest.mark.parametrize("name", SETS)
def test_crops_of_two_splits_share_no_pixel(name: str) -> None:
    found = crops(name)
    for kind in found.classes:
        strips = {split: around(boxes(found, split, kind)) for split in SPLITS}
        assert not any(overlap(strips[one], strips[other]) for one, other in combinations(SPLITS, 2))
        height, width = photos._photo(name, kind).shape[:2]
        assert min(height, width) == 192
        top, left, bottom, right = around(list(strips.values()))
        assert 0 <= top <= 8
        assert 0 <= left <= 8
        assert height - 8 <= bottom <= height  # and they cover the photograph
        assert width - 8 <= right <= width


@pytest.mark.parametrize("name", SETS)
def test_as_many_crops_as_promised_all_different_and_the_same_each_time(name: str) -> None:
    first, second = crops(name), crops(name)
    for split, count in COUNTS[name].items():
        names = first.names(split)
        assert names == second.names(split)
        labels = [label for _, label in names]
        assert [labels.count(label) for label in range(len(first.classes))] == [count] * len(first.classes)
        assert len(set(names)) == len(names)
    assert first.classes == tuple(photo.kind for photo in SETS[name])


def test_no_kind_is_in_both_sets() -> None:
    kinds = [kind for name in SETS for kind in crops(name).classes]
    assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize("name", SETS)
def test_a_crop_is_the_place_that_its_name_says(name: str) -> None:
    found = crops(name)
    for crop, label in found.names("test")[:: len(found.names("test")) // 5]:
        _, top, left = crop.split("-")
        picture = found.read(crop)
        whole = Image.fromarray(photos._photo(name, found.classes[label]))
        box = (int(left), int(top), int(left) + SIZE, int(top) + SIZE)
        assert (picture.size, picture.mode) == ((SIZE, SIZE), "RGB")
        assert np.array_equal(np.asarray(picture), np.asarray(whole.crop(box)))


@pytest.mark.parametrize("name", SETS)
def test_read_by_name_as_any_data(name: str) -> None:
    assert is_captioned(name)
    data = read_captioned_data(name, seed=0, prompt="a photo of {class}")
    assert data.classes == crops(name).classes
    kinds = len(data.classes)
    for split in SPLITS:
        images = data.splits[split]
        assert len(images) == COUNTS[name][split] * kinds
        assert images.captions[0] == f"a photo of {data.classes[0]}"
        picture = images[-1]["image"]
        assert isinstance(picture, Image.Image)
        assert picture.size == (SIZE, SIZE)
    assert read_captioned_data(name, seed=7).splits["train"].paths == data.splits["train"].paths
    for photo in SETS[name]:
        assert any(f"{photo.kind} {photo.terms}" in note for note in data.notes)  # its licence
    test = read_captioned_test_data(name, classes=data.classes, prompt=None, seed=0)
    assert test.splits["test"].paths == data.splits["test"].paths
    assert test.splits["test"].labels == data.splits["test"].labels


def test_another_name_lists_these() -> None:
    with pytest.raises(UserError, match="photos-new") as caught:
        read_captioned_data("photo", seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package", ["skimage", "sklearn"])
def test_a_missing_package_is_named_with_how_to_install_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(UserError, match=rf"of the package {package};.*pip install scikit-image") as caught:
        read_captioned_data("photos", seed=0)
    assert "\n" not in str(caught.value)


def test_a_package_without_the_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.os.path, "exists", lambda path: not str(path).endswith("chelsea.png"))
    with pytest.raises(UserError, match=r"needs chelsea\.png of the package skimage"):
        crops("photos-new")


def test_a_folder_of_that_name_goes_first(monkeypatch: pytest.MonkeyPatch, tmp_path, class_folders) -> None:
    class_folders(tmp_path / "photos", cat=4, dog=4)
    monkeypatch.chdir(tmp_path)
    assert not is_captioned("photos")
    assert read_captioned_data("photos", seed=0).classes == ("cat", "dog")
