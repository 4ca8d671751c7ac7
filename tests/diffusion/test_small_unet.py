"""The small UNet as a pipeline among the others."""

from __future__ import annotations

from typing import Any

import pytest

from snella.diffusion.pipeline import build_network, condition_of, frozen_parts, image_unit
from snella.errors import UserError
from support.tiny_pipelines import network_spec


def test_the_small_unet() -> None:
    network: Any = build_network(network_spec("small_unet", 4, pretrained=False))
    frozen = frozen_parts("small_unet")
    assert condition_of(network) == "class"
    assert network.config.num_class_embeds == 4
    assert (frozen.vae, frozen.encoders, frozen.factor) == (None, [], 1)
    assert image_unit("small_unet", network) == (1, 4)
    with pytest.raises(UserError, match="--no-pretrained") as caught:
        build_network(network_spec("small_unet", 4))
    assert "\n" not in str(caught.value)
