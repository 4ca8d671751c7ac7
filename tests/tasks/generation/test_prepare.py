from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from snella.diffusion.pipeline import build_network, frozen_parts
from snella.diffusion.sampling import SampleSettings
from snella.models.backbone import BackboneSpec
from snella.tasks.generation.prepare import _prior_key
from support import tiny_pipelines


def test_the_priors_key_follows_all_that_makes_its_images(tmp_path: Path) -> None:
    folder = str(tiny_pipelines.write_sd(tmp_path / "sd"))
    frozen, network = frozen_parts(folder), build_network(BackboneSpec(folder, True, None, None, 0))
    settings = SampleSettings(16, steps=4)

    def key() -> str:
        return _prior_key(frozen, settings, network, "a photo")

    found = [key()]
    assert _prior_key(frozen, replace(settings, batch_size=1), network, "a photo") == found[0]
    for part in (frozen.vae, frozen.encoders[0], network):
        with torch.no_grad():
            next(part.parameters()).add_(1)
        found.append(key())
    frozen.pipe.scheduler.register_to_config(beta_end=0.5)
    found.append(key())
    found.append(_prior_key(frozen, replace(settings, steps=5), network, "a photo"))
    found.append(_prior_key(frozen, settings, network, "a drawing"))
    assert len(set(found)) == len(found)
