from __future__ import annotations

from pathlib import Path

from snella.data.masks.files import MaskCode
from snella.data.readers.masked import read_masked_data, read_masked_test_data
from snella.data.readers.masked_report import describe_masked
from support.masked import write_image, write_mask, write_pairs
from support.printed import rows, text


def test_shares_sizes_and_pairs_left_out(tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "set", 20, (0, 0, 0, 1, 9))
    write_image(tmp_path / "set" / "images" / "lone.png")
    write_image(tmp_path / "set" / "images" / "3.png", (5, 4))
    (tmp_path / "set" / "masks" / "4.png").write_bytes(b"")
    report = text(describe_masked(read_masked_data(root, seed=0, ignore_index=9)))
    assert "images and masks, 2 classes" in report
    table = rows(report)
    assert table["class"] == ["train", "val", "test"]
    assert table["■ 0"] == ["75.00 %"] * 3
    assert table["■ 1"] == ["25.00 %"] * 3
    assert table["images"] == ["12", "3", "3"]
    assert "sizes: all 12 x 10 pixels" in report
    assert "ignored in the masks: 9; shares are of the other pixels" in report
    assert "2 pairs left out, unreadable or of two sizes:" in report
    assert "3.png: mask is 12 x 10, image 5 x 4" in report
    assert "4.png: empty file (0 bytes)" in report
    assert "1 images without a mask left out: lone.png" in report
    assert "taken out of the 18 training images" in report


def test_a_split_alone_and_a_split_without_a_counted_pixel(tmp_path: Path) -> None:
    write_pairs(tmp_path, 2)
    for i in range(2):
        write_mask(tmp_path / "masks" / f"{i}.png", (9,))
    code = MaskCode((0, 1), ignore=(9,))
    data = read_masked_test_data(
        str(tmp_path), classes=("[b]a", "b"), code=code, palette=((0, 0, 0), (9, 9, 9)), seed=0
    )
    table = rows(text(describe_masked(data)))
    assert table["■ [b]a"] == ["0.00 %"]
    assert table["images"] == ["2"]
