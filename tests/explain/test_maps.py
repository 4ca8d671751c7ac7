"""Heat maps against torch, captum's Grad-CAM, and images whose evidence is known."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from snella.errors import UserError
from snella.explain import maps
from snella.explain.maps import MapLayer, check_captum, find_layer, heat_maps
from support.vits import tiny_vit

needs_captum = pytest.mark.skipif(find_spec("captum") is None, reason="no captum: pip install 'snella[explain]'")


def built(name: str) -> nn.Module:
    """Return a model whose head is drawn: that of a Mixer is zero, and no logit depends on anything."""
    torch.manual_seed(0)
    model: Any = timm.create_model(name, num_classes=4).eval()
    heads = model.get_classifier()
    for head in heads if isinstance(heads, tuple) else (heads,):
        nn.init.normal_(head.weight)
    return model


def name_of(model: nn.Module, layer: MapLayer) -> str:
    return [name for name, module in model.named_modules() if module is layer.module][-1]


class Averaged(nn.Module):
    """A convolution, a mean over the places, and a linear layer: each place's share of a logit is known."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 4, stride=4), nn.Linear(6, 4)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.conv(images).relu().mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "size", "where", "layout", "side"),
    [
        ("test_vit", 160, "blocks.5.norm1", "tokens", 10),  # it reads the class token
        ("test_convnext", 160, "norm_pre", "channels first", 5),
        ("test_resnet", 160, "layer4", "channels first", 5),
        ("test_efficientnet", 160, "bn2", "channels first", 5),
        ("mobilenetv3_small_050", 160, "blocks", "channels first", 5),  # with a layer between the mean and the head
        ("vgg11", 64, "features", "channels first", 2),
        ("swin_tiny_patch4_window7_224", 224, "norm", "channels last", 7),
        ("deit_tiny_distilled_patch16_224", 224, "blocks.11.norm1", "tokens", 14),  # two heads, two tokens before
        ("vit_pwee_patch16_reg1_gap_256", 256, "norm", "tokens", 16),  # a register before, a mean over the rest
        ("mixer_s32_224", 224, "norm", "tokens", 7),
    ],
)
def test_the_layer_is_the_last_that_every_place_reaches(name, size, where, layout, side):
    model = built(name)
    layer = find_layer(model, size)
    assert (layer.layout, layer.side) == (layout, side)
    assert name_of(model, layer).startswith(where)


def test_a_layer_of_an_adapted_model_is_that_of_the_model():
    import peft

    from snella import SnellaConfig

    plain = built("test_vit")
    adapted: Any = peft.get_peft_model(built("test_vit"), SnellaConfig(r=2))
    assert name_of(adapted, find_layer(adapted, 160)).endswith(name_of(plain, find_layer(plain, 160)))


def test_without_places_there_is_no_layer():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    with pytest.raises(UserError, match="no heat maps of this Sequential"):
        find_layer(model, 16)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(maps, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"captum; run: pip install 'snella\[explain\]'"):
        check_captum()


@needs_captum
def test_places_have_their_shares_of_the_logit(images):
    model = Averaged().eval()
    layer = MapLayer(model.conv, "channels first", 8)
    targets = torch.tensor([2, 0, 3])
    signed = maps._signed(model, layer, images, targets)
    logits = model(images).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(signed.sum((1, 2)), (logits - model.fc.bias[targets]).detach(), rtol=1e-5, atol=1e-6)
    expected = signed.clamp(min=0) / signed.clamp(min=0).amax((1, 2), keepdim=True)
    torch.testing.assert_close(heat_maps(model, layer, images, targets), expected)


@needs_captum
def test_a_convolutional_map_is_grad_cam_s():
    from captum.attr import LayerGradCam

    model, images, targets = built("test_resnet"), torch.randn(2, 3, 160, 160), torch.tensor([1, 3])
    layer = find_layer(model, 160)
    theirs = LayerGradCam(model, layer.module).attribute(images, target=targets, relu_attributions=True)
    assert isinstance(theirs, Tensor)
    theirs = (theirs / theirs.amax((1, 2, 3), keepdim=True).clamp(min=1e-30))[:, 0]
    assert theirs.amax() == 1
    torch.testing.assert_close(heat_maps(model, layer, images, targets), theirs, rtol=1e-4, atol=1e-5)


@needs_captum
def test_a_map_of_a_vit_leaves_the_class_token_out():
    model: Any = tiny_vit()
    model.eval()
    layer = find_layer(model, 32)
    images = torch.randn(1, 3, 32, 32)
    target = int(model(images)[0].argmax())
    caught: list[Tensor] = []

    def catch(module: nn.Module, given: object, found: Tensor) -> None:
        caught.append(found)

    hook = layer.module.register_forward_hook(catch)  # pyright: ignore[reportArgumentType] (its output is a tensor)
    logit = model(images.requires_grad_())[0, target]
    hook.remove()
    (gradient,) = torch.autograd.grad(logit, caught)
    shares = (gradient * caught[0]).sum(-1)[0, -(layer.side**2) :].clamp(min=0)
    found = heat_maps(model, layer, images, torch.tensor([target])).flatten()
    torch.testing.assert_close(found, (shares / shares.max()).detach())


@needs_captum
@pytest.mark.parametrize("corner", [(0, 0), (16, 0), (8, 24)])
def test_evidence_of_a_known_place_is_found_there(corner):
    model = Averaged().eval()
    layer = find_layer(model, 32)
    with torch.no_grad():
        assert model.conv.bias is not None
        model.conv.weight.fill_(1.0)
        model.conv.bias.fill_(-20.0)  # only what is bright all over passes
        model.fc.weight.copy_(torch.tensor([[1.0], [-1.0], [0.5], [0.0]]).expand(4, 6))
    image = torch.zeros(1, 3, 32, 32)
    top, left = corner
    image[..., top : top + 8, left : left + 8] = 1
    found = heat_maps(model, layer, image.expand(2, -1, -1, -1), torch.tensor([0, 1]))
    expected = torch.zeros(8, 8)
    expected[top // 4 : top // 4 + 2, left // 4 : left // 4 + 2] = 1
    torch.testing.assert_close(found[0], expected)
    assert found[1].count_nonzero() == 0  # it speaks against the second class


@needs_captum
def test_two_views_are_averaged_where_logits_are():
    model, images, targets = built("test_resnet"), torch.randn(1, 3, 160, 160), torch.tensor([1])
    layer = find_layer(model, 160)
    views = [maps._signed(model, layer, x, targets) for x in (images, images.flip(-1))]
    mean = ((views[0] + views[1].flip(-1)) / 2).clamp(min=0)
    torch.testing.assert_close(heat_maps(model, layer, images, targets, mirrored=True), mean / mean.max())


@needs_captum
def test_a_map_changes_nothing_about_the_model():
    model, images = built("test_vit"), torch.randn(1, 3, 160, 160)
    before = model(images).detach()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    heat_maps(model, find_layer(model, 160), images, torch.tensor([0]))
    assert not images.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    torch.testing.assert_close(model(images), before, rtol=0, atol=0)
