"""A tuned network in its pipeline's folder, as diffusers itself reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from snella.diffusion.merged import save_merged_pipeline
from snella.diffusion.pipeline import build_network
from snella.errors import UserError
from support.tiny_pipelines import Folders, network_spec


def tuned(folder: Path, num_classes: int = 0) -> nn.Module:
    network = build_network(network_spec(folder, num_classes))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.5)
    return network


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("name", "part"), [("sd", "unet"), ("pixart", "transformer")])
def test_the_pipeline_is_whole_and_has_the_tuned_network(
    name: str, part: str, folders: Folders, tmp_path: Path
) -> None:
    network = tuned(folders(name))
    call = save_merged_pipeline(network, tmp_path / "merged", name=str(folders(name)), classes=())
    source: Any = diffusers.DiffusionPipeline.from_pretrained(folders(name))
    assert call == f'diffusers.{type(source).__name__}.from_pretrained("{tmp_path / "merged"}")'
    loaded: Any = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "merged")
    assert type(loaded) is type(source)
    assert same_weights(getattr(loaded, part), network)
    assert same_weights(loaded.vae, source.vae)
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_names_of_classes_stand_beside_a_network_that_knows_them(folders: Folders, tmp_path: Path) -> None:
    network = tuned(folders("unet-classes"), 2)
    call = save_merged_pipeline(network, tmp_path / "merged", name=str(folders("unet-classes")), classes=["cat", "é"])
    assert call == f'diffusers.UNet2DModel.from_pretrained("{tmp_path / "merged"}", subfolder="unet")'
    assert json.loads((tmp_path / "merged" / "classes.json").read_text(encoding="utf-8")) == ["cat", "é"]
    assert same_weights(diffusers.UNet2DModel.from_pretrained(tmp_path / "merged", subfolder="unet"), network)


def test_another_network_than_the_tuned_one_is_refused_and_nothing_left(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tuned(folders("unet"))
    other = build_network(network_spec(folders("unet")))
    monkeypatch.setattr(diffusers.UNet2DModel, "from_pretrained", lambda *_, **__: other)
    with pytest.raises(UserError, match="nothing was written: diffusers reads another"):
        save_merged_pipeline(network, tmp_path / "merged", name=str(folders("unet")), classes=())
    assert not any(tmp_path.iterdir())


def test_a_folder_that_is_there_is_kept(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(UserError, match="exists already"):
        save_merged_pipeline(nn.Identity(), tmp_path, name=str(folders("unet")), classes=())
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
