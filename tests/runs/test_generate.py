"""What can be done with a run that has learnt to generate: images, and how near they are to real ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

import snella
import snella.tasks.generation.learner
from snella.cli.main import main
from support.generation_runs import PROMPT, pixels, predicted, train, write_texts
from support.runs import read


def test_a_run_loaded_into_a_pipeline_gives_what_predict_does(sd: Path, sd_run: Path, tmp_path: Path) -> None:
    flags = ("--prompt", PROMPT, "--n", "1", "--seed", "5", "--steps", "3", "--guidance", "2")
    (own,) = predicted(sd_run, tmp_path / "own", *flags)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(sd, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)

    def made() -> np.ndarray:
        generator = torch.Generator().manual_seed(5)
        found = pipe(PROMPT, num_inference_steps=3, guidance_scale=2.0, generator=generator, height=16, width=16)
        assert not isinstance(found, tuple)
        return np.asarray(found.images[0]).astype(int)

    original = made()
    snella.load_into_pipeline(pipe, sd_run)
    assert np.abs(made() - pixels(own)).max() <= 1
    snella.unload_from_pipeline(pipe)
    assert np.array_equal(made(), original)
    assert np.abs(original - pixels(own)).max() > 5


def test_an_image_does_not_depend_on_those_beside_it(class_run: Path, tmp_path: Path) -> None:
    many = predicted(class_run, tmp_path / "many", "--prompt", "cat", "--n", "6", "--seed", "0")
    (alone,) = predicted(class_run, tmp_path / "alone", "--prompt", "cat", "--n", "1", "--seed", "5")
    assert [path.name for path in many] == [f"cat-{seed}.png" for seed in range(6)]
    assert np.abs(pixels(many[5]) - pixels(alone)).max() <= 1


def test_without_a_prompt_predict_makes_the_images_of_the_sample_grids(
    class_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    made = predicted(class_run, tmp_path / "made", "--n", "2", "--json")
    found = json.loads(capsys.readouterr().out)
    assert [(row["prompt"], row["seed"]) for row in found] == [("cat", 0), ("cat", 1), ("dog", 0), ("dog", 1)]
    assert sorted(row["image"] for row in found) == [str(path) for path in made]
    # in a batch of the grids' size: another one rounds otherwise
    cat, dog = predicted(class_run, tmp_path / "one-each", "--n", "1")
    for image, sampled in ((cat, "00.png"), (dog, "01.png")):
        assert np.array_equal(pixels(image), pixels(class_run / "samples" / "after" / sampled))


def test_prompts_that_begin_alike_have_files_of_their_own(
    sd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = [f"{'a photo of a cat ' * 4}{colour}" for colour in ("red", "blue")]
    data = write_texts(tmp_path / "data", prompts * 4)
    assert train(data, sd, tmp_path / "run", "--method", "bitfit") == 0
    assert len(predicted(tmp_path / "run", tmp_path / "made", "--n", "2")) == 4


@pytest.mark.slow
def test_fidelity_to_the_split_is_the_same_twice(class_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--features", "vit_small_focus", "--samples", "8", "--device", "cpu")
    found = []
    for _ in range(2):
        assert main(["evaluate", str(class_run), *flags]) == 0
        found.append(read(class_run / "evaluation" / "test.json")["fidelity"])
    assert found[0] == found[1]
    assert found[0]["generated"] == 8
    assert found[0]["features"] == "vit_small_focus"
    assert -1 <= found[0]["similarity"] <= found[0]["nearest"] <= 1 + 1e-6


def test_metrics_are_kept_whatever_becomes_of_the_fidelity(
    class_run: Path, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--features", "vit_small_focus", "--samples", "8", "--device", "cpu")
    few = tmp_path / "few" / "cat"
    few.mkdir(parents=True)
    shutil.copy(next((classes / "cat").iterdir()), few)
    assert main(["evaluate", str(class_run), "--data", str(few.parent), *flags]) == 2
    assert "--features compares with 2 images or more, and there are 1" in capsys.readouterr().err
    monkeypatch.setattr("snella.tasks.generation.learner.fidelity", lambda *_, **__: 1 / 0)
    shutil.copytree(classes, tmp_path / "many")
    assert main(["evaluate", str(class_run), "--data", str(tmp_path / "many"), *flags]) == 1
    assert "denoising_loss" in read(class_run / "evaluation" / "many.json")["metrics"]


def test_fidelity_asks_a_text_model_for_the_references_captions(
    sd: Path, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(classes, sd, tmp_path / "run", "--prompt", "a photo of {class}", "--method", "bitfit") == 0
    asked: list[str] = []
    sample = snella.tasks.generation.learner.sample
    monkeypatch.setattr(
        "snella.tasks.generation.learner.sample",
        lambda f, n, prompts, *rest: asked.extend(prompts) or sample(f, n, prompts, *rest),
    )
    flags = ("--features", "vit_small_focus", "--samples", "4", "--device", "cpu")
    assert main(["evaluate", str(tmp_path / "run"), *flags]) == 0
    assert set(asked) == {"a photo of cat", "a photo of dog"}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("predict", "RUN", "some.png"), "makes images and takes none"),
        (("predict", "RUN", "--prompt", "cow"), "--prompt cow is none of the run's classes: cat, dog"),
        (("predict", "RUN", "--prompt", "cat", "--guidance", "-1"), "--guidance -1.0 is below 0"),
        (("predict", "RUN", "--prompt", "cat", "--steps", "0"), "--steps 0 is below 1"),
        (("predict", "RUN", "--prompt", "cat", "--guidance", "nan"), "--guidance nan is out of range"),
        (("predict", "RUN", "--prompt", "cat", "--seed", str(2**64)), "is out of range"),
        (("predict", "RUN", "--prompt", "cat", "--n", "0"), "--n 0 is below 1"),
        (("evaluate", "RUN", "--data", "FLAT"), "no class folders"),
        (("predict", "CLASSIFIER", "--prompt", "cat"), "generates no images"),
        (("evaluate", "CLASSIFIER", "--features", "vit_small_focus"), "makes no images"),
    ],
)
def test_what_a_run_cannot_do_is_one_line(
    flags: tuple[str, ...],
    expected: str,
    class_run: Path,
    classifier_run: Path,
    flat: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = {"RUN": class_run, "CLASSIFIER": classifier_run, "FLAT": flat}
    before = sorted(path for run in (class_run, classifier_run) for path in run.rglob("*"))
    capsys.readouterr()
    assert main([str(paths.get(word, word)) for word in flags]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert sorted(path for run in (class_run, classifier_run) for path in run.rglob("*")) == before


def test_images_without_captions_are_no_test_of_a_text_model(
    sd: Path, texts: Path, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(texts, sd, tmp_path / "run", "--method", "bitfit") == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(flat), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "no captions" in error
    assert error.count("\n") == 1
