"""Networks and their conditions: what diffusers' own pipelines feed them, on tiny random pipelines."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from snella.diffusion.pipeline import build_network, frozen_parts
from support.tiny_pipelines import TEXT, WRITERS, Folders, network_spec

SIDE = 16  # pixels
PROMPT = "a photo of sks dog"


def fed(pipe: Any, **call: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
    """x, timesteps and output of the network at each step of the pipeline, without guidance; packed for Flux."""
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    found = []

    def keep(_: Any, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        named = {"timestep": arguments[1] if len(arguments) > 1 else None} | named
        x = arguments[0] if arguments else named["hidden_states"]
        found.append((x, torch.as_tensor(named["timestep"]), output[0] if isinstance(output, tuple) else output.sample))

    handle = network.register_forward_hook(keep, with_kwargs=True)
    pipe.set_progress_bar_config(disable=True)
    pipe(**call, num_inference_steps=2, generator=torch.Generator().manual_seed(3), output_type="np")
    handle.remove()
    return found


def call_of(name: str) -> dict[str, Any]:
    if name.startswith("unet"):
        return {}
    if name == "dit":
        return {"class_labels": [2], "guidance_scale": 1.0}
    sides = {"prompt": PROMPT, "height": SIDE, "width": SIDE, "guidance_scale": 1.0}
    return sides | ({"use_resolution_binning": False} if name == "pixart" else {})


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "unet-classes"])
@torch.no_grad()
def test_it_predicts_what_the_network_gives_in_its_pipeline(name: str, folders: Folders) -> None:
    folder = folders(name)
    steps = fed(diffusers.DiffusionPipeline.from_pretrained(folder), **call_of(name))
    network, frozen = build_network(network_spec(folder)).eval(), frozen_parts(str(folder))
    condition: dict[str, Tensor] = {}
    if name in TEXT:
        condition = frozen.encode([PROMPT], torch.device("cpu"))
    if name == "sdxl":
        condition["time_ids"] = torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]]).float()
    if name == "dit":
        condition["class_labels"] = torch.tensor([2])
    assert len(steps) == 2
    for x, t, expected in steps:
        if name.startswith("flux"):
            x, expected = (diffusers.FluxPipeline._unpack_latents(packed, 8, 8, 1) for packed in (x, expected))
            t = t * 1000
        found = frozen.predict(network, x, t.expand(len(x)), condition)
        assert found.shape == x.shape
        torch.testing.assert_close(found, expected[:, : x.shape[1]], atol=1e-5, rtol=1e-5)
        if condition:  # it does look at it
            other = {key: value.flip(-1) if value.is_floating_point() else value for key, value in condition.items()}
            if name == "dit":
                other = {"class_labels": torch.tensor([1])}
            assert not torch.allclose(frozen.predict(network, x, t.expand(len(x)), other), found, atol=1e-4)


@pytest.mark.parametrize("name", TEXT)
@torch.no_grad()
def test_a_prompt_is_encoded_alike_alone_and_among_others(name: str, folders: Folders) -> None:
    frozen = frozen_parts(str(folders(name)))
    alone, among = (frozen.encode(prompts, torch.device("cpu")) for prompts in ([PROMPT], ["", PROMPT, "cat"]))
    assert alone.keys() == among.keys()
    for key, value in alone.items():
        assert not value.requires_grad
        torch.testing.assert_close(value[0], among[key][1], atol=1e-5, rtol=1e-5)
        assert key == "prompt_attention_mask" or not torch.allclose(value[0], among[key][2])


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart"])
@torch.no_grad()
def test_a_pipeline_that_was_saved_in_half_precision(name: str, copied: Folders) -> None:
    """transformers loads weights in the type that they were saved in, diffusers in fp32."""
    folder = copied(name)
    diffusers.DiffusionPipeline.from_pretrained(folder).to(torch.float16).save_pretrained(folder)
    network, frozen = build_network(network_spec(folder)).eval(), frozen_parts(str(folder))
    condition = frozen.encode([PROMPT], torch.device("cpu"))
    assert all(value.dtype == torch.float32 for value in condition.values() if value.is_floating_point())
    assert not any(value.requires_grad for value in condition.values())
    condition["time_ids"] = torch.zeros(1, 6)
    x = frozen.latents(frozen.moments(torch.zeros(1, 3, SIDE, SIDE)), sample=False)
    found = frozen.predict(network, x, torch.tensor([500]), condition)
    assert found.dtype == torch.float32
    assert found.isfinite().all()


def test_a_class_conditional_unet_looks_at_the_class(folders: Folders) -> None:
    network, frozen = (
        build_network(network_spec(folders("unet-classes"), 3)).eval(),
        frozen_parts(str(folders("unet-classes"))),
    )
    x, t, labels = torch.randn(3, 3, 16, 16), torch.tensor([1, 500, 900]), torch.tensor([0, 2, 1])
    network_: Any = network
    with torch.no_grad():
        found = frozen.predict(network, x, t, {"class_labels": labels})
        assert torch.equal(found, network_(x, t, class_labels=labels).sample)
        assert not torch.allclose(found, frozen.predict(network, x, t, {"class_labels": labels.flip(0)}))
