"""Backbones of every kind: their names, and that each is a function of its spec."""

import pytest
import timm
import torch

from snella.errors import UserError
from snella.models.backbone import check_backbone_name, fingerprint
from support.backbones import VIT, build, spec


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (spec("vit_tny_patch16_224"), "did you mean vit_tiny_patch16_224"),
        (spec("vit_tiny_patch16_224.nope"), "choose from vit_tiny_patch16_224.augreg_in21k"),
        (spec("vit_giant_patch14_224", pretrained=True), "no pre-trained weights"),
        (spec(checkpoint="nowhere.pth"), "nowhere.pth is not a file"),
        (spec("hf:/no/such/folder"), "neither a folder nor a name on the hub"),
        (spec("hf:owner/name", checkpoint="a.pth"), "use it with a timm name"),
        (spec("vit_small_focus", checkpoint="a.pth"), "use it with vit_small_patch14_dinov2"),
        (spec("efficientnet_lite0_imagenet", checkpoint="a.pth"), "use it with tf_efficientnet_lite0"),
        (spec("local-dir:/no/such/folder"), "no config.json"),
    ],
)
def test_a_wrong_name_is_refused_with_a_remedy(asked, message):
    with pytest.raises(UserError, match=message) as error:
        check_backbone_name(asked)
    assert "\n" not in str(error.value)


def test_right_names_pass_without_being_built(monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("built"))
    for name in (VIT, "vit_base_patch16_224.augreg_in21k", "vit_base_patch16_224_in21k", "hf-hub:timm/a", "hf:a/b"):
        check_backbone_name(spec(name, pretrained=True))


def test_the_result_is_a_function_of_the_spec():
    first = build(spec(seed=4)).state_dict()
    torch.rand(3)
    second, third = build(spec(seed=4)).state_dict(), build(spec(seed=5)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], third["blocks.0.attn.qkv.weight"])


def test_fingerprint_sees_the_base_but_not_the_head():
    model = build(spec("test_resnet"))
    before = fingerprint(model)
    model.get_classifier().weight.data += 1
    assert fingerprint(model) == before
    model.reset_classifier(9)
    assert fingerprint(model) == before
    model.state_dict()["bn1.running_mean"] += 1e-3
    assert fingerprint(model) != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_fingerprint_takes_any_dtype(dtype):
    model = build(spec())
    assert len({fingerprint(model), fingerprint(model.to(dtype)), fingerprint(model.to(torch.float16))}) == 3
