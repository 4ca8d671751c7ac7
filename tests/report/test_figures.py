"""Figures of an evaluation and of a training: what they show, and that they are drawn for odd input too."""

import pytest
import torch

from snella.report.figures import confusion_figure, training_curves_figure
from support.pictures import pixels


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
