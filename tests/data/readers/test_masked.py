from __future__ import annotations

import os
from pathlib import Path

import pytest

from snella.data.loading import ImageBatches
from snella.data.masks.files import IGNORE, MaskCode, MaskData
from snella.data.readers.labelled import read_data
from snella.data.readers.masked import is_masked, read_masked_data, read_masked_test_data
from snella.data.transforms.images import Preprocessing
from snella.data.transforms.masked import masked_eval_transform
from snella.errors import UserError
from support.masked import refusal, write_image, write_mask, write_pairs

VALUES = "classes are called by their values, 0 to 2; if one of them stands for no class (void), set --ignore-index"


def sizes(data: MaskData) -> dict[str, int]:
    return {split: len(images) for split, images in data.splits.items()}


def names(data: MaskData, split: str) -> list[str]:
    return [os.path.basename(path) for path in data.splits[split].paths]


def test_a_folder_becomes_three_splits(tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "set", 20)
    data = read_masked_data(root, seed=0)
    assert (data.layout, data.root, data.classes) == ("images and masks", root, ("0", "1", "2"))
    assert data.code == MaskCode((0, 1, 2))
    assert list(data.splits) == ["train", "val", "test"]
    assert sizes(data) == {"train": 14, "val": 3, "test": 3}
    assert data.pixels == {"train": (14 * 40,) * 3, "val": (3 * 40,) * 3, "test": (3 * 40,) * 3}
    assert data.notes == (
        VALUES,
        "val (3 images) and test (3 images) taken out of the 20 training images, seed 0",
    )
    assert len({name for split in data.splits for name in names(data, split)}) == 20
    example = data.splits["train"][0]
    assert example["mask"].flatten().tolist() == [0, 1, 2] * 40
    for images in data.splits.values():
        for image, mask in zip(images.paths, images.masks, strict=True):
            assert os.path.basename(image) == os.path.basename(mask)


def test_the_split_is_a_function_of_seed_and_names(tmp_path: Path) -> None:
    here, there = (read_masked_data(write_pairs(tmp_path / place, 20), seed=5) for place in ("here", "there"))
    other = read_masked_data(str(tmp_path / "here"), seed=6)
    for split in ("val", "test"):
        assert names(here, split) == names(there, split)
    assert names(here, "val") != names(other, "val")
    write_pairs(tmp_path / "there", 1, first=20)
    larger = read_masked_data(str(tmp_path / "there"), seed=5)
    assert set(names(here, "val")) - set(names(larger, "val")) == set()


def test_fractions(tmp_path: Path) -> None:
    data = read_masked_data(write_pairs(tmp_path, 20), seed=0, val_fraction=0.25, test_fraction=0.5)
    assert sizes(data) == {"train": 5, "val": 5, "test": 10}
    assert "val_fraction is 0" in refusal(tmp_path, val_fraction=0)
    assert "keep it below 1" in refusal(tmp_path, val_fraction=0.5, test_fraction=0.5)
    write_pairs(tmp_path / "few", 2)
    assert "2 images are too few to take a test split" in refusal(tmp_path / "few")


def test_given_splits_stay(tmp_path: Path) -> None:
    for i, split in enumerate(("train", "val", "test")):
        write_pairs(tmp_path / split, 3, first=10 * i)
    data = read_masked_data(str(tmp_path), seed=0)
    assert sizes(data) == {"train": 3, "val": 3, "test": 3}
    assert names(data, "val") == ["10.png", "11.png", "12.png"]
    assert data.notes == (VALUES,)


def test_val_comes_out_of_train_where_only_test_is_given(tmp_path: Path) -> None:
    write_pairs(tmp_path / "train", 20)
    write_pairs(tmp_path / "test", 4, first=50)
    data = read_masked_data(str(tmp_path), seed=0)
    assert sizes(data) == {"train": 17, "val": 3, "test": 4}
    assert data.notes == (
        VALUES,
        "val (3 images) taken out of the 20 training images, seed 0",
    )
    (tmp_path / "train").rename(tmp_path / "val")
    assert "has test and val but no train split" in refusal(tmp_path)


def test_ade20k_and_voc(tmp_path: Path) -> None:
    ade = tmp_path / "ade"
    write_pairs(ade, 10, (0, 1, 3), images="images/training", masks="annotations/training")
    write_pairs(ade, 2, (0, 2), images="images/validation", masks="annotations/validation", first=50)
    (ade / "objectInfo150.txt").write_text("Idx\tName\n" + "".join(f"{i}\tclass {i}, thing\n" for i in range(1, 151)))
    data = read_masked_data(str(ade), seed=0)
    assert sizes(data) == {"train": 8, "val": 2, "test": 2}
    assert (len(data.classes), data.classes[2]) == (150, "class 3")
    assert data.code == MaskCode(tuple(range(1, 151)), ignore=(0,))
    assert set(data.splits["test"][0]["mask"].flatten().tolist()) == {IGNORE, 1}
    assert data.pixels["train"][:4] == (320, 0, 320, 0)
    assert any(note.startswith("148 of 150 classes have no pixel in train") for note in data.notes)

    voc = tmp_path / "voc"
    for i in range(6):
        write_image(voc / "JPEGImages" / f"{i}.jpg")
        write_mask(voc / "SegmentationClass" / f"{i}.png", (0, 15, 255))
    lists = voc / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n1\n2\n3\n")
    (lists / "val.txt").write_text("4\n5\n")
    data = read_masked_data(str(voc), seed=0)
    assert sizes(data) == {"train": 3, "val": 1, "test": 2}
    assert data.code == MaskCode(tuple(range(21)), ignore=(255,))
    assert data.palette[15] == (192, 128, 128)
    assert data.pixels["test"] == (80, *[0] * 14, 80, *[0] * 5)


def test_paths_that_are_not_folders(tmp_path: Path) -> None:
    write_pairs(tmp_path / "polyps", 2)
    assert "did you mean" in refusal(tmp_path / "polips")
    assert "there is no folder" in refusal(tmp_path / "gone" / "polyps")
    assert "is a single image" in refusal(tmp_path / "polyps" / "images" / "0.png")
    for name, said in (
        ("a.zip", "is an archive; unpack it"),
        ("a.txt", "is not data of a known layout; give a folder of images with a mask beside each"),
    ):
        (tmp_path / name).write_text("")
        assert said in refusal(tmp_path / name)


def test_batches_of_them(tmp_path: Path) -> None:
    data = read_masked_data(write_pairs(tmp_path, 8), seed=0)
    transform = masked_eval_transform(Preprocessing(16, resize="squash"))
    batch = next(iter(ImageBatches(data.splits["train"], transform, batch_size=4, shuffle=False, seed=0)))
    assert (batch["image"].shape, batch["mask"].shape) == ((4, 3, 16, 16), (4, 10, 12))


def test_class_folders_reader_points_to_the_task(tmp_path: Path, class_folders) -> None:
    root = write_pairs(tmp_path / "set", 2)
    with pytest.raises(UserError) as caught:
        read_data(root, seed=0)
    assert str(caught.value) == (
        f"{root} holds images with masks; add --task segment; to classify give the folder of the images alone, or add "
        "--classes top if its folders are classes, --label-column if a table or list names them"
    )
    class_folders(tmp_path / "pets", images=5, cat=5)
    assert read_data(str(tmp_path / "pets"), seed=0).classes == ("cat", "images")


def test_data_reads_with_the_models_code(tmp_path: Path) -> None:
    code = MaskCode((0, 1, 2))

    def read(root: str) -> MaskData:
        palette = ((0, 0, 0), (1, 1, 1), (2, 2, 2))
        return read_masked_test_data(root, classes=("a", "b", "c"), code=code, palette=palette, seed=0)

    root = write_pairs(tmp_path / "set", 4, (0, 1))
    data = read(root)
    assert (list(data.splits), data.classes, data.code) == (["test"], ("a", "b", "c"), code)
    assert data.pixels == {"test": (240, 240, 0)}
    assert data.notes == ("1 of 3 classes have no pixel in test: c",)
    path = write_mask(tmp_path / "set" / "masks" / "2.png", (0, 7))
    with pytest.raises(UserError) as caught:
        read(root)
    assert f"{path}: value 7 stands for no class (0 to 2)" in str(caught.value)
    write_pairs(tmp_path / "split" / "train", 3)
    write_pairs(tmp_path / "split" / "val", 2)
    (tmp_path / "split" / "classes.json").write_text('["a", "b", "z"]')
    with pytest.raises(UserError, match="class 'z' is not among the model's 3 classes"):
        read(str(tmp_path / "split"))
    (tmp_path / "split" / "classes.json").write_text('["c", "a", "b"]')
    data = read(str(tmp_path / "split"))
    assert sizes(data) == {"test": 2}
    assert data.notes == ("no test split: val is used",)
    assert (data.classes, data.code.values) == (("a", "b", "c"), (1, 2, 0))  # by name: 0 is c and 1 is a
    assert int(data.splits["test"][0]["mask"][0, 0]) == 2
    write_pairs(tmp_path / "split" / "test", 1)
    assert sizes(read(str(tmp_path / "split"))) == {"test": 1}


def test_what_looks_like_masks(tmp_path: Path, monkeypatch) -> None:
    assert is_masked(write_pairs(tmp_path, 1))
    monkeypatch.chdir(tmp_path)
    assert is_masked("brain")
    assert not is_masked("elpv")
    assert not is_masked("images/0.png")
    (tmp_path / "brain").mkdir()
    assert not is_masked("brain")
