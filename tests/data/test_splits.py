from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snella.data.listing import Listing
from snella.data.splits import Division, complete_splits, in_shots, split_counts, split_iteratively, split_off
from snella.errors import UserError

entries = st.lists(st.tuples(st.text(st.characters(codec="ascii"), max_size=4), st.integers(0, 3)), unique=True)
FRACTIONS = {"val": 0.15, "test": 0.2}


@given(entries, st.integers(0, 5))
def test_parts_are_disjoint_and_complete(items: list[tuple[str, int]], seed: int) -> None:
    parts = split_off(items, FRACTIONS, seed=seed)
    assert sorted(item for part in parts.values() for item in part) == sorted(items)


@given(entries, st.integers(0, 5))
def test_every_class_stays_in_train_and_is_shared_fairly(items: list[tuple[str, int]], seed: int) -> None:
    parts = split_off(items, FRACTIONS, seed=seed)
    sizes = Counter(label for _, label in items)
    for label, size in sizes.items():
        counts = {part: sum(1 for _, other in members if other == label) for part, members in parts.items()}
        assert counts["train"] >= 1
        for part, share in FRACTIONS.items():
            if size >= 4:
                assert abs(counts[part] - max(1, share * size)) <= 0.5
            if size > len(FRACTIONS):
                assert counts[part] >= 1


@given(entries, st.randoms())
def test_a_split_does_not_depend_on_the_order_of_the_listing(items: list[tuple[str, int]], random) -> None:
    shuffled = list(items)
    random.shuffle(shuffled)
    first, second = split_off(items, FRACTIONS, seed=1), split_off(shuffled, FRACTIONS, seed=1)
    assert {part: set(members) for part, members in first.items()} == {
        part: set(members) for part, members in second.items()
    }


def test_the_seed_changes_the_split() -> None:
    items = [(str(i), i % 2) for i in range(40)]
    assert split_off(items, FRACTIONS, seed=0) != split_off(items, FRACTIONS, seed=1)


def test_an_image_more_moves_hardly_any_other() -> None:
    items = [(str(i), 0) for i in range(100)]
    before = set(split_off(items, {"test": 0.2}, seed=0)["test"])
    after = set(split_off([*items, ("new", 0)], {"test": 0.2}, seed=0)["test"])
    assert len(before - after) <= 1


@given(
    st.lists(st.sampled_from("abc"), min_size=10, max_size=60),
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_counts_are_exact_and_in_proportion(strata: list[str], first: int, second: int) -> None:
    names = [str(i) for i in range(len(strata))]
    parts = split_counts(names, strata, {"one": first, "two": second}, seed=0)
    assert sorted(i for indices in parts.values() for i in indices) == list(range(len(strata)))
    assert (len(parts["one"]), len(parts["two"])) == (first, second)
    sizes = Counter(strata)
    for stratum, count in Counter(strata[i] for i in parts["one"]).items():
        assert abs(count - first * sizes[stratum] / len(strata)) < 1


def listing(**sizes: int) -> Listing:
    splits = {split: [(f"{split}/{i}", i % 2) for i in range(size)] for split, size in sizes.items()}
    return Listing("test", "root", ("a", "b"), splits)


def complete(data: Listing) -> Listing:
    return complete_splits(data, seed=0, val_fraction=0.15, test_fraction=0.15)


@pytest.mark.parametrize(
    ("given_sizes", "expected"),
    [
        ({"all": 40}, {"train": 28, "val": 6, "test": 6}),
        ({"train": 40}, {"train": 28, "val": 6, "test": 6}),
        ({"train": 40, "test": 10}, {"train": 34, "val": 6, "test": 10}),
        ({"train": 40, "val": 10}, {"train": 34, "val": 10, "test": 6}),
        ({"train": 40, "val": 10, "test": 5}, {"train": 40, "val": 10, "test": 5}),
    ],
)
def test_missing_splits_come_out_of_train(given_sizes: dict[str, int], expected: dict[str, int]) -> None:
    data = complete(listing(**given_sizes))
    assert {split: len(items) for split, items in data.splits.items()} == expected
    assert bool(data.notes) == (len(given_sizes) < 3)


def test_splits_that_exist_are_kept_as_they_are() -> None:
    data = listing(train=40, test=10)
    assert complete(data).splits["test"] == data.splits["test"]


def test_no_train_split_is_refused() -> None:
    with pytest.raises(UserError, match="no train split"):
        complete(listing(test=10, val=10))


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UserError, match="too few"):
        complete(listing(all=2))


def test_labels_are_split_in_proportion_by_seed_and_names_alone() -> None:
    """Iterative stratification: 400 images, labels of 200, 60, 20, 3 and 1 images, some of them together."""
    names = [f"{i}.png" for i in range(400)]
    having = {0: range(200), 1: range(170, 230), 2: range(220, 240), 3: range(5, 8), 4: range(399, 400)}
    targets = {name: tuple(float(i in having[k]) for k in having) for i, name in enumerate(names)}
    entries = [(name, 0) for name in names]
    fractions = {"val": 0.15, "test": 0.15}
    found = split_iteratively(entries, targets, fractions, seed=3)
    counts = {part: [sum(targets[name][k] for name, _ in inside) for k in having] for part, inside in found.items()}
    assert sum(map(len, found.values())) == 400
    for part, share in (("train", 0.7), *fractions.items()):
        assert abs(len(found[part]) - share * 400) <= 3
        for k in (0, 1, 2):
            assert abs(counts[part][k] - share * len(having[k])) <= 1
    assert counts["train"][4] == 1
    shuffled = split_iteratively(entries[::-1], targets, fractions, seed=3)
    assert {part: set(inside) for part, inside in shuffled.items()} == {p: set(inside) for p, inside in found.items()}
    assert split_iteratively(entries, targets, fractions, seed=4) != found
    copies = [(f"{name[:-4]}_jpg.rf.{'0' * 15}{c}.jpg", 0) for name in names for c in "ab"]
    several = split_iteratively(copies, {name: (1.0,) for name, _ in copies}, fractions, seed=0)
    parts_of = [{name.split("_jpg")[0] for name, _ in inside} for inside in several.values()]
    assert sum(map(len, parts_of)) == len(set.union(*parts_of)) == 400


def test_shots_are_drawn_from_each_class_of_train_alone() -> None:
    data = listing(train=41, val=6, test=9)
    few, other = (in_shots(data, Division(shots=5), seed=seed) for seed in (0, 1))
    assert few.counts("train") == {0: 5, 1: 5}
    assert (few.splits["val"], few.splits["test"]) == (data.splits["val"], data.splits["test"])
    assert few.splits["train"] != other.splits["train"]
    assert few.notes[-1] == "train: 5 images of each class at most, 10 of the 41, seed 0"
    assert in_shots(data, Division(), seed=0) is data
    shuffled = replace(data, splits={**data.splits, "train": data.splits["train"][::-1]})
    assert set(in_shots(shuffled, Division(shots=5), seed=0).splits["train"]) == set(few.splits["train"])
    more = in_shots(data, Division(shots=6), seed=0)
    assert set(few.splits["train"]) < set(more.splits["train"])


def test_a_class_with_fewer_is_told_and_kept_whole() -> None:
    data = in_shots(listing(train=41), Division(shots=21), seed=0)
    assert data.counts("train") == {0: 21, 1: 20}
    assert data.notes[-1].endswith("41 of the 41, seed 0; 1 class with fewer: b (20)")
