"""Compiled blocks compute what the model does, and keep its names."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snella.config.method import MethodConfig
from snella.methods.adapters import wrap
from snella.models.checkpointing import blocks_of
from snella.models.compiling import compile_blocks


def loss_and_gradients(model: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    loss = model(images).square().mean()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "method", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("snella", "snell", "lora")), "full"]
)
def test_loss_and_gradients_are_the_same(method: str, vit: nn.Module, images: Tensor) -> None:
    torch._dynamo.reset()
    seen: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        seen.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    settings = MethodConfig(name=method, r=4, init_sparsity=0.5)  # pyright: ignore[reportCallIssue]
    plain = wrap(copy.deepcopy(vit), settings, total_step=10).train()
    compiled = copy.deepcopy(plain)
    compile_blocks(blocks_of(compiled)[:1], backend)  # the other runs as it is, which takes half of the time
    expected, wanted = loss_and_gradients(plain, images)
    loss, gradients = loss_and_gradients(compiled, images)
    assert seen
    torch.testing.assert_close(loss, expected)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, wanted[name], rtol=1e-3, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(compiled.eval()(images), plain.eval()(images))


def test_no_block_is_left_out_for_their_number(images: Tensor) -> None:
    torch._dynamo.reset()
    graphs: list[Any] = []
    blocks = nn.Sequential(*(Scaled(1 + i / 100) for i in range(40)))
    compile_blocks(list(blocks), lambda graph, inputs: graphs.append(graph) or graph.forward)
    expected = copy.deepcopy(images)
    for block in blocks:
        expected = block.forward(expected)
    with torch._dynamo.config.patch(error_on_recompile=False, fail_on_recompile_limit_hit=True):
        torch.testing.assert_close(blocks(images), expected)
    assert graphs


class Scaled(nn.Module):
    """Blocks that differ in a constant that is compiled in."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = str(scale)  # text is always a constant; a number may become an input

    def forward(self, x: Tensor) -> Tensor:
        return x * float(self.scale)
