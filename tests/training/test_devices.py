"""How a batch comes to the device."""

from __future__ import annotations

import torch

from snella.training.evaluation import on_device


def test_images_on_the_cpu_are_channels_last_and_all_values_stay() -> None:
    batch = {"image": torch.randn(2, 3, 5, 7), "mask": torch.zeros(2, 5, 7, dtype=torch.int64), "caption": ["a", "b"]}
    moved = on_device(batch, torch.device("cpu"))
    assert moved["image"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved["image"], batch["image"])
    assert moved["mask"] is batch["mask"]
    assert moved["caption"] == batch["caption"]


def test_on_other_devices_the_layout_stays() -> None:
    moved = on_device({"image": torch.randn(2, 3, 5, 7)}, torch.device("meta"))
    assert moved["image"].device.type == "meta"
    assert moved["image"].is_contiguous()
