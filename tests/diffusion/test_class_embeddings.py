"""Networks for other classes than those of their pre-training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from snella.diffusion.pipeline import build_network
from support.tiny_pipelines import Folders, network_spec


def test_other_classes_start_at_the_mean_in_a_unet(folders: Folders, tmp_path: Path) -> None:
    old: Any = diffusers.UNet2DModel.from_pretrained(folders("unet-classes"), subfolder="unet")
    network: Any = build_network(network_spec(folders("unet-classes"), 5))
    rows = network.class_embedding.weight
    torch.testing.assert_close(rows, old.class_embedding.weight.mean(0).expand(5, -1))
    assert rows.requires_grad
    kept = {key: value for key, value in network.state_dict().items() if key != "class_embedding.weight"}
    assert kept.keys() | {"class_embedding.weight"} == old.state_dict().keys()
    assert all(torch.equal(value, old.state_dict()[key]) for key, value in kept.items())
    assert network.config.num_class_embeds == 5
    network.save_pretrained(tmp_path)
    again: Any = diffusers.UNet2DModel.from_pretrained(tmp_path)
    assert torch.equal(again.class_embedding.weight, rows)


def test_other_classes_start_at_the_mean_in_a_dit_and_no_class_stays(folders: Folders, tmp_path: Path) -> None:
    old: Any = diffusers.DiTTransformer2DModel.from_pretrained(folders("dit"), subfolder="transformer")
    network: Any = build_network(network_spec(folders("dit"), 7))
    for block, before in zip(network.transformer_blocks, old.transformer_blocks, strict=True):
        table, known = block.norm1.emb.class_embedder, before.norm1.emb.class_embedder.embedding_table.weight
        torch.testing.assert_close(table.embedding_table.weight[:7], known[:4].mean(0).expand(7, -1))
        assert torch.equal(table.embedding_table.weight[7:], known[4:])
        assert (table.num_classes, len(known)) == (7, 5)
    assert network.config.num_embeds_ada_norm == 7
    network.save_pretrained(tmp_path)
    again: Any = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():  # the last is no class
        found, expected = (net.eval()(x, t, class_labels=torch.tensor([6, 7])).sample for net in (network, again))
        before = old.eval()(x, t, class_labels=torch.tensor([4, 4])).sample
    assert torch.equal(found, expected)
    torch.testing.assert_close(found[1], before[1])


@pytest.mark.parametrize(("name", "count"), [("unet-classes", 3), ("dit", 4), ("sd", 6), ("unet", 2)])
def test_as_many_classes_and_networks_that_know_none_are_kept(name: str, count: int, folders: Folders) -> None:
    network: Any = build_network(network_spec(folders(name), count))
    own: Any = build_network(network_spec(folders(name)))
    assert network.state_dict().keys() == own.state_dict().keys()
    assert all(torch.equal(value, own.state_dict()[key]) for key, value in network.state_dict().items())
    assert network.config == own.config
