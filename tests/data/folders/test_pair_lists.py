"""Images and masks by lists of pairs or of names, and masks that folders or names say in other ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snella.data.folders.choices import Choices
from snella.data.readers.labelled import read_data
from snella.data.readers.masked import read_masked_data
from snella.errors import UserError
from snella.tasks.registry import task_for
from support.downloads import Files, lay

MASK = (0, 1)
SPLIT_OF = {i: ("train", "val", "test")[i // 3] for i in range(9)}


def listed(line: str, ending: str = "txt", head: str = "") -> dict[str, object]:
    """Return train, val and test lists of nine images."""
    return {
        f"{split}.{ending}": head + "".join(f"{line.replace('N', str(i))}\n" for i in range(9) if SPLIT_OF[i] == split)
        for split in ("train", "val", "test")
    }


def files(image: str, mask: str, **others: object) -> dict[str, object]:
    pairs = {image.replace("N", str(i)): None for i in range(9)} | {mask.replace("N", str(i)): MASK for i in range(9)}
    return {**pairs, **others}


IN_SPLITS: dict[str, Files] = {
    "paths with a space": files("images/N.jpg", "masks/N_m.png") | listed("images/N.jpg masks/N_m.png"),
    "paths with a tab": files("images/N.jpg", "masks/N_m.png") | listed("images/N.jpg\tmasks/N_m.png", "lst"),
    "paths of another machine": files("set/JPEGImages/N.jpg", "set/Labels/N.png")
    | listed("/home/me/set/JPEGImages/N.jpg /home/me/set/Labels/N.png"),
    "masks first": files("rgb/N.jpg", "gt/N_m.png") | listed("gt/N_m.png rgb/N.jpg"),
    "files of one folder": files("data/N_a.jpg", "data/N_b.png") | listed("data/N_a.jpg data/N_b.png"),
    "tables": files("a/N.jpg", "b/N_m.png") | listed("a/N.jpg,b/N_m.png", "csv", "image,mask\n"),
    "a table with a column of splits": files("images/N.jpg", "masks/N_m.png")
    | {"data.csv": "image,mask,split\n" + "".join(f"images/{i}.jpg,masks/{i}_m.png,{SPLIT_OF[i]}\n" for i in range(9))},
    "lists of names": files("images/N.jpg", "masks/N.png") | listed("N"),
    "lists of images": files("images/N.jpg", "masks/N.png") | listed("images/N.jpg"),
    "lists of names beside masks": files("N.jpg", "N.png") | listed("N"),
}


@pytest.mark.parametrize("name", IN_SPLITS)
def test_lists_say_the_pairs_and_their_splits(tmp_path: Path, name: str) -> None:
    root = lay(tmp_path, IN_SPLITS[name])
    assert task_for(root) == "segment"
    data = read_masked_data(root, seed=0)
    found = {}
    for split, images in data.splits.items():
        for image, mask in zip(images.paths, images.masks, strict=True):
            assert image.endswith(".jpg")
            assert mask.endswith(".png")
            assert Path(image).stem.split("_")[0] == Path(mask).stem.split("_")[0]
            found[int(Path(image).stem.split("_")[0])] = split
    assert found == SPLIT_OF
    with pytest.raises(UserError, match="add --task segment"):
        read_data(root, seed=0)


def test_rows_without_files_and_files_without_rows_are_counted(tmp_path: Path) -> None:
    lists = listed("images/N.jpg masks/N_m.png")
    lists["train.txt"] = "images/0.jpg masks/0_m.png\nimages/1.jpg masks/1_m.png\nimages/x.jpg masks/x_m.png\n"
    data = read_masked_data(lay(tmp_path, files("images/N.jpg", "masks/N_m.png") | lists), seed=0)
    assert "1 row of the lists that name no file left out" in data.notes
    assert "2 files that no list names left out: images/2.jpg, masks/2_m.png" in data.notes


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"training.txt": "images/1.jpg masks/1_m.png\n"}, "2 readings: lists of pairs are train.txt, training.txt"),
        ({"val.txt": "images/0.jpg masks/0_m.png\n"}, "images/0.jpg is in train and val; keep one"),
    ],
)
def test_lists_that_contradict_stop(tmp_path: Path, more: Files, said: str) -> None:
    root = lay(tmp_path, files("images/N.jpg", "masks/N_m.png") | listed("images/N.jpg masks/N_m.png") | dict(more))
    with pytest.raises(UserError, match=said):
        read_masked_data(root, seed=0)


def test_pairs_of_photographs_are_not_images_and_masks(tmp_path: Path) -> None:
    """As lists of pairs of faces have them."""
    root = lay(tmp_path, {**{f"faces/{i}.jpg": None for i in range(8)}, "pairs.csv": "a,b\nfaces/0.jpg,faces/1.jpg\n"})
    assert task_for(root) == "classify"


def test_masks_beside_a_folder_of_any_name(tmp_path: Path) -> None:
    """As Vaihingen has them, and ISIC's archives of two splits; classes of the same files are classes all the same."""
    root = lay(tmp_path / "a", files("top/N.tif", "gts_for_participants/N.tif"))
    with pytest.raises(UserError, match="add --task segment"):
        read_data(root, seed=0)
    assert len(read_masked_data(root, seed=0).splits["train"]) == 7
    isic = {f"Part1_{s}_Data/{i}.jpg": None for s in ("Training", "Test") for i in range(4)}
    isic |= {f"Part1_{s}_GroundTruth/{i}_Segmentation.png": (0, 255) for s in ("Training", "Test") for i in range(4)}
    data = read_masked_data(lay(tmp_path / "b", isic), seed=0)
    assert {Path(path).parts[-2] for path in data.splits["test"].paths} == {"Part1_Test_Data"}
    photographs = {f"{c}/{i}.jpg": None for c in ("mask", "none") for i in range(8)}
    assert read_data(lay(tmp_path / "c", photographs), seed=0).classes == ("mask", "none")


def test_masks_below_domains_of_splits(tmp_path: Path) -> None:
    """As LoveDA has them."""
    loveda = {
        f"{split}/{domain}/{kind}_png/{domain}{i}.png": None if kind == "images" else MASK
        for split in ("Train", "Val")
        for domain in ("Rural", "Urban")
        for kind in ("images", "masks")
        for i in range(4)
    }
    data = read_masked_data(lay(tmp_path, loveda), seed=0)
    assert len(data.splits["val"]) == 8
    assert all("Val/" in path for path in data.splits["val"].paths)
    assert all("masks_png" not in path for images in data.splits.values() for path in images.paths)


def test_images_and_masks_of_one_beginning(tmp_path: Path) -> None:
    """As DeepGlobe has them: 1_sat.jpg and 1_mask.png."""
    data = read_masked_data(lay(tmp_path, files("N_sat.jpg", "N_mask.png")), seed=0)
    images = data.splits["train"]
    assert [path.replace("_sat.jpg", "_mask.png") for path in images.paths] == list(images.masks)


def test_several_masks_of_an_image_stop(tmp_path: Path) -> None:
    """As the nuclei of 2018's Data Science Bowl have them."""
    nuclei = {f"train/{i}/images/{i}.png": None for i in range(6)}
    nuclei |= {f"train/{i}/masks/{i}{k}.png": MASK for i in range(6) for k in range(3)}
    with pytest.raises(UserError, match="images have several masks each"):
        read_masked_data(lay(tmp_path, nuclei), seed=0)


def test_masks_of_a_palette_are_read_by_their_values(tmp_path: Path) -> None:
    root = lay(tmp_path, files("images/N.jpg", "masks/N_m.png") | listed("images/N.jpg masks/N_m.png"))
    for path in (tmp_path / "masks").iterdir():
        mask = Image.fromarray(np.resize(np.array([0, 1, 2], np.uint8), (20, 24)))
        mask.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
        mask.save(path)
    assert read_masked_data(root, seed=0).classes == ("0", "1", "2")


def test_folders_of_patients_or_images_with_masks_are_not_classes_without_a_word(tmp_path: Path) -> None:
    """As the brains of LGG (a folder a patient) and the nuclei of 2018 (a folder an image) have them."""
    brains = {
        f"TCGA_{p}/{i}{m}.tif": MASK if m else None for p in (17, 25, 31) for i in range(4) for m in ("", "_mask")
    }
    nuclei = {f"{p}/{k}/{p}.png": None if k == "images" else MASK for p in "abcdefgh" for k in ("images", "masks")}
    for place, tree in (("a", brains), ("b", nuclei)):
        root = lay(tmp_path / place, tree)
        with pytest.raises(UserError, match=r"two readings: \d folders .*--task segment, or classes, by --classes top"):
            read_data(root, seed=0)
    assert len(read_masked_data(str(tmp_path / "a"), seed=0).splits["train"]) == 8
    assert read_data(str(tmp_path / "a"), seed=0, choices=Choices("top")).classes == ("TCGA_17", "TCGA_25", "TCGA_31")
