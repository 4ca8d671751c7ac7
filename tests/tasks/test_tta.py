"""Test-time augmentation: what two views come to, against the merged model on an image and on its mirror image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from snella.cli.main import main
from snella.files import write_checksums, write_json
from snella.runs.load import load_run, merged
from snella.tasks.whole_image import WholeImageLearner
from support.runs import read, train, write_images

FLAGS = ("--tta", "flip", "--epochs", "1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tta")
    images = write_images(folder / "images")
    (folder / "numbers.csv").write_text(
        "path,size\n" + "".join(f"images/c{k}/{i}.png,{10 * k + i}\n" for k in range(3) for i in range(10))
    )
    assert train(images, folder / "run", *FLAGS) == 0
    return folder


def test_the_probabilities_are_those_of_the_mean_of_two_views(run: Path) -> None:
    loaded = load_run(run / "run")
    learner = loaded.learner
    assert isinstance(learner, WholeImageLearner)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    found = learner.answers(loaded.model, images)
    plain = merged(loaded.config.method.name, loaded.model).eval()
    with torch.no_grad():
        one, other = plain(images), plain(images.flip(3))
    assert not torch.allclose(one, other, atol=1e-3)
    torch.testing.assert_close(found, ((one + other) / 2).softmax(1), rtol=1e-4, atol=1e-5)


def test_an_evaluation_takes_the_same_views_as_the_training(run: Path) -> None:
    assert main(["evaluate", str(run / "run"), "--device", "cpu"]) == 0
    report, summary = read(run / "run" / "evaluation" / "test.json"), read(run / "run" / "summary.json")
    assert {name: report["metrics"][name] for name in summary["test"]} == pytest.approx(summary["test"], abs=1e-6)
    loaded = load_run(run / "run")
    seen: list[int] = []
    hook = loaded.model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    loaded.learner.evaluate(loaded.model, [{"image": torch.zeros(2, 3, 32, 32), "label": torch.tensor([0, 1])}])
    hook.remove()
    assert seen == [2, 2]


def test_who_merges_is_told_that_the_model_sees_an_image_once(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", str(run / "run"), "--out", str(tmp_path / "merged")]) == 0
    assert "it sees an image once" in capsys.readouterr().out


def test_a_run_from_before_sees_an_image_once(run: Path, tmp_path: Path) -> None:
    assert train(run / "images", tmp_path / "run", "--epochs", "1") == 0
    about = tmp_path / "run" / "adapter" / "snella.json"
    values = json.loads(about.read_text())
    assert values.pop("tta") == "none"
    write_json(about, values)
    write_checksums(about.parent)
    learner = load_run(tmp_path / "run").learner
    assert isinstance(learner, WholeImageLearner)
    assert learner.tta == "none"


def test_quantities_are_means_of_two_views_too(run: Path, tmp_path: Path) -> None:
    task = ("--task", "regress", "--target-column", "size")
    assert train(run / "numbers.csv", tmp_path / "run", *task, *FLAGS) == 0
    loaded = load_run(tmp_path / "run")
    assert isinstance(loaded.learner, WholeImageLearner)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    found = loaded.learner.answers(loaded.model, images)
    loaded.learner.tta = "none"
    one, other = (loaded.learner.answers(loaded.model, view) for view in (images, images.flip(3)))
    torch.testing.assert_close(found, (one + other) / 2, rtol=1e-4, atol=1e-4)
