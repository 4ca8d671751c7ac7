"""Data sets by `wds/FOLDER`, from shards made here."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from snella.data.dataset import with_white
from snella.data.readers.labelled import read_data
from snella.errors import UserError


def refusal(data: str) -> str:
    with pytest.raises(UserError) as caught:
        read_data(data, seed=0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pixels(images: Any, index: int) -> np.ndarray:
    return np.asarray(images[index]["image"])


def write_shard(path: Path, samples: list[tuple[bytes, str]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for i, (image, label) in enumerate(samples):
            for suffix, content in (("jpg", image), ("cls", label.encode())):
                member = tarfile.TarInfo(f"{i:04d}.{suffix}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))


def test_wds_of_12_bit_greys_is_scaled_as_folders_are(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    samples = []
    for i in range(12):
        buffer = io.BytesIO()
        Image.fromarray(np.resize(np.array([0, 4095, 1606], np.uint16), (8, 9))).save(buffer, "PNG")
        samples.append((buffer.getvalue(), str(i % 2)))
    write_shard(tmp_path / "shards" / "x-train-0000.tar", samples)
    data = with_white(read_data(f"wds/{tmp_path / 'shards'}", seed=0), None)
    assert "use 12 of 16 bits" in "\n".join(data.notes)
    assert pixels(data.splits["train"], 0)[0, :3, 0].tolist() == [0, 255, 100]


def encoded(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def test_wds_shards_with_splits_in_their_names(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    folder = tmp_path / "shards"
    write_shard(folder / "x-train-0000.tar", [(encoded(i), str(i % 2)) for i in range(6)])
    write_shard(folder / "x-train-0001.tar", [(encoded(6 + i), str(i % 2)) for i in range(6)])
    write_shard(folder / "x-val-0000.tar", [(encoded(50), "10"), (b"broken", "1"), (encoded(51), "1")])
    with pytest.raises(UserError, match="class '10' has no readable image in train"):
        read_data(f"wds/{folder}", seed=0)
    write_shard(folder / "x-val-0000.tar", [(encoded(50), "0"), (b"broken", "1"), (encoded(51), "1")])
    data = read_data(f"wds/{folder}", seed=0)
    assert data.classes == ("0", "1")
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 10, "val": 2, "test": 2}
    assert [pixels(data.splits["val"], i)[0, 0, 0] for i in range(2)] == [50, 51]
    assert data.splits["val"].labels == (0, 1)
    assert len(data.skipped) == 1
    assert str(data.skipped[0]) == "val sample 0001: not an image, or in a format that Pillow does not read"
    assert "held in memory: 14 images" in data.notes[0]


def test_wds_by_its_info_file(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    folder = tmp_path / "shards"
    write_shard(folder / "a.tar", [(encoded(i), str(i % 2)) for i in range(12)])
    write_shard(folder / "b.tar", [(encoded(90), "1")])
    splits = {
        ours: {"name": ours, "num_samples": count, "filenames": [file], "shard_lengths": [count]}
        for ours, file, count in (("train", "a.tar", 12), ("validation", "b.tar", 1))
    }
    (folder / "_info.json").write_text(json.dumps({"splits": splits}))
    data = read_data(f"wds/{folder}", seed=0)
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 10, "val": 1, "test": 2}
    assert pixels(data.splits["val"], 0)[0, 0, 0] == 90


def test_wds_faults(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("webdataset")
    (tmp_path / "empty").mkdir()
    assert "holds no .tar shard" in refusal(f"wds/{tmp_path / 'empty'}")
    assert "does not exist" in refusal(f"wds/{tmp_path / 'none'}")
    write_shard(tmp_path / "bad" / "a.tar", [(b"broken", "0")])
    assert "no readable sample" in refusal(f"wds/{tmp_path / 'bad'}")
    monkeypatch.setitem(sys.modules, "webdataset", None)
    assert "pip install 'snella[wds]'" in refusal(f"wds/{tmp_path / 'bad'}")


@pytest.mark.parametrize(
    "braces", ["{0..99999999}", "{0..9999}-{0..9999}", "{99999999..0}", "{0..99999999..3}", "{,a}" * 40]
)
def test_braces_that_stand_for_millions_of_shards_are_refused(tmp_path: Path, braces: str) -> None:
    pytest.importorskip("webdataset")
    name = f"train-{braces}.tar"
    write_shard(tmp_path / "shards" / name, [(b"", "0")])
    assert f"{name} stands for " in refusal(f"wds/{tmp_path / 'shards'}")
    (tmp_path / "shards" / name).unlink()
    (tmp_path / "shards" / "info.json").write_text(json.dumps({"splits": {name: {"num_samples": 4}}}))
    assert f"{name} stands for " in refusal(f"wds/{tmp_path / 'shards'}")
