from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from snella.data.layouts import registry
from snella.data.layouts.registry import CAPTIONED, LABELLED, MASKED
from snella.data.layouts.rows import Layout, Table
from snella.data.listing import Listing, label_entries
from snella.data.readers.labelled import read_data, read_test_data
from snella.errors import UserError


def is_label_list(path: str) -> bool:
    return Path(path).name == "labels.txt"


def label_list(path: str) -> Listing:
    """A toy layout, LABEL NAME a line."""
    labels, names = zip(*(line.split() for line in Path(path).read_text().splitlines()), strict=True)
    classes, entries = label_entries(names, labels)
    return Listing("label list", str(Path(path).parent), classes, {"all": entries})


def test_a_new_layout_is_one_row(tmp_path: Path, class_folders, monkeypatch) -> None:
    class_folders(tmp_path, a=10, b=10)
    lines = [f"{label} {label}/{i}.png" for label in "ab" for i in range(10)]
    (tmp_path / "labels.txt").write_text("\n".join(lines))
    data = str(tmp_path / "labels.txt")
    with pytest.raises(UserError, match="is not data of a known layout; give a folder of class folders"):
        read_data(data, seed=0)
    row = registry.at_path("a label list (labels.txt)", is_label_list, label_list)
    monkeypatch.setattr(registry, "LABELLED", (*LABELLED, row))
    read = read_data(data, seed=0)
    assert (read.layout, read.classes) == ("label list", ("a", "b"))
    assert {split: len(images) for split, images in read.splits.items()} == {"train": 12, "val": 4, "test": 4}
    assert Path(read.splits["train"].paths[0]).is_file()
    with pytest.raises(UserError, match=r"does not exist; give .* a label list \(labels\.txt\)"):
        read_data("/nowhere-at-all", seed=0)


def test_a_new_bundled_set_is_one_row(tmp_path: Path, class_folders, monkeypatch) -> None:
    def pets(name: str, *, seed: int) -> Listing:
        names = [f"{label}/{i}.png" for label in ("cat", "dog") for i in range(5)]
        classes, entries = label_entries(names, [name.partition("/")[0] for name in names])
        return Listing(
            name, str(tmp_path / "package"), classes, {"all": entries}, notes=(f"seed {seed}",), caveat="ours"
        )

    monkeypatch.chdir(tmp_path)
    class_folders(tmp_path / "package", cat=5, dog=5)
    monkeypatch.setattr(registry, "LABELLED", (*LABELLED, registry.bundled_set("our-pets", pets)))
    read = read_data("our-pets", seed=3)
    assert (read.layout, read.classes, read.notes[0], read.caveat) == ("our-pets", ("cat", "dog"), "seed 3", "ours")
    assert read_test_data("our-pets", ("dog", "cat"), seed=0).caveat == "ours"
    with pytest.raises(UserError, match="did you mean our-pets"):
        read_data("our-pet", seed=0)
    class_folders(tmp_path / "our-pets", ape=5, bear=5)
    assert read_data("our-pets", seed=0).classes == ("ape", "bear")  # a path that exists wins


@pytest.mark.parametrize("table", [LABELLED, MASKED, CAPTIONED])
def test_rows_of_a_table_have_names_of_their_own_and_one_takes_any_folder(table: Table) -> None:
    names = [layout.name for layout in table]
    assert len(set(names)) == len(names)
    assert sum(layout.any_folder for layout in table) == 1


def rows(table: Sequence[Layout]) -> list[str]:
    return [layout.name for layout in table if layout.recognises("digits") or layout.recognises("torch/mnist")]


def test_a_path_goes_before_a_name_spelt_alike(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert rows(LABELLED) == ["digits", "torch/NAME"]
    (tmp_path / "digits").touch()
    (tmp_path / "torch" / "mnist").mkdir(parents=True)
    assert rows(LABELLED) == ["a folder of class folders"]


def test_a_prefix_in_any_case_needs_a_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for data in ("torch/", "HFDS/", "Wds/"):
        with pytest.raises(UserError, match=f"^{data} names no data set; write {data.lower()}NAME$"):
            read_data(data, seed=0)
