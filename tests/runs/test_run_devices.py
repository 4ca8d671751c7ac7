"""Precision `auto`, memory layouts, and compiled blocks: what a GPU run does differently, as far as a CPU shows it."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import snella.runs.prepare
from snella.config.method import MethodConfig
from snella.config.recipe import differences
from snella.config.schema import TrainConfig
from snella.errors import UserError
from snella.methods.adapters import wrap
from snella.models.compiling import compile_blocks
from snella.runs import devices
from snella.runs.devices import is_convolutional, lay_out, make_accelerator, put_channels_last, with_precision
from snella.runs.folder import read_config
from snella.training.checkpoint import read_checkpoint, write_checkpoint
from snella.training.optimiser import adamw, load_optimiser_tensors, optimiser_tensors
from support.runs import adapter, rows, train


@pytest.mark.parametrize(
    ("gpu", "device", "expected"),
    [(True, "auto", "bf16"), (True, "cuda:0", "bf16"), (True, "cpu", "fp32"), (False, "auto", "fp32")],
)
def test_auto_is_bf16_on_a_gpu_that_has_it(
    gpu: bool, device: str, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: not including_emulation)
    config = TrainConfig.of(data="x", device=device, precision="auto")
    assert with_precision(config, tmp_path / "run").precision == expected
    fp16 = config.changed(precision="fp16")
    assert with_precision(fp16, tmp_path / "run") is fp16


def test_auto_is_written_as_what_it_means_and_a_resumed_run_keeps_its_own(
    images: Path, tmp_path: Path, snella_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(images, run, "--precision", "auto", "--epochs", "1") == 0
    assert read_config(run).precision == "fp32"
    monkeypatch.setattr(devices, "best_precision", lambda device: "bf16")  # as if it went on on a GPU
    assert train(images, run, "--precision", "auto", "--epochs", "1", "--resume") == 0
    assert read_config(run).precision == "fp32"
    assert train(images, run, "--precision", "bf16", "--epochs", "1", "--resume") == 2
    assert "precision was fp32, is bf16" in capsys.readouterr().err
    config = read_config(snella_run)
    assert differences(config, config.changed(precision="auto")) == []


def test_what_does_not_go_with_the_precision_found_is_refused(tmp_path: Path) -> None:
    config = TrainConfig.of(data="x", task="generate", backbone="x", half_weights=True, precision="auto", device="cpu")
    with pytest.raises(UserError, match="--half-weights is for frozen weights"):
        with_precision(config, tmp_path / "run")


def test_on_the_cpu_no_setting_of_matrix_products_moves() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    assert make_accelerator("cpu", "auto").mixed_precision == "no"
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize(
    ("name", "expected"), [("test_resnet", True), ("test_efficientnet", True), ("test_vit", False), ("resnet18", True)]
)
def test_models_of_convolutions_are_told_from_others(name: str, expected: bool) -> None:
    assert is_convolutional(timm.create_model(name, num_classes=5)) is expected


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    torch.manual_seed(1)
    model(torch.randn(2, 3, 32, 32, dtype=torch.float64)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("method", ["snella", "lora", "full"])
def test_channels_last_trains_the_same_and_resumes(method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = timm.create_model("test_resnet", num_classes=5)
    plain = wrap(base, MethodConfig(name=method, r=4), total_step=10).double()
    other = copy.deepcopy(plain)
    lay_out(other, torch.device("cpu"))
    assert all(p.is_contiguous() for p in other.parameters())
    put_channels_last(other)
    assert any(not p.is_contiguous() for p in other.parameters())
    optimizers = [adamw(model, lr=0.01, weight_decay=0.05) for model in (plain, other)]
    for model, optimizer in zip((plain, other), optimizers, strict=True):
        step(model, optimizer)
    expected, found = (step(model, optimizer) for model, optimizer in zip((plain, other), optimizers, strict=True))
    for name, value in expected.items():  # Adam makes steps of any gradient: where it is all but 0, rounding shows
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")
    path = write_checkpoint(tmp_path, 2, {"optimiser": optimiser_tensors(optimizers[1])}, {})
    again = torch.optim.AdamW(optimizers[1].param_groups, fused=True)
    load_optimiser_tensors(again, read_checkpoint(path)[0]["optimiser"])
    for p, entry in again.state.items():
        assert all(entry[name].stride() == p.stride() for name in ("exp_avg", "exp_avg_sq"))
        assert torch.equal(entry["exp_avg"], optimizers[1].state[p]["exp_avg"])
    step(other, again)  # a fused step refuses other layouts than the parameter's


def test_a_compiled_run_learns_as_another_and_resumes_without(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(snella.runs.prepare, "compile_blocks", partial(compile_blocks, backend="aot_eager"))
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    flags = ("--epochs", "1", "--method", "lora")  # adapted layers of snella take a minute, see test_compiling
    assert train(images, plain, *flags) == 0
    assert train(images, compiled, *flags, "--compile") == 0
    losses = [[row["loss"] for row in rows(run, "train")] for run in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert adapter(plain).keys() == adapter(compiled).keys()
    assert train(images, tmp_path / "no", "--compile", "--gradient-checkpointing") == 2
    assert "pass it or --gradient-checkpointing, not both" in capsys.readouterr().err
