"""Which rows are whose, and draws that do not depend on it; one process stands for each in turn."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from snella.data.loading import ImageBatches
from snella.distributed.draws import as_whole_batches, dropout, whole_draws
from snella.distributed.part import ALONE, PART, Part, Share, computing, own_rows, part_of, part_of_mean, whole
from snella.ops.drop_path import draw_drop_path


class Numbers:
    """Examples that are their own index."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": torch.tensor([float(index)])}


def drawn(example: dict[str, Any]) -> dict[str, Any]:
    return {"x": example["x"] + torch.rand(())}


def batches(count: int, share: Share = ALONE, *, shuffle: bool = True, led: bool = False) -> ImageBatches:
    return ImageBatches(Numbers(count), drawn, batch_size=5, shuffle=shuffle, seed=3, share=share, led=led)


@pytest.mark.parametrize(("size", "count"), list(product((0, 1, 2, 7, 8, 64), (1, 2, 3, 4, 64))))
def test_shares_are_everything_once_and_of_one_size(size: int, count: int) -> None:
    rows = [range(*Share(i, count).of(size)) for i in range(count)]
    assert [row for part in rows for row in part] == list(range(size))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_parts_of_batches_are_the_batches(count: int) -> None:
    alone = list(batches(11).epoch(2, skip=1))
    parts = [list(batches(11, Share(i, count)).epoch(2, skip=1)) for i in range(count)]
    for number, expected in enumerate(alone):
        there = [part[number]["x"] for part in parts if count == 1 or part[number][PART].counts]
        assert torch.equal(torch.cat(there), expected["x"])
        assert all(len(part[number]["x"]) for part in parts)  # none is empty
    assert count == 1 or sum(not part[-1][PART].counts for part in parts) == count - 1  # of a last batch of one


def test_a_part_that_is_led_has_the_row_before_it() -> None:
    (whole_batch,) = batches(5).epoch(1)
    x = whole_batch["x"]
    for i in range(2):
        (part,) = batches(5, Share(i, 2), led=True).epoch(1)
        start, stop = Share(i, 2).of(5)
        assert torch.equal(part["x"], torch.cat([x[start - 1 : start] if start else x[-1:], x[start:stop]]))
        with computing(part[PART]):
            assert torch.equal(own_rows(part["x"].roll(1, 0)), x.roll(1, 0)[start:stop])


def test_blocks_are_every_image_once() -> None:
    shares = [batches(11, Share(i, 3), shuffle=False) for i in range(3)]
    assert [part.start for part in shares] == [0, 3, 7]
    seen = torch.cat([batch["x"] for part in shares for batch in part.epoch(1)])
    assert torch.equal(seen, torch.cat([batch["x"] for batch in batches(11, shuffle=False).epoch(1)]))
    assert batches(11, shuffle=False).start is None
    assert list(batches(2, Share(0, 3), shuffle=False).epoch(1)) == []


def drop_path_of_a_model(x: Tensor) -> Tensor:
    model = nn.Sequential(DropPath(0.4), nn.Dropout(0.3))
    with as_whole_batches(model):
        return model(x)


def windows(x: Tensor) -> Tensor:
    return dropout(x.flatten(0, 1), 0.5).unflatten(0, x.shape[:2])


def prior(x: Tensor) -> Tensor:
    with whole_draws(blocks=2):
        return torch.randn_like(torch.cat([x, x]))[: len(x)] + torch.randn(2 * len(x), 1, 1)[len(x) :]


def images(x: Tensor) -> Tensor:
    like = x[..., None].expand(-1, -1, -1, 2).contiguous(memory_format=torch.channels_last)
    with whole_draws():
        return torch.randn_like(like)


def kept(x: Tensor) -> Tensor:
    drop = draw_drop_path(0.5, 2, len(x), torch.device("cpu"))
    return torch.stack([torch.zeros(len(x)).index_fill(0, rows, 1) for rows in drop.kept], dim=1)


@pytest.mark.parametrize("draw", [drop_path_of_a_model, windows, prior, images, kept])
@pytest.mark.parametrize("count", [2, 4])
def test_draws_are_those_of_the_whole_batch(draw: Callable[[Tensor], Tensor], count: int) -> None:
    x = torch.rand(6, 4, 3)
    torch.manual_seed(5)
    expected, after = draw(x), torch.rand(())
    found = []
    for i in range(count):
        torch.manual_seed(5)
        part = part_of(Share(i, count), len(x))
        with computing(part):
            found.append(draw(x[part.start : part.stop]))
        assert torch.equal(torch.rand(()), after)  # as many numbers were drawn
    assert torch.equal(torch.cat(found), expected)
    assert not torch.equal(expected[0], expected[1])


def test_what_is_not_of_samples_is_drawn_alike() -> None:
    torch.manual_seed(5)
    expected = torch.rand(7), torch.rand(())
    torch.manual_seed(5)
    with computing(Part(2, 4, 5)), whole_draws():
        found = torch.rand(7), torch.rand(())
    assert all(map(torch.equal, found, expected))


def test_in_one_process_nothing_changes() -> None:
    loss, model = torch.tensor(3.0), nn.Sequential(nn.Dropout(0.2))
    assert part_of_mean(loss, 4) is loss
    assert whole(loss) is loss
    torch.manual_seed(1)
    expected = F.dropout(torch.ones(9), 0.2)
    torch.manual_seed(1)
    assert torch.equal(dropout(torch.ones(9), 0.2), expected)
    with as_whole_batches(model):
        pass
    assert "forward" not in vars(model[0])
