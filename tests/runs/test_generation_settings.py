"""Settings of a training that generates: the prior, the cache, memory and the weights of the noise levels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest

import snella.runs.memory
from support.generation_runs import PROMPT, picture, pixels, train, write_flat
from support.runs import read, rows


def test_missing_images_of_a_prior_are_generated_into_its_folder(
    sd: Path, flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prior = tmp_path / "prior"
    prior.mkdir()
    picture(99).save(prior / "mine.png")
    flags = ("--prompt", PROMPT, "--prior-prompt", "a photo", "--prior-images", "4", "--prior-data", str(prior))
    assert train(flat, sd, tmp_path / "run", *flags) == 0
    assert "generating 3 images" in capsys.readouterr().out
    assert len(list(prior.iterdir())) == 4
    assert np.array_equal(pixels(prior / "mine.png"), np.asarray(picture(99)))
    lost = pixels(prior / "prior-0001.png")
    (prior / "prior-0001.png").unlink()  # a gap among those made
    assert train(flat, sd, tmp_path / "again", *flags) == 0
    assert "generating 1 images" in capsys.readouterr().out
    assert len(list(prior.iterdir())) == 4
    assert np.array_equal(pixels(prior / "prior-0001.png"), lost)
    monkeypatch.setattr("snella.tasks.generation.prepare.sample", lambda *_, **__: pytest.fail("images were generated"))
    assert train(flat, sd, tmp_path / "third", *flags) == 0


def test_a_prior_without_a_folder_is_generated_once(
    sd: Path, flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SNELLA_CACHE", str(tmp_path / "cache"))
    flags = ("--prompt", PROMPT, "--prior-prompt", "a photo", "--prior-images", "3", "--method", "bitfit")
    assert train(flat, sd, tmp_path / "run", *flags) == 0
    assert len(list((tmp_path / "cache" / "prior").rglob("*.png"))) == 3
    monkeypatch.setattr("snella.tasks.generation.prepare.sample", lambda *_, **__: pytest.fail("images were generated"))
    assert train(flat, sd, tmp_path / "again", *flags) == 0


def test_the_prior_weighs_in_the_loss(sd: Path, flat: Path, tmp_path: Path) -> None:
    prior = write_flat(tmp_path / "prior", 4)
    losses = []
    for weight in ("0", "2"):
        flags = ("--prompt", PROMPT, "--prior-prompt", "a photo", "--prior-images", "4", "--prior-data", str(prior))
        run = tmp_path / f"weight-{weight}"
        assert train(flat, sd, run, *flags, "--prior-weight", weight, "--method", "bitfit") == 0
        losses.append(rows(run, "train")[0]["loss"])
    assert 2.5 < losses[1] / losses[0] < 3.5  # 1 + 2, where all images are about as hard


def test_a_second_run_encodes_nothing_and_one_without_cache_learns_the_same(
    sd: Path, flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SNELLA_CACHE", str(tmp_path / "cache"))
    encoded: list[int] = []
    encode = diffusers.AutoencoderKL.encode
    monkeypatch.setattr(diffusers.AutoencoderKL, "encode", lambda vae, x: encoded.append(len(x)) or encode(vae, x))
    flags = ("--prompt", PROMPT, "--method", "bitfit")
    assert train(flat, sd, tmp_path / "first", *flags) == 0
    assert sum(encoded) == 12 + 8  # train, val and test, and those of train mirrored
    encoded.clear()
    assert train(flat, sd, tmp_path / "second", *flags) == 0
    assert not encoded
    assert train(flat, sd, tmp_path / "without", *flags, "--no-cache") == 0
    assert sum(encoded) >= 12
    losses = [
        read(tmp_path / name / "summary.json")["test"]["denoising_loss"] for name in ("first", "second", "without")
    ]
    assert losses[0] == losses[1] == pytest.approx(losses[2], rel=2e-2)


def test_gradient_checkpointing_gives_the_same_loss_in_less_memory(sd: Path, flat: Path, tmp_path: Path) -> None:
    found = []
    for flags in ((), ("--gradient-checkpointing",)):
        run = tmp_path / f"run{len(flags)}"
        assert train(flat, sd, run, "--prompt", PROMPT, "--rematerialize", "none", *flags) == 0
        found.append((rows(run, "train")[0]["loss"], read(run / "summary.json")["peak_memory_bytes"]))
    (loss, peak), (other, less) = found
    assert other == pytest.approx(loss, rel=1e-4)
    assert less < 0.8 * peak


def test_min_snr_weighs_the_training_loss_alone(sd: Path, flat: Path, tmp_path: Path) -> None:
    flags = ("--prompt", PROMPT, "--method", "bitfit", "--epochs", "4")  # 32 noise levels, some of them low
    assert train(flat, sd, tmp_path / "run", *flags, "--snr-gamma", "5") == 0
    assert train(flat, sd, tmp_path / "plain", *flags) == 0
    weighted, plain = (sum(row["loss"] for row in rows(tmp_path / name, "train")) for name in ("run", "plain"))
    assert weighted < 0.99 * plain  # no weight of min-SNR is above 1
    vals = [rows(tmp_path / name, "val")[0]["denoising_loss"] for name in ("run", "plain")]
    assert vals[0] == pytest.approx(vals[1], rel=0.1)


@pytest.mark.parametrize("method", ["snella", "lora", "full"])
def test_the_estimate_is_near_what_the_run_finds(
    method: str, unet: Path, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}
    estimate = snella.runs.memory.estimate
    monkeypatch.setattr("snella.runs.memory.estimate", lambda *a, **k: found.setdefault("estimate", estimate(*a, **k)))
    assert train(classes, unet, tmp_path / "run", "--method", method, "--estimate") == 0
    assert not (tmp_path / "run").exists()
    assert train(classes, unet, tmp_path / "run", "--method", method) == 0
    assert found["estimate"].total == pytest.approx(
        read(tmp_path / "run" / "summary.json")["peak_memory_bytes"], rel=0.15
    )


def test_the_estimate_counts_batches_of_a_larger_prior(
    sd: Path, flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}
    estimate = snella.runs.memory.estimate
    monkeypatch.setattr("snella.runs.memory.estimate", lambda *a, **k: found.update(k) or estimate(*a, **k))
    prior = tmp_path / "prior"
    flags = ("--prompt", PROMPT, "--prior-prompt", "a photo", "--prior-data", str(prior), "--batch-size", "100")
    assert train(flat, sd, tmp_path / "run", *flags, "--prior-images", "50", "--estimate") == 0
    assert found["batch_size"] == 50
    assert train(flat, sd, tmp_path / "run", *flags, "--prior-images", "1", "--estimate") == 0
    assert found["batch_size"] < 50
    assert not prior.exists()  # to count, none is made
