"""Adapters as LoRA's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import peft
import pytest
import torch
from torch import Tensor, nn

from snella import SnellaConfig, save_as_lora
from snella.errors import UserError
from snella.integrations.lora import as_lora
from support.tiny_pipelines import write_sd
from support.tuned import layer_named, layers, tuned
from support.vits import tiny_vit


def test_a_lora_of_full_rank_is_the_adapter(images: Tensor, tmp_path: Path) -> None:
    model = tuned(tiny_vit(), start_scale=1.0, fused_splits={}).eval()
    errors = save_as_lora(model, tmp_path, 24)
    assert errors.keys() == {layer.name for layer in layers(model)}
    assert max(errors.values()) < 1e-5
    loaded = peft.PeftModel.from_pretrained(tiny_vit(), str(tmp_path)).eval()
    assert loaded.peft_config["default"].peft_type == "LORA"
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), model(images), rtol=1e-3, atol=1e-4)


def test_the_error_of_a_low_rank_is_that_of_the_update(tmp_path: Path) -> None:
    model = tuned(nn.Sequential(nn.Linear(12, 20)), target_modules=["0"]).eval()
    (error,) = save_as_lora(model, tmp_path, 3).values()
    loaded: Any = peft.PeftModel.from_pretrained(nn.Sequential(nn.Linear(12, 20)), str(tmp_path))
    delta = layers(model)[0].get_delta_weight("default")
    near = loaded.base_model.model[0].get_delta_weight("default")
    assert error == pytest.approx(((delta - near).norm() / delta.norm()).item(), rel=1e-3)
    assert 0.01 < error < 1
    (share,) = save_as_lora(model, tmp_path, 0.99).values()
    assert share <= 0.1  # the root of what is left, 1 - 0.99


def test_what_has_no_lora_is_told(tmp_path: Path) -> None:
    odd: list[dict[str, Any]] = [{"dilation": 2}, {"padding": 1, "padding_mode": "circular"}, {"groups": 3}]
    for options in odd:
        with pytest.raises(
            UserError, match=r"0 has (dilation=\(2, 2\)|padding_mode='circular'|groups=3), with which PEFT"
        ):
            save_as_lora(tuned(nn.Sequential(nn.Conv2d(3, 6, 3, **options)), target_modules=["0"]), tmp_path, 2)
    for rank in (0, -1, 0.0, 1.5, float("nan")):
        with pytest.raises(UserError, match=rf"rank={rank} is neither a whole number from 1 nor a share"):
            save_as_lora(tuned(nn.Sequential(nn.Linear(12, 20)), target_modules=["0"]), tmp_path, rank)
    with pytest.raises(UserError, match=r"rank=99 is not between 1 and 12, which is all of 0"):
        save_as_lora(tuned(nn.Sequential(nn.Linear(12, 20)), target_modules=["0"]), tmp_path, 99)
    assert not list(tmp_path.iterdir())


def test_diffusers_saves_no_lora_that_is_none(tmp_path: Path) -> None:
    unet: Any = diffusers.UNet2DConditionModel.from_pretrained(write_sd(tmp_path / "pipe") / "unet")
    model = tuned(unet)
    with pytest.raises(UserError, match=r"save_pretrained\(folder\).*snella\.load_into_pipeline"):
        unet.save_lora_adapter(tmp_path)
    plain = model.merge_and_unload()  # type: ignore[operator]
    assert "save_lora_adapter" not in vars(plain)


def test_convolutions_and_heads_are_in_a_lora(tmp_path: Path) -> None:
    """Of ranks that differ, in layers of which one's name is the end of another's, beside one that is not adapted."""

    def base() -> nn.Module:
        torch.manual_seed(0)
        return nn.ModuleDict({"a": nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding="valid"), nn.Conv2d(8, 4, 1)),
                              "0": nn.Conv2d(4, 6, (1, 3), padding=1), "head": nn.Linear(6, 2)})  # fmt: skip

    model = tuned(base(), target_modules=r"a\.0|0", modules_to_save=["head"], gate="none", start_scale=1.0)
    inner: Any = model.base_model.model
    head = inner["head"]
    nn.init.normal_(head.modules_to_save["default"].weight)
    save_as_lora(model, tmp_path, 0.95)
    loaded: Any = peft.PeftModel.from_pretrained(base(), str(tmp_path)).base_model.model
    assert loaded["0"].r != loaded["a"][0].r
    assert type(loaded["a"][1]) is nn.Conv2d
    near = as_lora(model, 0.95).layers
    for name, layer in (("0", loaded["0"]), ("a.0", loaded["a"][0])):
        expected = (near[name].B.flatten(1) @ near[name].A.flatten(1)).view_as(layer.base_layer.weight)
        torch.testing.assert_close(layer.get_delta_weight("default"), expected)
        delta = layer_named(model, name).get_delta_weight("default")
        assert 1 - ((expected.flatten(1) - delta).square().sum() / delta.square().sum()).item() == pytest.approx(
            near[name].share, abs=1e-4
        )
        assert 0.95 <= near[name].share < 1
    assert torch.equal(loaded["head"].modules_to_save["default"].weight, head.modules_to_save["default"].weight)


def test_biases_and_several_adapters(tmp_path: Path) -> None:
    def base() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 4))

    model = peft.get_peft_model(base(), SnellaConfig(r=4, target_modules=["0"], bias="snella_only"))  # type: ignore[arg-type]
    model.add_adapter("other", SnellaConfig(r=4, target_modules=["0"], start_scale=1.0))  # type: ignore[arg-type]
    bias = layers(model)[0].get_base_layer().bias
    assert bias is not None
    nn.init.normal_(bias)
    save_as_lora(model, tmp_path / "first", 2)
    loaded: Any = peft.PeftModel.from_pretrained(base(), str(tmp_path / "first"))
    assert torch.equal(loaded.base_model.model[0].base_layer.bias, bias)
    save_as_lora(model, tmp_path / "other", 4, "other")
    loaded = peft.PeftModel.from_pretrained(base(), str(tmp_path / "other"))
    expected = layers(model)[0].get_delta_weight("other")
    torch.testing.assert_close(loaded.base_model.model[0].get_delta_weight("default"), expected)
    with pytest.raises(UserError, match="no SNELLA adapter 'third'"):
        save_as_lora(model, tmp_path / "third", 2, "third")
