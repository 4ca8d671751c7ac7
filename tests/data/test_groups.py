from __future__ import annotations

import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snella.data.groups import bundled, folds_of, groups_by_pattern
from snella.data.splits import split_off
from snella.errors import UserError

FRACTIONS = {"val": 0.15, "test": 0.2}
Entries = list[tuple[str, int]]
HASHES = ("0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210")


@st.composite
def patients(draw: st.DrawFn) -> tuple[Entries, dict[str, str]]:
    """Images of patients, each of one class or of several."""
    sizes = draw(st.lists(st.integers(1, 8), min_size=3, max_size=20))
    entries = [(f"p{k}_{i}.png", draw(st.integers(0, 2))) for k, size in enumerate(sizes) for i in range(size)]
    return entries, {name: name.partition("_")[0] for name, _ in entries}


def parts_of(entries: Entries, groups: dict[str, str], seed: int) -> dict[str, Entries]:
    return split_off(entries, FRACTIONS, seed=seed, groups=groups)


@given(patients(), st.integers(0, 3))
def test_a_group_is_in_one_part_and_every_class_in_train(data: tuple[Entries, dict[str, str]], seed: int) -> None:
    entries, groups = data
    parts = parts_of(entries, groups, seed)
    assert sorted(entry for part in parts.values() for entry in part) == sorted(entries)
    places = defaultdict(set)
    for part, inside in parts.items():
        for name, _ in inside:
            places[groups[name]].add(part)
    assert all(len(found) == 1 for found in places.values())
    assert {label for _, label in parts["train"]} == {label for _, label in entries}


@given(patients(), st.randoms())
def test_groups_do_not_depend_on_the_order_of_the_listing(
    data: tuple[Entries, dict[str, str]], order: random.Random
) -> None:
    entries, groups = data
    shuffled = list(entries)
    order.shuffle(shuffled)
    first, second = parts_of(entries, groups, 1), parts_of(shuffled, groups, 1)
    assert {part: set(found) for part, found in first.items()} == {part: set(found) for part, found in second.items()}


def cohort(count: int, seed: int = 0) -> tuple[Entries, dict[str, str]]:
    """Patients of 1 to 12 images, most of class 0, some of classes 1 and 2."""
    draw = random.Random(seed)
    entries = [
        (f"p{k}_{i}.png", draw.choice([0, 0, 0, 0, 1, 1, 2])) for k in range(count) for i in range(draw.randint(1, 12))
    ]
    return entries, {name: name.partition("_")[0] for name, _ in entries}


def test_shares_of_each_class_are_as_near_as_groups_allow() -> None:
    entries, groups = cohort(60)
    parts = parts_of(entries, groups, 0)
    sizes = Counter(label for _, label in entries)
    for part, share in (*FRACTIONS.items(), ("train", 0.65)):
        counts = Counter(label for _, label in parts[part])
        assert all(abs(counts[label] / size - share) < 0.03 for label, size in sizes.items()), part


def test_a_group_of_half_the_images_stays_in_train() -> None:
    entries = [(f"big_{i}", i % 2) for i in range(60)] + [(f"p{k}_{i}", i % 2) for k in range(15) for i in range(4)]
    groups = {name: name.partition("_")[0] for name, _ in entries}
    for seed in range(4):
        parts = parts_of(entries, groups, seed)
        assert {part: len(found) for part, found in parts.items()} == {"train": 80, "val": 16, "test": 24}
        assert sum(name.startswith("big") for name, _ in parts["train"]) == 60


def test_the_seed_changes_the_groups_of_a_part() -> None:
    entries, groups = cohort(40)
    assert parts_of(entries, groups, 0) != parts_of(entries, groups, 1)


def test_three_groups_give_three_parts() -> None:
    entries = [(f"p{k}_{i}", i % 2) for k in range(3) for i in range(4)]
    parts = parts_of(entries, {name: name[:2] for name, _ in entries}, 0)
    assert {part: len(found) for part, found in parts.items()} == {"train": 4, "val": 4, "test": 4}


def test_copies_of_one_photograph_and_groups_are_one_mechanism() -> None:
    """p1 and p2 share a photograph's copies, so all of both is one bundle; a copy of another class is another."""
    copies = [f"{patient}/cell_jpg.rf.{digest}.jpg" for patient, digest in zip(("p1", "p2"), HASHES, strict=True)]
    names = [*copies, "p1/x.jpg", "p2/y.jpg", "p3/z.jpg"]
    groups = {name: name[:2] for name in names}
    found = bundled([(name, 0) for name in names], groups)
    assert [{names[i] for i in bundle.members} for bundle in found] == [set(names[:4]), {"p3/z.jpg"}]
    assert len(bundled([(name, k) for k, name in enumerate(copies)], {})) == 2


@given(patients(), st.integers(2, 3))
def test_folds_hold_whole_groups_and_every_image_once(data: tuple[Entries, dict[str, str]], folds: int) -> None:
    entries, groups = data
    found = folds_of(entries, groups, folds, seed=0)
    assert len(found) == len(entries)
    assert set(found) == set(range(folds))
    assert len({(groups[name], fold) for (name, _), fold in zip(entries, found, strict=True)}) == len(
        set(groups.values())
    )


def test_folds_are_equal_in_every_class() -> None:
    entries = [(str(i), i % 3) for i in range(101)]
    found = Counter(zip(folds_of(entries, {}, 5, seed=0), (label for _, label in entries), strict=True))
    assert set(found.values()) == {6, 7}
    assert max(Counter(folds_of(entries, {}, 5, seed=0)).values()) == 21
    grouped, groups = cohort(60)
    sizes = Counter(label for _, label in grouped)
    counts = Counter(zip(folds_of(grouped, groups, 5, seed=0), (label for _, label in grouped), strict=True))
    assert all(abs(count / sizes[label] - 0.2) < 0.03 for (_, label), count in counts.items())


def test_fewer_groups_than_folds_are_refused() -> None:
    entries = [(f"p{i % 3}_{i}", 0) for i in range(30)]
    with pytest.raises(UserError, match=r"^3 groups are too few for 5 folds; use --folds 3$"):
        folds_of(entries, {name: name[:2] for name, _ in entries}, 5, seed=0)
    with pytest.raises(UserError, match="3 images are too few for 5 folds"):
        folds_of(entries[:3], {}, 5, seed=0)


def test_a_pattern_takes_its_first_group_or_all_that_it_matches() -> None:
    names = ["a/p1_x.png", "b/p1_y.png", "b/q22_z.png", "b/other.png"]
    assert groups_by_pattern(r"p\d+", names) == {"a/p1_x.png": "p1", "b/p1_y.png": "p1"}
    assert groups_by_pattern(r"p(\d+)|q(\d+)", names) == {names[0]: "1", names[1]: "1", names[2]: "22"}
    with pytest.raises(UserError, match=r"matches none of the 4 images, such as a/p1_x.png"):
        groups_by_pattern("patient", names)
