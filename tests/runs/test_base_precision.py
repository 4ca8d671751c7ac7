"""Runs whose frozen weights are kept in fewer bits: less memory, and the rounded model wherever the run is used."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from snella.cli.main import main
from snella.ops import FORMATS, pack, unpacked
from support.runs import adapter, read, same, stop_after_first_checkpoint, train

METHODS = ("snella", "lora")


@pytest.mark.parametrize("method", ["snella", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_run_is_evaluated_as_it_was_trained_and_goes_on_to_the_bit(method: str, images: Path, tmp_path: Path) -> None:
    flags = ("--method", method, "--base-precision", "int8", "--checkpoint-every", "1", "--epochs", "4")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train(images, whole, *flags) == 0
    assert main(["evaluate", str(whole), "--device", "cpu"]) == 0
    report, summary = read(whole / "evaluation" / "test.json"), read(whole / "summary.json")
    assert {name: report["metrics"][name] for name in summary["test"]} == pytest.approx(summary["test"])
    thread = stop_after_first_checkpoint(stopped, signal.SIGINT)
    assert train(images, stopped, *flags) == 130
    thread.join()
    assert train(images, stopped, *flags, "--resume") == 0
    assert same(adapter(whole), adapter(stopped))


def test_memory_is_that_of_the_bits(images: Path, tmp_path: Path) -> None:
    peaks = {}
    for form in ("fp32", *FORMATS):
        assert train(images, tmp_path / form, "--epochs", "1", "--base-precision", form) == 0
        peaks[form] = read(tmp_path / form / "summary.json")["peak_memory_bytes"]
    assert peaks["nf4"] < peaks["int8"] < peaks["bf16"] < peaks["fp32"]


@pytest.mark.parametrize("form", FORMATS)
def test_a_merged_model_has_the_rounded_weights(
    form: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged = {}
    for name in ("fp32", form):
        run = tmp_path / name
        assert train(images, run, "--method", "linear", "--epochs", "1", "--base-precision", name) == 0
        capsys.readouterr()
        assert main(["merge", str(run), "--out", str(tmp_path / f"{name}-merged")]) == 0
        said = "rounded to" in capsys.readouterr().out
        assert said == (name != "fp32")
        merged[name] = load_file(tmp_path / f"{name}-merged" / "model.safetensors")
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(merged[form][name], unpacked(pack(merged["fp32"][name], form)))


@pytest.mark.parametrize("flags", [("--method", "full"), ("--method", "shira"), ("--compile",)])
def test_what_does_not_go_together_is_one_line(
    flags: tuple[str, ...], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(images, tmp_path / "run", "--base-precision", "int8", *flags) == 2
    assert "--base-precision int8" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
