"""Adapters that change nothing at the start."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import peft
import pytest
import torch
from torch import Tensor, nn

from snella.delta import Gate, Kernel
from support.tuned import adapter_parameters, layers, tuned
from support.vits import tiny_vit


@pytest.mark.parametrize(
    ("kernel", "gate"), [("mixk", "published"), ("mixk", "hard"), ("pwl", "soft"), ("pwl", "none")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_start_is_the_base_to_the_bit(kernel: Kernel, gate: Gate, dtype: torch.dtype, images: Tensor) -> None:
    images = images.to(dtype)
    base = tiny_vit().to(dtype).eval()
    expected = base(images)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = tuned(base, start="zero", kernel=kernel, gate=gate, init_alpha=1.0)
    for mode in (True, False):
        assert torch.equal(model.train(mode)(images), expected)
    with torch.no_grad():
        assert torch.equal(model(images), expected)
        plain = model.merge_and_unload()  # type: ignore[operator]
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain.state_dict().items())


def test_a_trained_one_saves_merges_and_resumes(images: Tensor, tmp_path: Path) -> None:
    model = tuned(tiny_vit(), start="zero", kernel="mixk").train()
    parameters = adapter_parameters(model)
    optimizer = torch.optim.SGD(parameters.values(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()
    with torch.no_grad():
        expected = model.eval()(images)
        assert not torch.allclose(expected, tiny_vit().eval()(images), atol=1e-4)
        model.save_pretrained(str(tmp_path))
        torch.manual_seed(99)
        loaded = peft.PeftModel.from_pretrained(tiny_vit(), str(tmp_path)).eval()
        assert torch.equal(loaded(images), expected)
        for layer in layers(loaded):
            delta = layer.get_delta_weight("default")
            assert int((delta != 0).sum()) <= int(layer.kept("default").sum())
        plain = loaded.merge_and_unload()  # type: ignore[operator]
        torch.testing.assert_close(plain(images), expected)


def test_gradients_are_those_of_the_update(images: Tensor) -> None:
    def gradients(start: Literal["drawn", "zero"]) -> dict[str, Tensor]:
        torch.manual_seed(0)
        layer = tuned(nn.Sequential(nn.Linear(6, 9)), start=start, r=4, target_modules=["0"])
        for parameter in adapter_parameters(layer).values():
            nn.init.constant_(parameter, 0.0)
            parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
        weights = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
        (layers(layer)[0].get_delta_weight("default") * weights).sum().backward()
        return {
            name: parameter.grad for name, parameter in adapter_parameters(layer).items() if parameter.grad is not None
        }

    zero, drawn = gradients("zero"), gradients("drawn")
    assert zero.keys() == drawn.keys()
    assert all(torch.equal(zero[name], drawn[name]) for name in zero)
