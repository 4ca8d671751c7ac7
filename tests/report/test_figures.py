"""Figures: what they are made of, that they are drawn for odd input too, and that a file is whole or not there."""

import numpy as np
import pytest
import torch
from PIL import Image

from snella.errors import UserError
from snella.report import style
from snella.report.allocation import allocation_figure, kept_shares
from snella.report.figures import confusion_figure, training_curves_figure

KINDS = ("attn.qkv[0]", "attn.qkv[1]", "attn.qkv[2]", "attn.proj", "mlp.fc1", "mlp.fc2")


def record(step, share, blocks=2, size=100):
    names = [f"blocks.{block}.{kind}" for block in range(blocks) for kind in KINDS]
    return {
        "step": step,
        "budget": int(share * size * len(names)),
        "kept": dict.fromkeys(names, int(share * size)),
        "size": dict.fromkeys(names, size),
    }


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


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


@pytest.mark.parametrize("count", [2, 20, 21, 150])
def test_confusion_of_few_and_many_classes(count, tmp_path):
    confusion = torch.randint(0, 50, (count, count), generator=torch.Generator().manual_seed(0))
    confusion[1] = 0  # a class without image
    classes = [f"class {k} with a long name $x_{k}" for k in range(count)]  # no formula
    path = confusion_figure(confusion, classes, tmp_path / "confusion.png")
    assert pixels(path).std() > 5
    assert [file.name for file in tmp_path.iterdir()] == ["confusion.png"]


def test_confusion_draws_rows_as_shares(tmp_path):
    """Two classes of very different size, each always right: the same picture as for one size."""
    even = pixels(confusion_figure(torch.tensor([[500, 0], [0, 500]]), ("a", "b"), tmp_path / "even.png"))
    odd = pixels(confusion_figure(torch.tensor([[990, 0], [0, 10]]), ("a", "b"), tmp_path / "odd.png"))
    assert even.shape == odd.shape
    assert (even != odd).any(axis=-1).mean() < 0.01, "only the counts differ"
    wrong = pixels(confusion_figure(torch.tensor([[0, 500], [500, 0]]), ("a", "b"), tmp_path / "wrong.png"))
    assert (even != wrong).any(axis=-1).mean() > 0.2


def rows(epochs, metrics):
    for epoch in range(1, epochs + 1):
        for i in range(1, 6):
            yield {"kind": "train", "step": (epoch - 1) * 5 + i, "epoch": epoch, "loss": 1 / (epoch + i / 5)}
        yield {"kind": "val", "step": epoch * 5, "epoch": epoch, **metrics(epoch)}


def captured(monkeypatch, module):
    """The figures that are saved, instead of files."""
    figures = []
    monkeypatch.setattr(module, "save_figure", lambda figure, path: figures.append(figure) or path)
    return figures


@pytest.mark.parametrize("best", [1, 3, 4])
def test_curves_mark_the_best_epoch(best, tmp_path, monkeypatch):
    from snella.report import figures as module

    figures = captured(monkeypatch, module)
    scores = {1: 0.9, 2: 0.2, 3: 0.9, 4: 0.9}
    history = list(rows(4, lambda epoch: {"score": scores[epoch], "loss": 1.0}))
    training_curves_figure(history, tmp_path / "curves.png", best_epoch=best, metric="score")
    (figure,) = figures
    assert any(f"best epoch: {best} of 4" in text.get_text() for text in figure.texts)
    left, right = figure.axes
    assert left.lines[0].get_xdata()[-1] == 4, "training steps are shown in epochs"
    assert right.lines[1].get_xdata() == [best]


def test_curves_of_one_epoch_and_of_a_loss_alone(tmp_path):
    path = training_curves_figure(
        list(rows(1, lambda _: {"denoising_loss": 3.2})),
        tmp_path / "curves.png",
        best_epoch=1,
        metric="denoising_loss",
        higher_is_better=False,
    )
    assert pixels(path).std() > 5


def test_curves_need_a_validation(tmp_path):
    with pytest.raises(ValueError, match="no row of a validation"):
        training_curves_figure(list(rows(1, lambda _: {}))[:1], tmp_path / "c.png", best_epoch=1)


def test_a_figure_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "figure.png"
    path.write_text("old")

    class Broken:
        def savefig(self, path, **_):
            path.write_text("half")
            raise OSError("disk full")

    with pytest.raises(UserError, match=r"cannot write .*figure.png: disk full"):
        style.save_figure(Broken(), path)  # pyright: ignore[reportArgumentType]
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"]
