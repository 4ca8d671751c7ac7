"""Classification metrics against scikit-learn, and the loss against PyTorch's own."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference
from torch import nn

from snella.errors import UserError
from snella.tasks.classification.learner import ClassEvaluation, Classify
from snella.tasks.classification.task import CLASSIFICATION
from support.runs import read, train, write_images


class Replay(nn.Module):
    """Takes the logits out of the image it is shown, so that a test says what the model answers."""

    def forward(self, images):  # (b, K, 1, 1) -> (b, K)
        return images.flatten(1)


def batches_of(logits, labels, size):
    images = torch.as_tensor(logits)[:, :, None, None]
    return [
        {"image": image, "label": label}
        for image, label in zip(images.split(size), torch.as_tensor(labels).split(size), strict=True)
    ]


def names(count):
    return tuple(f"class {k}" for k in range(count))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 12), size=st.integers(1, 40), batch=st.integers(1, 16))
def test_metrics_agree_with_scikit_learn(seed, count, size, batch):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(size, count)).astype(np.float32)
    labels = rng.integers(count, size=size)
    result = Classify(names(count)).evaluate(Replay(), batches_of(logits, labels, batch))

    predicted, every = logits.argmax(1), np.arange(count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes that are predicted but absent
        balanced = reference.balanced_accuracy_score(labels, predicted)
    precision, recall, f1, _ = reference.precision_recall_fscore_support(
        labels,
        predicted,
        labels=every,
        zero_division=np.nan,  # pyright: ignore[reportArgumentType]
    )
    top5 = np.mean([label in np.argsort(-row)[:5] for row, label in zip(logits, labels, strict=True)])
    probabilities = torch.from_numpy(logits).double().softmax(1).numpy()
    assert result.metrics == pytest.approx(
        {
            "top1": reference.accuracy_score(labels, predicted),
            "top5": top5,
            "balanced_accuracy": balanced,
            "loss": reference.log_loss(labels, probabilities, labels=every),
        },
        rel=1e-5,
    )
    assert result.confusion.tolist() == reference.confusion_matrix(labels, predicted, labels=every).tolist()
    assert [row.count for row in result.table] == np.bincount(labels, minlength=count).tolist()
    for column, expected in (("recall", recall), ("precision", precision), ("f1", f1)):
        got = [getattr(row, column) for row in result.table]
        got = [np.nan if value is None else value for value in got]
        np.testing.assert_allclose(got, expected, err_msg=column)


def test_top5_needs_a_label_among_the_five_best():
    logits = np.tile(np.arange(8, dtype=np.float32), (2, 1))  # class 7 first, then 6, 5, 4, 3
    result = Classify(names(8)).evaluate(Replay(), batches_of(logits, np.array([3, 2]), 2))
    assert result.metrics["top5"] == 0.5


def test_evaluate_leaves_mixing_out_and_runs_in_eval_mode():
    class Checked(Replay):
        def forward(self, images):
            assert not self.training
            assert not torch.is_grad_enabled()
            return super().forward(images)

    task = Classify(names(3), mixup=1.0, cutmix=1.0, label_smoothing=0.3)
    logits, labels = np.eye(3, dtype=np.float32) * 20, np.arange(3)
    result = task.evaluate(Checked().train(), batches_of(logits, labels, 2))
    assert result.metrics["top1"] == 1
    assert result.metrics["loss"] < 1e-6


def test_nothing_to_evaluate_is_a_user_error():
    with pytest.raises(UserError, match="nothing to evaluate"):
        Classify(names(2)).evaluate(Replay(), [])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_is_weighted_cross_entropy(smoothing, weighted):
    torch.manual_seed(0)
    logits, labels = torch.randn(7, 4), torch.tensor([0, 1, 2, 3, 3, 3, 0])
    weights = torch.tensor([0.5, 2.0, 1.0, 0.25]) if weighted else None
    task = Classify(names(4), class_weights=weights, label_smoothing=smoothing)
    (batch,) = batches_of(logits, labels, 7)
    expected = F.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)
    torch.testing.assert_close(task.loss(Replay(), batch), expected)


@pytest.mark.parametrize("mixing", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
@pytest.mark.parametrize("size", [1, 5])
def test_mixed_loss_blends_the_two_images_labels(mixing, size):
    """Equal logits for every image: the loss is then the blend of the two labels' losses, whatever the ratio."""
    logits = torch.tensor([2.0, 0.0, -1.0])
    log_p = logits.log_softmax(0)

    class Constant(nn.Module):
        def forward(self, images):
            return logits.expand(len(images), 3)

    batch = {"image": torch.rand(size, 3, 16, 16), "label": torch.tensor([2, 0, 1, 1, 0])[:size]}
    before = batch["image"].clone()
    loss = Classify(names(3), **mixing).loss(Constant(), batch)
    torch.testing.assert_close(loss, -log_p[batch["label"]].mean())  # each label is blended in and out once
    assert torch.equal(batch["image"], before), "the batch is changed in place"


def test_mixing_is_a_function_of_the_global_seed_and_does_mix():
    class Mean(nn.Module):
        def forward(self, images):  # (b, 3, s, s) -> (b, 3)
            return images.mean((2, 3))

    task = Classify(names(3), mixup=0.8, cutmix=1.0)
    batch = {"image": torch.rand(6, 3, 16, 16), "label": torch.tensor([0, 1, 2, 0, 1, 2])}

    def draw(seed):
        torch.manual_seed(seed)
        return task.loss(Mean(), batch).item()

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(8)}) == 8


def test_predict_gives_probabilities_from_transformers_output_too():
    class Output:
        def __init__(self, logits):
            self.logits = logits

    class Wrapped(Replay):
        def forward(self, images):
            return Output(super().forward(images))

    logits = torch.tensor([[0.0, 1.0, 3.0], [2.0, 2.0, 2.0]])
    (batch,) = batches_of(logits, torch.zeros(2, dtype=torch.long), 2)
    for model in (Replay(), Wrapped()):
        probabilities = Classify(names(3)).answers(model, batch["image"].bfloat16())
        assert probabilities.dtype == torch.float32
        np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
        np.testing.assert_allclose(probabilities[0] / probabilities[0, 0], np.exp([0, 1, 3]), rtol=1e-5)
        np.testing.assert_allclose(probabilities[1], 1 / 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing 1.0 is outside"),
        ({"mixup": -0.1}, "mixup -0.1 is negative"),
        ({"cutmix": -1.0}, "cutmix -1.0 is negative"),
        ({"class_weights": torch.ones(3)}, "3 class weights for 2 classes"),
    ],
)
def test_values_outside_their_range_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        Classify(names(2), **settings)


def test_one_class_is_refused():
    with pytest.raises(UserError, match="at least two classes"):
        Classify(("only",))


def test_a_run_that_learnt_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images")
    assert (
        train(images, tmp_path / "nothing", "--lr", "1e-8", "--min-lr", "0", "--warmup-lr", "0", "--epochs", "1") == 0
    )
    top1 = read(tmp_path / "nothing" / "summary.json")["val"]["top1"]
    assert ("nothing was learnt: val top-1 is" in capsys.readouterr().out) == (top1 <= 1 / 3)
    assert train(images, tmp_path / "learnt", "--lr", "1e-2", "--epochs", "4") == 0
    assert read(tmp_path / "learnt" / "summary.json")["val"]["top1"] > 0.5
    assert "nothing was learnt" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("confusion", "said"),
    [
        ([[7, 0], [3, 0]], "70.0% of val are a"),
        ([[6, 1], [2, 1]], "70.0% of val are a"),
        ([[7, 0], [2, 1]], None),
        ([[0, 2], [0, 2]], "50.0% of val are a"),
    ],
)
def test_nothing_is_learnt_where_the_most_frequent_class_alone_is_as_good(
    confusion: list[list[int]], said: str | None
) -> None:
    matrix = torch.tensor(confusion)
    metrics = {"top1": matrix.diagonal().sum().item() / matrix.sum().item()}
    doubts = Classify(("a", "b")).doubts(ClassEvaluation(metrics, (), matrix))
    assert [said is not None] == [bool(doubts)]
    assert all(said is not None and said in doubt for doubt in doubts)


def test_top_5_is_shown_where_there_are_more_than_five_classes() -> None:
    assert "top5" not in CLASSIFICATION.shown_metrics(5)
    assert CLASSIFICATION.shown_metrics(6) == CLASSIFICATION.metrics


def test_logits_and_labels_are_kept_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = torch.randn(10, 3), torch.arange(10) % 3
    task, batches = Classify(("a", "b", "c")), batches_of(logits, labels, 4)
    kept = task.kept(task.evaluate(Replay(), batches))
    assert torch.equal(kept["logits"], logits)
    assert torch.equal(kept["labels"], labels)
    monkeypatch.setattr("snella.tasks.classification.learner.KEPT", 29)
    assert task.kept(task.evaluate(Replay(), batches)) == {}
