from __future__ import annotations

from pathlib import Path

import pytest

from snella.data.paths import check_exists, read_text
from snella.data.readers.captioned import read_captioned_data
from snella.data.readers.labelled import read_data
from snella.data.readers.masked import read_masked_data
from snella.errors import UserError


def message(path: Path | str, **options) -> str:
    with pytest.raises(UserError) as caught:
        check_exists(str(path), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_existing_path_is_given_back(tmp_path: Path) -> None:
    assert check_exists(str(tmp_path)) == str(tmp_path)


def test_near_names_are_suggested_whatever_the_case(tmp_path: Path) -> None:
    (tmp_path / "Flowers").mkdir()
    (tmp_path / "unrelated").mkdir()
    text = message(tmp_path / "flower")
    assert str(tmp_path / "Flowers") in text
    assert "unrelated" not in text


def test_other_names_are_suggested_too(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "did you mean elpv" in message("elvp", others=("elpv",))


def test_the_first_missing_folder_is_named(tmp_path: Path) -> None:
    text = message(tmp_path / "a" / "b" / "c", remedy="look again")
    assert f"no folder {tmp_path / 'a'};" in text
    assert "look again" in text


def test_a_dangling_link_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert "link to" in message(tmp_path / "link")


def test_text_is_utf_8_with_or_without_a_mark(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "a.txt").write_text("é.jpg 0\n", encoding=encoding)
        assert read_text(str(tmp_path / "a.txt")) == "é.jpg 0\n"
    (tmp_path / "a.txt").write_bytes("é.jpg 0\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.txt is not UTF-8 text"):
        read_text(str(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("name", "read"), [("digits", read_data), ("brain", read_masked_data), ("photos", read_captioned_data)]
)
def test_a_folder_without_images_that_hides_bundled_data_says_so(name, read, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name / "runs").mkdir(parents=True)
    with pytest.raises(UserError, match=f"^{name} .*hides the bundled data of that name: rename it"):
        read(name, seed=0)
    with pytest.raises(UserError) as caught:
        read(str(tmp_path / name), seed=0)
    assert "hides" not in str(caught.value)
