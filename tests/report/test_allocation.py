"""The figure of where the budget went: what it is made of, and that it is drawn for odd input too."""

import numpy as np
import pytest

from snella.report import style
from snella.report.allocation import allocation_figure, kept_shares
from support.pictures import pixels

KINDS = ("attn.qkv[0]", "attn.qkv[1]", "attn.qkv[2]", "attn.proj", "mlp.fc1", "mlp.fc2")


def record(step, share, blocks=2, size=100):
    names = [f"blocks.{block}.{kind}" for block in range(blocks) for kind in KINDS]
    return {
        "step": step,
        "budget": int(share * size * len(names)),
        "kept": dict.fromkeys(names, int(share * size)),
        "size": dict.fromkeys(names, size),
    }


def test_shares_are_arranged_by_kind_block_and_step():
    first, second = record(10, 1.0), record(20, 0.5)
    second["kept"]["blocks.1.mlp.fc1"] = 0
    second["size"]["blocks.0.attn.proj"] = 400
    shares = kept_shares([second, first])
    assert shares.steps.tolist() == [10, 20]
    assert shares.blocks == ("0", "1")
    assert list(shares.kinds) == ["q", "k", "v", "proj", "fc1", "fc2"]
    assert shares.kinds["fc1"].tolist() == [[1.0, 0.5], [1.0, 0.0]]
    assert shares.kinds["proj"].tolist() == [[1.0, 50 / 400], [1.0, 0.5]]
    assert shares.overall.tolist() == [1.0, 11 * 50 / (11 * 100 + 400)]
    assert not shares.has_gaps


def test_a_matrix_without_record_is_no_zero():
    first, second = record(10, 1.0), record(20, 0.5)
    del second["kept"]["blocks.1.mlp.fc1"]
    shares = kept_shares([first, second])
    assert np.isnan(shares.kinds["fc1"][1, 1])
    assert shares.overall.tolist() == [1.0, 0.5]
    assert np.count_nonzero(np.isnan(np.stack(list(shares.kinds.values())))) == 1
    assert shares.has_gaps


def test_of_two_records_for_a_step_the_later_holds():
    shares = kept_shares([record(10, 1.0), record(20, 0.9), record(20, 0.4)])
    assert shares.steps.tolist() == [10, 20]
    assert shares.overall.tolist() == [1.0, 0.4]


def test_long_runs_are_thinned_but_keep_both_ends():
    shares = kept_shares([record(step, 0.5, blocks=1) for step in range(1, 3001)])
    assert len(shares.steps) == 400
    assert shares.steps[[0, -1]].tolist() == [1, 3000]


def test_no_record_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no record"):
        allocation_figure([], tmp_path / "allocation.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("blocks", [1, 12, 24])
def test_allocation_of_small_and_large_models(blocks, tmp_path):
    path = allocation_figure([record(s, 1 - s / 100, blocks) for s in (10, 20, 30)], tmp_path / "new" / "a.png")
    assert path == tmp_path / "new" / "a.png"
    drawn = pixels(path)
    assert drawn.shape[1] > 1000
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


def test_zero_and_missing_look_different(tmp_path):
    """All of a model at 0 and all of it unrecorded, but for one entry that keeps the figure the same in size."""
    zero, missing = record(10, 0.0), record(10, 0.0)
    for name in list(missing["kept"])[1:]:
        del missing["kept"][name]
    drawn_zero = pixels(allocation_figure([zero], tmp_path / "zero.png"))
    drawn_missing = pixels(allocation_figure([missing], tmp_path / "missing.png"))
    assert drawn_zero.shape == drawn_missing.shape
    cream = np.round(255 * np.array(style.shares_map()(0.0)[:3]))

    def share_of_cream(drawn):
        return (np.abs(drawn - cream).max(axis=-1) <= 1).mean()

    assert share_of_cream(drawn_zero) > 0.2
    assert share_of_cream(drawn_missing) < 0.05
