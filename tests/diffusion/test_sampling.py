"""Sampling: each image a function of its own prompt and seed, as diffusers' own pipelines make it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from snella.diffusion.pipeline import Frozen, build_network, frozen_parts
from snella.diffusion.sampling import SampleSettings, sample
from snella.errors import UserError
from support import tiny_pipelines as tiny

SIDE = 16
SETTINGS = SampleSettings(SIDE, steps=3)
NAMES = ("sd", "sdxl", "sd3", "flux", "flux-dev", "pixart", "dit", "unet", "unet-classes")
WRITERS = {name: tiny.WRITERS[name] for name in NAMES} | {"dit": tiny.write_dit}  # the pipeline's 1000 classes
TEXT = tuple(name for name in NAMES if name in tiny.TEXT)
Made = Callable[[str], tuple[Path, Frozen, nn.Module]]


def sampled(*asked: Any) -> list[Image.Image]:
    return list(sample(*asked))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The folder, frozen parts and network of a pipeline, made once."""
    root, done = tmp_path_factory.mktemp("pipelines"), {}

    def make(name: str) -> tuple[Path, Frozen, nn.Module]:
        if name not in done:
            folder = WRITERS[name](root / name)
            done[name] = (
                folder,
                frozen_parts(str(folder)),
                build_network(tiny.network_spec(folder)),
            )
        return done[name]

    return make


def asked_of(name: str) -> list[Any]:
    if name in TEXT:
        return ["a photo of cat", "red dog", "a photo of cat"]
    return [None] * 3 if name == "unet" else [1, 2, 1]


def difference(first: Sequence[Image.Image], second: Sequence[Image.Image]) -> int:
    """The largest difference of a pixel's value, of 255."""
    pairs = zip(first, second, strict=True)
    return max(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max() for a, b in pairs)


def with_batch(count: int, **changes: Any) -> SampleSettings:
    return SampleSettings(**{**vars(SETTINGS), "batch_size": count, **changes})


@pytest.mark.parametrize("name", WRITERS)
def test_an_image_depends_on_its_own_prompt_and_seed_alone(name: str, made: Made) -> None:
    _, frozen, network = made(name)
    asked = asked_of(name)
    images = sampled(frozen, network, asked, [5, 6, 7], with_batch(3))
    assert [(image.size, image.mode) for image in images] == [((SIDE, SIDE), "RGB")] * 3
    torch.manual_seed(99)
    in_twos = sampled(frozen, network, asked, [5, 6, 7], with_batch(2))
    alone = sampled(frozen, network, asked[2:], [7], with_batch(4))
    assert difference(images, in_twos) <= 1  # rounding
    assert difference(images[2:], alone) <= 1
    assert difference(images[:1], images[2:]) > 8  # another seed
    if name != "unet":
        assert difference(images[:1], sampled(frozen, network, asked[1:2], [5], with_batch(1))) > 0  # another prompt


@pytest.mark.parametrize("name", TEXT)
def test_images_of_prompts_are_the_whole_pipelines(name: str, made: Made) -> None:
    folder, frozen, network = made(name)
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {"use_resolution_binning": False} if name == "pixart" else {}
    if not name.startswith(("flux", "sdxl")):  # SDXL's own default is zeros, as it was trained
        call["negative_prompt"] = ""
    [expected] = pipe(
        "a photo of cat",
        generator=torch.Generator().manual_seed(4),
        num_inference_steps=3,
        guidance_scale=3.0,
        height=SIDE,
        width=SIDE,
        **call,
    ).images
    found = sampled(frozen, network, ["a photo of cat"], [4], with_batch(1, guidance=3.0))
    assert difference(found, [expected]) <= 1


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("guidance", [1.0, None])
def test_guidance_of_one_is_none_and_the_usual_is_the_familys(name: str, guidance: float | None, made: Made) -> None:
    _, frozen, network = made(name)
    usual = frozen.family.guidance if guidance is None else guidance
    first, second = (sampled(frozen, network, ["cat"], [1], with_batch(1, guidance=g)) for g in (guidance, usual))
    assert difference(first, second) == 0
    if name != "flux":  # which was trained to need none
        assert difference(first, sampled(frozen, network, ["cat"], [1], with_batch(1, guidance=20.0))) > 0


def by_ddim(network: Any, scheduler: Any, ask: Callable[[Tensor, Tensor], Tensor], seed: int, steps: int) -> Tensor:
    """The last x of a plain loop."""
    scheduler.set_timesteps(steps)
    size = network.config.sample_size
    x = torch.randn(network.config.in_channels, size, size, generator=torch.Generator().manual_seed(seed))[None]
    for t in scheduler.timesteps:
        x = scheduler.step(ask(x, t), t, x, eta=0.0).prev_sample
    return x


def picture(x: Tensor) -> Image.Image:
    pixels = ((x[0].clamp(-1, 1) / 2 + 0.5) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(("name", "label"), [("unet-classes", 2), ("unet", None)])
@torch.no_grad()
def test_unets_are_sampled_by_ddim(name: str, label: int | None, made: Made) -> None:
    folder, frozen, network = made(name)
    own: Any = network.eval()
    labels = None if label is None else torch.tensor([label])
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    expected = by_ddim(own, scheduler, lambda x, t: own(x, t, class_labels=labels).sample, 8, 5)
    found = sampled(frozen, network, [label], [8], with_batch(1, steps=5))
    assert difference(found, [picture(expected)]) <= 1


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@torch.no_grad()
def test_dit_is_guided_away_from_no_class(guidance: float, made: Made) -> None:
    folder, frozen, network = made("dit")
    own: Any = network.eval()
    vae: Any = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae")

    def ask(x: Tensor, t: Tensor) -> Tensor:
        label, null = (own(x, t.view(1), class_labels=torch.tensor([i])).sample[:, :4] for i in (3, 1000))
        return guidance * label + (1 - guidance) * null

    scheduler = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    expected = vae.decode(by_ddim(own, scheduler, ask, 8, 4) / vae.config.scaling_factor).sample
    found = sampled(frozen, network, [3], [8], with_batch(1, steps=4, guidance=guidance))
    assert difference(found, [picture(expected)]) <= 1


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_dit_makes_the_images_of_its_pipeline(guidance: float, made: Made) -> None:
    folder, frozen, network = made("dit")
    pipe: Any = diffusers.DiTPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(2)
    [expected] = pipe(class_labels=[3], guidance_scale=guidance, num_inference_steps=4, generator=generator).images
    found = sampled(frozen, network, [3], [2], with_batch(1, steps=4, guidance=guidance))
    assert difference(found, [expected]) <= 1


@pytest.mark.parametrize("name", ["sdxl", "dit"])
def test_decoders_see_no_half_precision(name: str, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """SDXL's overflows in it."""
    _, frozen, network = made(name)
    seen: list[tuple[torch.dtype, bool]] = []
    decode = type(frozen.vae).decode

    def note(self: Any, latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append((latents.dtype, torch.is_autocast_enabled("cpu")))
        return decode(self, latents, *args, **kwargs)

    monkeypatch.setattr(type(frozen.vae), "decode", note)
    half = copy.deepcopy(network).to(torch.bfloat16)
    assert len(sampled(frozen, half, asked_of(name), [1, 2, 3], SETTINGS)) == 3
    assert set(seen) == {(torch.float32, False)}
    assert "decode" not in vars(frozen.vae)


@pytest.mark.parametrize("name", ["sd", "sdxl", "dit", "unet"])
def test_frozen_parts_go_to_the_networks_device_and_back(
    name: str, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, frozen, network = made(name)
    asked = asked_of(name)
    parts: list[nn.Module] = [*frozen.encoders, *([frozen.vae] if frozen.vae is not None else [])]
    moves: dict[int, list[str]] = {}

    def note(part: nn.Module, device: Any) -> nn.Module:
        moves.setdefault(id(part), []).append(str(device))
        return part

    for kind in {type(part) for part in parts}:
        monkeypatch.setattr(kind, "to", note)
    sampled(frozen, network, asked, [1, 2, 3], SETTINGS)
    assert all(moves[id(part)][0] == moves[id(part)][-1] == "cpu" for part in parts)
    assert all(len(moves[id(part)]) > 1 for part in parts)
    assert frozen.pipe.components[frozen.family.network] is None


@pytest.mark.parametrize("name", ["sd", "pixart", "dit", "unet-classes"])
@pytest.mark.parametrize("training", [True, False])
def test_the_networks_mode_is_put_back_and_does_not_matter(name: str, training: bool, made: Made) -> None:
    _, frozen, network = made(name)
    expected = sampled(frozen, network.eval(), asked_of(name), [1, 2, 3], SETTINGS)
    found = sampled(frozen, network.train(training), asked_of(name), [1, 2, 3], SETTINGS)
    assert network.training == training
    assert all(part.training == training for part in network.modules())
    assert difference(found, expected) == 0
    assert not any(parameter.grad is not None for parameter in network.parameters())


def test_one_channel_becomes_a_grey_picture(made: Made) -> None:
    _, frozen, _ = made("unet")
    network: Any = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    [found] = sampled(frozen, network, [None], [0], with_batch(1, size=8))
    red, green, blue = np.asarray(found).transpose(2, 0, 1)
    assert found.size == (8, 8)
    assert (red == green).all()
    assert (red == blue).all()


@pytest.mark.parametrize("name", ["sd", "unet"])
def test_nothing_asked_is_nothing_made(name: str, made: Made) -> None:
    _, frozen, network = made(name)
    assert sampled(frozen, network, [], [], SETTINGS) == []


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("unet", {"guidance": 2.0}, "--guidance 2: DDPMPipeline knows no empty text or class"),
        ("unet-classes", {"guidance": 7.5}, "--guidance 7.5: DDPMPipeline knows"),
        ("sd", {"steps": 1001}, "1001 denoising steps are more than the 1000"),
    ],
)
def test_what_a_pipeline_cannot_do_is_refused(name: str, changes: dict[str, Any], message: str, made: Made) -> None:
    _, frozen, network = made(name)
    with pytest.raises(UserError, match=message):
        sampled(frozen, network, asked_of(name), [1, 2, 3], with_batch(1, **changes))
