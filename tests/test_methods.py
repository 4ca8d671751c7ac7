"""Every tuning method: what trains, what is saved, what is merged."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from snella.errors import UserError
from snella.methods import METHODS, MethodSettings, after_step, load_adapter, merged, save_adapter, wrap
from vits import tiny_vit

SETTINGS = MethodSettings(r=8, total_step=20, target_sparsity=0.5)


@pytest.mark.parametrize("method", METHODS)
def test_train_save_load_merge(method: str, tmp_path: Path) -> None:
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    torch.manual_seed(0)
    model = wrap(method, tiny_vit(), SETTINGS).train()
    before = model.eval()(images)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    hook = after_step(method, model)
    for step in (1, 2, 3):
        torch.nn.functional.cross_entropy(model.train()(images), labels).backward()
        optimizer.step()
        if hook is not None:
            hook(step)
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        expected = model(images)
    assert not torch.allclose(expected, before)
    save_adapter(method, model, tmp_path)
    loaded = load_adapter(method, tiny_vit(), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), expected)
        plain = merged(method, loaded).eval()
        torch.testing.assert_close(plain(images), expected, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, BaseTunerLayer) for module in plain.modules())


@pytest.mark.parametrize("method", METHODS)
def test_what_trains(method: str) -> None:
    model = wrap(method, tiny_vit(), SETTINGS)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("head" in name for name in trainable)
    rest = {name for name in trainable if "head" not in name}
    if method == "full":
        assert trainable == {name for name, _ in model.named_parameters()}
    elif method == "linear":
        assert not rest
    elif method == "bitfit":
        assert rest
        assert all(name.endswith("bias") for name in rest)
    else:
        assert rest
        assert not any("base_layer" in name for name in rest)


@pytest.mark.parametrize("method", ["adalora", "shira"])
def test_a_layer_that_a_method_does_not_support_is_named(method: str) -> None:
    with pytest.raises(UserError, match=f"{method} does not support convolutions, and layer1.*choose from snella"):
        wrap(method, timm.create_model("resnet18", num_classes=3), SETTINGS)


def test_adalora_goes_on_where_it_was() -> None:
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])

    def steps(model, numbers: range) -> None:
        for step in numbers:
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            with torch.no_grad():
                for p in model.parameters():
                    if p.grad is not None:
                        p -= 0.05 * p.grad
            after_step("adalora", model)(step)
            model.zero_grad()

    def fresh():
        torch.manual_seed(1)
        return wrap("adalora", tiny_vit(), SETTINGS)

    straight, first, second = fresh(), fresh(), fresh()
    steps(straight, range(1, 19))
    steps(first, range(1, 17))
    second.load_state_dict(first.state_dict())
    after_step("adalora", second).load_state_dict(after_step("adalora", first).state_dict())
    steps(second, range(17, 19))
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), second.parameters(), strict=True))
