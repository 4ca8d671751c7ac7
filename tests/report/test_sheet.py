"""Contact sheets: a row for each class, with its own images."""

from __future__ import annotations

import pytest
from PIL import Image

from snella.cli.main import main
from snella.data.dataset import ImageData, Images
from snella.report.sheet import contact_sheet
from snella.runs.prepare import SHEET_COLUMNS, SHEET_ROWS, pictures_by_name
from support.runs import write_images


def colour(name: str) -> Image.Image:
    return Image.new("RGB", (20, 10), name.rpartition("-")[0])


def test_each_class_has_images_of_its_own_in_its_row():
    train = Images((*(f"red-{i}" for i in range(20)), "blue-0"), (0,) * 20 + (1,), read=colour)
    data = ImageData("made up", "nowhere", ("a", "b", "none"), {"train": train, "val": Images((), ())})
    rows = pictures_by_name(data)
    assert {name: len(pictures) for name, pictures in rows.items()} == {"a": SHEET_COLUMNS, "b": 1, "none": 0}
    assert {picture.getpixel((0, 0)) for picture in rows["a"]} == {(255, 0, 0)}
    assert rows["b"][0].getpixel((0, 0)) == (0, 0, 255)


def test_images_without_classes_have_a_row_for_each_split():
    images = Images(("red-0", "blue-1"), targets=((0.5,), (2.0,)), read=colour)
    rows = pictures_by_name(ImageData("made up", "nowhere", ("size",), {"train": images, "val": images}))
    assert {name: len(pictures) for name, pictures in rows.items()} == {"train": 2, "val": 2}


def test_labels_have_a_row_each_and_no_more_than_fit():
    names = tuple(f"label {k}" for k in range(SHEET_ROWS + 5))
    images = Images(("red-0",), targets=((1.0,) * len(names),), read=colour)
    rows = pictures_by_name(ImageData("made up", "nowhere", names, {"train": images}))
    assert list(rows) == list(names[:SHEET_ROWS])


def test_a_sheet_is_drawn_and_replaces_nothing(tmp_path, capsys):
    data, sheet = write_images(tmp_path / "data"), tmp_path / "sheet.png"
    assert main(["data", str(data), "--sheet", str(sheet)]) == 0
    with Image.open(sheet) as opened:
        assert opened.width > 800
    before = sheet.read_bytes()
    assert main(["data", str(data), "--sheet", str(sheet)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert sheet.read_bytes() == before
    assert main(["data", str(data), "--sheet", "sheet.jpg"]) == 2
    assert "ends in .png" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["$x^2$", "<b>", "a" * 200])
def test_names_of_classes_are_drawn_as_they_are(name, tmp_path):
    contact_sheet({name: [colour("red-0")], "none": []}, tmp_path / "s.png", title="a title", line="a line")
    assert (tmp_path / "s.png").stat().st_size > 1000
