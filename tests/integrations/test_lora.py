"""Adapters as LoRA's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import peft
import pytest
import torch
from torch import Tensor, nn

from snella import save_as_lora
from snella.errors import UserError
from support.tiny_pipelines import write_sd
from support.tuned import layers, tuned
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
    with pytest.raises(UserError, match="0 is a Conv2d; PEFT converts linear layers"):
        save_as_lora(tuned(nn.Sequential(nn.Conv2d(3, 4, 3)), target_modules=["0"]), tmp_path, 2)
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
