"""Inputs made again: the same gradients to the bit, less memory, and off where it could not be the same."""

from __future__ import annotations

from functools import partial

import pytest
import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from support.mlps import LEVELS, Mlp, X, assert_bits_equal, kept_bytes, sources, tuned


@pytest.mark.parametrize("act", [nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU(), nn.ReLU(), nn.SiLU(inplace=True)])
@pytest.mark.parametrize("norm", [nn.LayerNorm(16), nn.RMSNorm(16), nn.Identity()])
def test_gradients_to_the_bit(norm: nn.Module, act: nn.Module) -> None:
    torch.manual_seed(0)
    assert_bits_equal(Mlp(norm, act), torch.randn(4, 6, 16))


@pytest.mark.parametrize(
    "name", ["test_vit", "test_convnext", "swin_tiny_patch4_window7_224", "test_efficientnet", "test_resnet"]
)
def test_models_to_the_bit(name: str) -> None:
    torch.manual_seed(0)
    options = {"depths": (1, 1), "embed_dim": 32, "num_heads": (1, 2), "img_size": 56} if "swin" in name else {}
    model = timm.create_model(name, num_classes=3, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    x = torch.randn(2, 3, 56 if "swin" in name else 64, 56 if "swin" in name else 64)
    if isinstance(model, VisionTransformer):
        model.set_input_size((64, 64))
    assert_bits_equal(model, x, target_modules=None, modules_to_save=None)


def doubled(module: nn.Module, x: Tensor) -> Tensor:
    return type(module).forward(module, x) * 2


def test_both_inputs_are_known() -> None:
    assert sources(tuned(Mlp(), True), X) == {"fc1": True, "fc2": True}
    assert sources(tuned(Mlp(), False), X) == {"fc1": False, "fc2": False}


def test_memory_falls_with_each_level() -> None:
    unit = 4 * X.numel()  # the width 16; the MLP is four times as wide
    kept = [kept_bytes(tuned(Mlp(), level), X) for level in LEVELS]
    assert kept[0] - kept[1] >= 0.99 * (1 + 4) * unit  # outputs of the norm and of GELU
    assert kept[1] - kept[2] >= 0.99 * 4 * unit  # GELU's input


def test_off_where_an_activation_works_in_place() -> None:
    assert sources(tuned(Mlp(act=nn.SiLU(inplace=True)), True), X)["fc2"] is False


def test_off_where_dropout_changes_the_tensor() -> None:
    assert sources(tuned(Mlp(p=0.5), True), X) == {"fc1": True, "fc2": False}
    assert_bits_equal(Mlp(p=0.5), X)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "replaced"])
def test_off_where_others_change_what_the_module_does(kind: str) -> None:
    model = Mlp()
    for module in (model.norm, model.act):
        if kind == "forward":
            module.register_forward_hook(lambda m, args, out: out.mul_(2))
        elif kind == "forward_pre":
            module.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
        else:
            vars(module)["forward"] = partial(doubled, module)
    if kind != "replaced":  # deepcopy would keep the closure's module
        assert_bits_equal(model, X)
    assert sources(tuned(model, True), X) == {"fc1": False, "fc2": False}


def test_off_where_the_output_was_changed_in_place() -> None:
    class Changed(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            h = self.norm(x)
            h += 1
            return self.fc2(self.act(self.fc1(h)))

    assert sources(tuned(Changed(), True), X) == {"fc1": False, "fc2": True}
    assert_bits_equal(Changed(), X)


def test_a_module_shared_between_places() -> None:
    class Shared(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for _ in range(2):
                x = x + self.fc2(self.act(self.fc1(self.norm(x))))
            return x

    assert_bits_equal(Shared(), X)


class Quick(nn.Module):
    """An activation of several operations, of which the last does not keep the input."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(x))


Quick.__name__, Quick.__module__ = "NewGELUActivation", "transformers.activations"


class NoisyGELU(nn.GELU):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * torch.rand_like(input)


def test_activations_of_several_operations() -> None:
    assert_bits_equal(Mlp(act=Quick()), X)


def test_a_norm_right_behind_an_adapted_layer() -> None:
    class Behind(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.act(self.norm(self.fc1(self.stem(x)))))

    for norm in (nn.LayerNorm(64), nn.RMSNorm(64)):
        assert_bits_equal(Behind(norm), X, modules_to_save=["stem", "norm"])


def test_off_for_classes_of_others() -> None:
    assert sources(tuned(Mlp(act=NoisyGELU()), True), X) == {"fc1": True, "fc2": False}
    assert_bits_equal(Mlp(act=NoisyGELU()), X)
