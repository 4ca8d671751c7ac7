from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from snella.data.dataset import ImageData
from snella.data.readers.captioned import CaptionedImages, read_captioned_data, read_captioned_test_data
from snella.errors import UserError


def captioned(root: Path, picture, count: int) -> str:
    rows = []
    for i in range(count):
        picture(root / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": f"number {i}"}))
    (root / "metadata.jsonl").write_text("\n".join(rows))
    return str(root)


def plain(root: Path, picture, count: int) -> str:
    for i in range(count):
        picture(root / f"{i}.png")
    return str(root)


def sizes(data: ImageData[CaptionedImages]) -> dict[str, int]:
    return {split: len(images) for split, images in data.splits.items()}


def refused(data: str, **options) -> str:
    with pytest.raises(UserError) as caught:
        read_captioned_data(data, seed=0, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_captions_stay_with_their_images_through_the_splits(tmp_path: Path, picture) -> None:
    root = captioned(tmp_path, picture, 20)
    data = read_captioned_data(root, seed=3)
    assert sizes(data) == {"train": 14, "val": 3, "test": 3}
    assert (data.classes, data.root, data.skipped) == ((), root, ())
    assert data.notes == ("val (3 images) and test (3 images) taken out of the 20 training images, seed 3",)
    paths = [path for images in data.splits.values() for path in images.paths]
    assert sorted(paths) == sorted(str(tmp_path / f"{i}.png") for i in range(20))
    for images in data.splits.values():
        assert not images.labels
        for path, caption in zip(images.paths, images.captions, strict=True):
            assert caption == f"number {Path(path).stem}"
    first = data.splits["train"][0]
    assert first.keys() == {"image", "caption"}
    assert first["image"].mode == "RGB"
    assert read_captioned_data(root, seed=3) == data
    assert read_captioned_data(root, seed=4).splits != data.splits
    assert sizes(read_captioned_data(root, seed=3, val_fraction=0.5, test_fraction=0.1)) == {
        "train": 8,
        "val": 10,
        "test": 2,
    }


def test_classes_give_labels_and_captions(tmp_path: Path, class_folders) -> None:
    root = class_folders(tmp_path, golden_retriever=10, **{"t-shirt": 20})
    data = read_captioned_data(root, seed=0)
    assert data.classes == ("golden_retriever", "t-shirt")
    assert "stratified by class" in data.notes[0]
    for images in data.splits.values():
        spoken = ["golden retriever", "t shirt"]
        assert list(images.captions) == [spoken[label] for label in images.labels]
        assert {data.classes[label] for label in images.labels} == set(data.classes)
        assert [Path(path).parent.name for path in images.paths] == [data.classes[label] for label in images.labels]
    assert data.splits["test"][0].keys() == {"image", "caption", "label"}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a photo of a {class}, {class}!", "a photo of a my dog, my dog!"), ("sks {thing}", "sks {thing}")],
)
def test_a_prompt_for_one_class_folder(tmp_path: Path, class_folders, prompt: str, expected: str) -> None:
    data = read_captioned_data(class_folders(tmp_path, my_dog=5), seed=0, prompt=prompt)
    assert data.classes == ("my_dog",)
    assert set(data.splits["train"].captions) == {expected}
    assert set(data.splits["train"].labels) == {0}
    assert "stratified" not in data.notes[0]


def test_a_plain_folder_with_and_without_a_prompt(tmp_path: Path, picture) -> None:
    root = plain(tmp_path, picture, 5)
    data = read_captioned_data(root, seed=0, prompt="a photo of sks dog")
    assert [set(images.captions) for images in data.splits.values()] == [{"a photo of sks dog"}] * 3
    data = read_captioned_data(root, seed=0)
    assert data.splits["train"].captions == data.splits["train"].labels == ()
    assert data.splits["train"][0].keys() == {"image"}


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_images_stand_for_their_own_evaluation(tmp_path: Path, picture, count: int) -> None:
    data = read_captioned_data(plain(tmp_path, picture, count), seed=0, prompt="x")
    assert data.splits["train"] == data.splits["val"] == data.splits["test"]
    assert len(data.splits["train"]) == count
    assert "too few to take val and test out of" in data.notes[0]
    assert f"the {count} training images stand for them" in data.notes[0]


def test_three_images_are_one_each(tmp_path: Path, picture) -> None:
    data = read_captioned_data(plain(tmp_path, picture, 3), seed=0)
    assert sizes(data) == {"train": 1, "val": 1, "test": 1}
    assert len({images.paths for images in data.splits.values()}) == 3


def test_classes_too_small_to_spare_an_image(tmp_path: Path, class_folders) -> None:
    data = read_captioned_data(class_folders(tmp_path / "ones", a=1, b=1, c=1), seed=0)
    assert sizes(data) == {"train": 3, "val": 3, "test": 3}
    data = read_captioned_data(class_folders(tmp_path / "twos", a=2, b=2), seed=0)
    assert sizes(data) == {"train": 2, "val": 2, "test": 2}
    assert not set(data.splits["val"].paths) & set(data.splits["train"].paths)
    assert data.splits["test"] == data.splits["train"]
    assert data.notes == (
        "val (2 images) taken out of the 4 training images, stratified by class, seed 0",
        "4 images are too few to take test out of: the 2 training images stand for them",
    )


def test_a_split_that_is_there_stays(tmp_path: Path, class_folders) -> None:
    class_folders(tmp_path, train=10, test=1)
    data = read_captioned_data(str(tmp_path), seed=0)
    assert sizes(data) == {"train": 8, "val": 2, "test": 1}
    assert data.splits["test"].paths == (str(tmp_path / "test" / "0.png"),)
    class_folders(tmp_path / "without", val=2, test=1)
    assert "has test and val but no train split" in refused(str(tmp_path / "without"))


def test_a_class_that_a_split_lacks_is_noted(tmp_path: Path, class_folders) -> None:
    class_folders(tmp_path / "train", a=3, b=3)
    class_folders(tmp_path / "val", a=1)
    class_folders(tmp_path / "test", a=1, b=1)
    data = read_captioned_data(str(tmp_path), seed=0)
    assert data.notes == ("1 of 2 classes have no image in val: b",)


def test_unreadable_images_are_left_out_and_listed(tmp_path: Path, picture) -> None:
    root = captioned(tmp_path, picture, 10)
    (tmp_path / "4.png").write_bytes(b"")
    seen: list[tuple[int, int]] = []
    data = read_captioned_data(root, seed=0, progress=lambda *done: seen.append(done))
    assert [error.path for error in data.skipped] == [str(tmp_path / "4.png")]
    assert sum(sizes(data).values()) == 9
    assert "number 4" not in {caption for images in data.splits.values() for caption in images.captions}
    assert seen[-1] == (10, 10)
    for i in range(10):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    assert "none of the 10 images can be read, the first: " in refused(root)


def test_contradictions_are_refused(tmp_path: Path, picture, class_folders) -> None:
    root = captioned(tmp_path / "meta", picture, 4)
    assert "captions in metadata.jsonl and a prompt is given; drop the prompt" in refused(root, prompt="x")
    picture(tmp_path / "text" / "a.png")
    (tmp_path / "text" / "a.txt").write_text("x")
    assert "captions in text files and a prompt" in refused(str(tmp_path / "text"), prompt="x")
    root = plain(tmp_path / "plain", picture, 4)
    assert "has no class folders; sort its images into some" in refused(root, prompt="a {class}")
    assert "the prompt is empty" in refused(root, prompt=" ")
    assert "the prompt is empty" in refused(class_folders(tmp_path / "classes", a=4), prompt="")
    assert "val_fraction" in refused(root, val_fraction=0.0)


def test_paths_that_are_not_folders_are_refused(tmp_path: Path, picture) -> None:
    root = plain(tmp_path / "photos", picture, 1)
    assert "is a single image; give the folder" in refused(f"{root}/0.png")
    assert "did you mean" in refused(str(tmp_path / "photo"))
    assert "give a folder of images" in refused(str(tmp_path / "nowhere" / "x"))
    (tmp_path / "set.zip").touch()
    assert "is an archive; unpack it" in refused(str(tmp_path / "set.zip"))
    (tmp_path / "m.jsonl").touch()
    assert "is not data of a known layout; give a folder of images" in refused(str(tmp_path / "m.jsonl"))


def test_a_folder_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch) -> None:
    def denied(folder: str) -> list[str]:
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr("snella.data.layouts.caption_folders.tree", denied)
    assert refused(str(tmp_path)) == f"{tmp_path} cannot be read: permission denied; check it"


def test_test_data_takes_the_test_split_or_the_whole(tmp_path: Path, picture, class_folders) -> None:
    data = read_captioned_test_data(captioned(tmp_path / "whole", picture, 4), classes=(), prompt=None, seed=0)
    assert sizes(data) == {"test": 4}
    assert data.splits["test"].captions == tuple(f"number {i}" for i in range(4))
    root = class_folders(tmp_path / "splits", train=3, val=2)
    data = read_captioned_test_data(root, classes=(), prompt=None, seed=0)
    assert (sizes(data), data.notes) == ({"test": 2}, ("no test split: val is used",))


def test_test_data_is_labelled_by_the_models_classes(tmp_path: Path, class_folders) -> None:
    root = class_folders(tmp_path, big_dog=1, cat=2)
    data = read_captioned_test_data(root, classes=("cat", "x", "big_dog"), prompt="one {class}", seed=0)
    assert data.classes == ("cat", "x", "big_dog")
    assert data.splits["test"].labels == (2, 0, 0)
    assert data.splits["test"].captions == ("one big dog", "one cat", "one cat")
    data = read_captioned_test_data(root, classes=(), prompt=None, seed=0)
    assert (data.classes, data.splits["test"].labels) == ((), ())
    assert data.splits["test"].captions == ("big dog", "cat", "cat")
    with pytest.raises(UserError, match=r"class 'big_dog' of .* is not among the model's 1 classes"):
        read_captioned_test_data(root, classes=("cat",), prompt=None, seed=0)


def test_test_data_of_another_kind_than_the_models(tmp_path: Path, picture) -> None:
    root = captioned(tmp_path / "meta", picture, 2)
    data = read_captioned_test_data(root, classes=("a", "b"), prompt="a {class}", seed=0)
    assert data.splits["test"].captions == ("number 0", "number 1")
    assert (data.classes, data.splits["test"].labels) == ((), ())
    assert data.notes == ("the data's captions are used, not the model's prompt",)
    root = plain(tmp_path / "plain", picture, 2)
    with pytest.raises(UserError, match="no class folders"):
        read_captioned_test_data(root, classes=("a", "b"), prompt="a {class}", seed=0)


def test_images_for_workers_and_wrong_counts() -> None:
    images = CaptionedImages(("a.png",), ("a cat",), (1,))
    assert pickle.loads(pickle.dumps(images)) == images
    with pytest.raises(ValueError, match="1 paths but 2 captions"):
        CaptionedImages(("a.png",), captions=("x", "y"))
    with pytest.raises(ValueError, match="1 paths but 2 labels"):
        CaptionedImages(("a.png",), labels=(1, 2))


def test_all_images_are_trained_on_unless_a_split_is_asked_for(tmp_path: Path, picture) -> None:
    root = captioned(tmp_path, picture, 5)
    data = read_captioned_data(root, seed=0, val_fraction=None, test_fraction=None)
    assert sizes(data) == {"train": 5, "val": 5, "test": 5}
    assert data.notes[-1].startswith("all 5 images are trained on, and stand for val and test")
    assert data.caveat == "the losses on val and test are those of images that the model has trained on"
    data = read_captioned_data(root, seed=0, val_fraction=0.2, test_fraction=None)
    assert sizes(data) == {"train": 4, "val": 1, "test": 4}
    assert data.notes[-1].startswith("all 4 images are trained on, and stand for test")
    assert read_captioned_data(root, seed=0, val_fraction=0.2, test_fraction=0.2).caveat == ""


def test_a_folder_called_images_is_no_class(tmp_path: Path, picture) -> None:
    for i in range(4):
        picture(tmp_path / "images" / f"{i}.png")
    data = read_captioned_data(str(tmp_path), seed=0)
    assert (data.layout, data.classes) == ("images", ())
    assert data.splits["train"].captions == ()
