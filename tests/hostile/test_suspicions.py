"""What looks wrong in data that can be read: a line before training, and exit code 1 with --strict."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snella.config.data import Suspected
from snella.data.readers.labelled import read_data
from snella.data.readers.suspicions import KINDS, suspicions
from support.hostile import Case, Make, check, folders, images, table, together
from support.runs import train, write_images

SPLITS = ("train", "val", "test")
FINE = images(*(f"d/{split}/{name}/{split}{name}{i}.png" for split in SPLITS for name in "xy" for i in range(4)))
LABELLED = [f"{i}.png" for i in range(12)]
HASHES = ("0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210")


def copied(source: str, target: str) -> Make:
    def make(root: Path) -> None:
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / source, root / target)

    return make


def saved_again(source: str, target: str, share: float) -> Make:
    """A copy in another size and format."""

    def make(root: Path) -> None:
        image = Image.open(root / source)
        image.resize((int(image.width * share), int(image.height * share))).save(root / target, quality=85)

    return make


def smooth(*names: str) -> Make:
    """Pictures of large shapes, as photographs have them: noise is another in every size."""

    def make(root: Path) -> None:
        for seed, name in enumerate(names):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            small = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
            Image.fromarray(small).resize((96, 80), Image.Resampling.BICUBIC).save(root / name)

    return make


def plain(mode: str, color: object, *names: str) -> Make:
    def make(root: Path) -> None:
        for name in names:
            Image.new(mode, (9, 9), color).save(root / name)  # pyright: ignore[reportArgumentType]

    return make


def dark(high: int, dtype: type) -> Make:
    def make(root: Path) -> None:
        for i in range(24):
            path = root / "d" / "xy"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(i).integers(0, high, (16, 16)).astype(dtype)).save(path)

    return make


def labels(*names: str) -> Make:
    rows = [(image, names[i % len(names)]) for i, image in enumerate(LABELLED)]
    return together(images(*LABELLED), table(*rows))


def strict(make: Make, *said: str, data: str = "d") -> Case:
    return Case(make, f"data {data} --strict", 1, said)


SHAPES = smooth(*(f"d/{split}/{name}/{i}.png" for split in SPLITS for name in "xy" for i in range(4)))
IN_TWO_SPLITS = together(FINE, copied("d/train/x/trainx0.png", "d/test/x/copy.png"))

# what was not said -> the case
CASES: dict[str, Case] = {
    "nothing": Case(FINE, "data d --strict", 0, ("2 classes",), ("suspicion",)),
    "a file in train and test": strict(
        IN_TWO_SPLITS,
        "2 files in two splits are equal byte for byte: d/train/x/trainx0.png (train) and d/test/x/copy.png (test)",
        "--trust copies",
    ),
    "a file in two classes": strict(
        together(FINE, copied("d/train/x/trainx0.png", "d/train/y/copy.png")),
        "2 files in two classes are equal byte for byte: d/train/x/trainx0.png (train) and d/train/y/copy.png (train)",
    ),
    "images that stand for val and test as well": Case(
        images(*(f"d/{i}.png" for i in range(3))),
        "data d --task generate --strict",
        0,
        ("stand for val",),
        ("suspicion",),
    ),
    "trusted": Case(IN_TWO_SPLITS, "data d --strict --trust copies", 0, ("2 classes",), ("suspicion",)),
    "not strict": Case(IN_TWO_SPLITS, "data d", 0, ("suspicion: 2 files",)),
    "a photograph, smaller, in test": strict(
        together(SHAPES, saved_again("d/train/x/0.png", "d/test/x/new.jpg", 0.5)),
        "1 images look like one of another split: d/train/x/0.png (train) and d/test/x/new.jpg (test)",
        "--trust lookalikes",
    ),
    "augmented copies in two splits": strict(
        together(FINE, images(f"d/train/x/p_jpg.rf.{HASHES[0]}.jpg", f"d/test/x/p_jpg.rf.{HASHES[1]}.jpg")),
        "1 photographs have augmented copies in two splits, by their names",
        "--trust lookalikes",
    ),
    "splits for labels": strict(
        labels("train", "x", "y"), "1 classes are called as splits are: train", "--trust split-names", data="m.csv"
    ),
    "Red and red": strict(
        labels("Red", "red", "blue"),
        "1 names of classes are spelt in two ways: 'Red' (4 images) and 'red' (4 images)",
        "--trust spelling",
        data="m.csv",
    ),
    "1 and 01": strict(
        labels("1", "01", "2", "10"), "spelt in two ways: '01' (3 images) and '1' (3 images)", data="m.csv"
    ),
    "spaces and dashes": strict(
        labels("red car", "red_car", "bus"), "'red car' (4 images) and 'red_car' (4 images)", data="m.csv"
    ),
    "None": strict(labels("None", "x"), "1 classes are called as missing labels are: 'None' (6 images)", data="m.csv"),
    "a class in train alone": strict(
        together(FINE, images(*(f"d/train/z/{i}.png" for i in range(3)))),
        "1 of 3 classes are in one split only: 'z' (3 in train)",
        "--trust one-split",
    ),
    "one class nearly alone": strict(
        folders(x=97, y=3), "97.0% of the images (97 of 100) are of one class, 'x'", "--trust imbalance"
    ),
    "images that show nothing": strict(
        together(FINE, plain("RGBA", (9, 9, 9, 0), "d/train/x/clear.png"), plain("RGB", "gray", "d/train/y/grey.png")),
        "2 images show nothing (one colour, or transparent): d/train/x/clear.png",
        "--trust empty",
    ),
    "values of 4 bits in 8": strict(dark(16, np.uint8), "24 images have no value above 15 of 255", "--trust dark"),
    "values of 12 bits in 16": Case(
        dark(4096, np.uint16), "data d --strict", 0, ("use 12 of 16 bits", "4095 is taken for white; --white 65535")
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_line_says_it(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    check(CASES[name], tmp_path, monkeypatch, capsys)


def test_every_kind_can_be_trusted() -> None:
    assert set(Suspected.__args__) == KINDS.keys()  # pyright: ignore[reportAttributeAccessIssue]


def test_training_says_it_first(tmp_path: Path, capsys) -> None:
    root = write_images(tmp_path / "d", count=8)
    shutil.copy(root / "c0" / "0.png", root / "c1" / "copy.png")
    assert train(root, tmp_path / "run", "--estimate") == 0
    assert "  suspicion: 2 files in two classes are equal byte for byte" in capsys.readouterr().out


def test_the_same_is_suspected_each_time(tmp_path: Path) -> None:
    together(IN_TWO_SPLITS, copied("d/train/y/trainy0.png", "d/val/y/b.png"))(tmp_path)
    first, second = (suspicions(read_data(str(tmp_path / "d"), seed=0)) for _ in range(2))
    assert first == second != []


# 20 copies of one photograph stood in train and test.
def test_copies_of_one_photograph_stay_in_one_split(tmp_path: Path) -> None:
    names = [f"photo{i % 6}_jpg.rf.{i:032x}.png" for i in range(120)]
    images(*(f"d/x/{name}" for name in names), *(f"d/y/{i}.png" for i in range(20)))(tmp_path)
    data = read_data(str(tmp_path / "d"), seed=0)
    files = {split: {Path(path).name for path in data.splits[split].paths} for split in SPLITS}
    photographs = {split: {name.split("_")[0] for name in found if ".rf." in name} for split, found in files.items()}
    assert set.union(*photographs.values()) == {f"photo{i}" for i in range(6)}
    assert sum(map(len, photographs.values())) == 6  # none is in two
    assert all(photographs.values())
    assert [found.kind for found in suspicions(data)] == []
