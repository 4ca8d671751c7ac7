"""The denoising loss and its evaluation against computations by hand, on tiny networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from snella.data.readers.captioned import CaptionedImages
from snella.diffusion.pipeline import Frozen, build_network, frozen_parts
from snella.diffusion.sampling import SampleSettings
from snella.errors import UserError
from snella.models.backbone import BackboneSpec
from snella.tasks.generation.learner import Generate
from snella.tasks.generation.noise_levels import LEVELS
from support import tiny_pipelines as tiny

SIDE = 16
CLASSES = ("cat", "dog", "red")
Part = tuple[Frozen, Any]  # with the network


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines")


def loaded(folder: Path) -> Part:
    return frozen_parts(str(folder)), build_network(BackboneSpec(str(folder), True, None, None, 0)).eval()


@pytest.fixture(scope="module")
def unet(root: Path) -> Part:
    return loaded(tiny.write_unet(root / "unet", classes=3))


@pytest.fixture(scope="module")
def sd(root: Path) -> Part:
    return loaded(tiny.write_sd(root / "sd"))


@pytest.fixture(scope="module")
def sdxl(root: Path) -> Part:
    return loaded(tiny.write_sdxl(root / "sdxl"))


def task(part: Part, **options: Any) -> Generate:
    classes = CLASSES if part[0].family.encode is None else ()
    return Generate(part[0], classes, sampling=SampleSettings(SIDE, steps=2), **options)


def labelled(count: int, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, SIDE, SIDE, generator=generator) * 2 - 1
    return {"image": images, "label": torch.arange(count) * 2 % 3}


def captioned(captions: list[str], seed: int = 0) -> dict[str, Any]:
    images = labelled(len(captions), seed)["image"]
    sides = {"original_size": torch.tensor([[20, 30]] * len(captions)), "crop_top_left": torch.tensor([[0, 4]])}
    sides["crop_top_left"] = sides["crop_top_left"].expand(len(captions), 2)
    return {"image": images, "caption": captions, **sides}


def loss_of(generate: Generate, network: nn.Module, batch: dict[str, Any], seed: int = 7) -> Tensor:
    torch.manual_seed(seed)
    return generate.loss(network, batch)


def part_of(batch: dict[str, Any], chosen: slice) -> dict[str, Any]:
    return {name: value[chosen] for name, value in batch.items()}


# ---- the loss


def by_hand(network: Any, batch: dict[str, Any], seed: int = 7) -> tuple[Tensor, Tensor]:
    """Squared error of the noise of each image and channel mean, and signal-to-noise ratios (b,)."""
    torch.manual_seed(seed)
    x = batch["image"]
    noise = torch.randn_like(x)
    t = (torch.rand(len(x)) * 1000).long()
    bar = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)[t]
    root = bar.view(-1, 1, 1, 1)
    found = network(root.sqrt() * x + (1 - root).sqrt() * noise, t, class_labels=batch["label"]).sample
    return (found - noise).square().mean((1, 2, 3)), bar / (1 - bar)


def test_the_loss_by_hand(unet: Part) -> None:
    batch = labelled(5)
    errors, snr = by_hand(unet[1], batch)
    torch.testing.assert_close(loss_of(task(unet), unet[1], batch), errors.mean())
    weighted = (errors * (5.0 / snr).clamp(max=1)).mean()
    torch.testing.assert_close(loss_of(task(unet, snr_gamma=5.0), unet[1], batch), weighted)
    assert not torch.isclose(weighted, errors.mean())


def test_the_loss_of_latents_by_hand(sd: Part) -> None:
    """Latents are drawn, the condition is the caption's, and the network's output is compared with the noise."""
    frozen, network = sd
    batch = captioned(["a cat", "red dog"])
    found = loss_of(task(sd), network, batch)
    torch.manual_seed(7)
    posterior = frozen.vae.encode(batch["image"]).latent_dist
    x = posterior.sample() * 0.18215
    noise = torch.randn_like(x)
    noisy = task(sd).objective.noisy(x, noise, torch.rand(2))
    embeds = frozen.encode(["a cat", "red dog"], torch.device("cpu"))["prompt_embeds"]
    output = network(noisy.x, noisy.timesteps, encoder_hidden_states=embeds).sample
    torch.testing.assert_close(found, (output - noise).square().mean())
    found.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    network.zero_grad()


def test_sizes_and_crops_are_what_sdxl_is_told(sdxl: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen, network = sdxl
    seen: list[Tensor] = []
    monkeypatch.setattr(
        type(frozen), "predict", lambda _, net, x, t, c: seen.append(c["time_ids"]) or torch.zeros_like(x)
    )
    task(sdxl).loss(network, captioned(["a cat", "red dog"]))
    assert torch.equal(seen[0], torch.tensor([[20.0, 30, 0, 4, SIDE, SIDE]] * 2))


def test_offset_noise_is_what_is_predicted(unet: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    generate, batch, seen = task(unet, noise_offset=3.0), labelled(4), []
    noisy = generate.objective.noisy
    monkeypatch.setattr(generate.objective, "noisy", lambda x, n, levels: seen.append(n) or noisy(x, n, levels))
    loss_of(generate, unet[1], batch)
    assert seen[0].mean((2, 3)).std().item() > 1
    torch.manual_seed(7)
    plain = torch.randn_like(batch["image"])
    assert (seen[0] - plain).std((2, 3)).max() < 1e-5


def test_half_precision_of_the_network_is_judged_in_fp32(unet: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(unet[0]), "predict", lambda _, net, x, t, c: torch.zeros_like(x).bfloat16())
    loss = loss_of(task(unet), unet[1], labelled(4))
    torch.manual_seed(7)
    torch.testing.assert_close(loss, torch.randn(4, 3, SIDE, SIDE).square().mean())
    assert loss.dtype == torch.float32


# ---- the prior


def gradients(generate: Generate, network: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
    loss_of(generate, network, batch).backward()
    found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return found


def test_the_prior_by_hand(unet: Part) -> None:
    """The mean error of the images plus the weight times that of the prior's, which may be others in number."""
    batch, prior = labelled(4), labelled(2, seed=1)
    errors, _ = by_hand(unet[1], {name: torch.cat([batch[name], prior[name]]) for name in batch})
    for weight in (0.0, 0.3, 1.0, 2.0):
        found = loss_of(task(unet, prior_weight=weight), unet[1], batch | {"prior": prior})
        torch.testing.assert_close(found, errors[:4].mean() + weight * errors[4:].mean())
        first = loss_of(task(unet, prior_weight=weight), unet[1], {"prior": prior} | batch)
        assert torch.equal(first, found)  # in whatever order a batch's parts come


def test_a_prior_without_weight_teaches_nothing(unet: Part) -> None:
    batch = labelled(3)
    first, second = (
        gradients(task(unet, prior_weight=0.0), unet[1], batch | {"prior": labelled(3, seed)}) for seed in (1, 2)
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    other = gradients(task(unet, prior_weight=1.0), unet[1], batch | {"prior": labelled(3, 1)})
    assert any(not torch.allclose(value, other[name]) for name, value in first.items())


def test_the_prior_of_a_text_model_has_its_own_captions(sd: Part) -> None:
    batch, prior = captioned(["a cat", "red dog"]), captioned(["dog"], seed=1)
    generate = task(sd, prior_weight=0.5)
    found = loss_of(generate, sd[1], batch | {"prior": prior})
    other = loss_of(generate, sd[1], batch | {"prior": prior | {"caption": ["blue"]}})
    assert found.isfinite()
    assert not torch.isclose(found, other, rtol=1e-6)


# ---- captions


def test_captions_that_are_all_dropped_are_empty(sd: Part, sdxl: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    for frozen, network in (sd, sdxl):
        batch, seen = captioned(["a cat", "red dog", "sks"]), []

        def keep(_: Any, net: Any, x: Tensor, t: Any, condition: Any, seen: list[Any] = seen) -> Tensor:
            seen.append(dict(condition))
            return torch.zeros_like(x)

        monkeypatch.setattr(type(frozen), "predict", keep)
        part = (frozen, network)
        task(part, caption_dropout=1.0).loss(network, batch)
        task(part).loss(network, batch | {"caption": [""] * 3})
        task(part).loss(network, batch)
        dropped, empty, own = seen
        for name, value in empty.items():
            torch.testing.assert_close(dropped[name], value)
            assert name == "time_ids" or not torch.allclose(own[name], value)


def test_some_captions_are_dropped_each_as_a_whole(sd: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen, network = sd
    seen: list[Tensor] = []
    monkeypatch.setattr(
        type(frozen), "predict", lambda _, net, x, t, c: seen.append(c["prompt_embeds"]) or torch.zeros_like(x)
    )
    generate = task(sd, caption_dropout=0.25)
    embeds = {
        name: value.expand(400, -1, -1) for name, value in frozen.encode(["red dog"], torch.device("cpu")).items()
    }
    batch = {"moments": torch.zeros(400, 8, 8, 8), **embeds}
    batch |= {"original_size": torch.zeros(400, 2), "crop_top_left": torch.zeros(400, 2)}
    loss_of(generate, network, batch)
    empty = frozen.encode([""], torch.device("cpu"))["prompt_embeds"]
    is_empty = torch.isclose(seen[0], empty).all(2).all(1)
    is_own = torch.isclose(seen[0], embeds["prompt_embeds"]).all(2).all(1)
    assert (is_empty ^ is_own).all()
    assert is_empty.float().mean().item() == pytest.approx(0.25, abs=0.08)


def test_cached_moments_and_embeddings_give_the_loss_of_the_images(sdxl: Part) -> None:
    frozen, network = sdxl
    batch = captioned(["a cat", "red dog"])
    embeds = frozen.encode(batch["caption"], torch.device("cpu"))
    cached = {"moments": frozen.moments(batch["image"]), **embeds}
    cached |= {name: batch[name] for name in ("original_size", "crop_top_left")}
    for generate in (task(sdxl), task(sdxl, caption_dropout=1.0)):
        torch.testing.assert_close(loss_of(generate, network, cached), loss_of(generate, network, batch))
        first, second = (generate.evaluate(network, [one]).metrics["denoising_loss"] for one in (cached, batch))
        assert first == pytest.approx(second, rel=1e-5)


# ---- the evaluation


def batched(whole: dict[str, Any], size: int) -> list[dict[str, Any]]:
    count = len(next(iter(whole.values())))
    return [part_of(whole, slice(start, start + size)) for start in range(0, count, size)]


@pytest.fixture(params=["unet", "sd"])
def case(request: pytest.FixtureRequest) -> tuple[Part, dict[str, Any]]:
    part = request.getfixturevalue(request.param)
    return part, labelled(7) if request.param == "unet" else captioned(["a cat", "dog", "", "sks", "red", "of", "blue"])


def test_an_evaluation_is_the_same_for_any_batch_size_and_seed(case: tuple[Part, dict[str, Any]]) -> None:
    part, whole = case
    generate = task(part, caption_dropout=1.0, snr_gamma=1.0, noise_offset=1.0)  # for training alone
    torch.manual_seed(1)
    found = generate.evaluate(part[1], batched(whole, 7))
    plain = task(part)
    for size in (1, 3, 7):
        torch.manual_seed(size)
        other = plain.evaluate(part[1], batched(whole, size))
        assert other.metrics["denoising_loss"] == pytest.approx(found.metrics["denoising_loss"], rel=1e-6)
        for row, own in zip(other.table, found.table, strict=True):
            assert (row.name, row.images) == (own.name, own.images)
            assert row.losses == pytest.approx(own.losses, rel=1e-5)
    before = torch.get_rng_state()
    plain.evaluate(part[1], batched(whole, 7))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_evaluation_leaves_the_model_in_evaluation_mode(unet: Part) -> None:
    network = unet[1].train()
    task(unet).evaluate(network, [labelled(2)])
    assert not network.training


def test_the_table_of_classes_averages_to_the_whole(unet: Part) -> None:
    whole = labelled(7)
    evaluation = task(unet).evaluate(unet[1], batched(whole, 4))
    every, *classes = evaluation.table
    assert [row.name for row in classes] == list(CLASSES)
    assert [row.images for row in classes] == torch.bincount(whole["label"]).tolist()
    assert (every.name, every.images, len(every.losses)) == ("all", 7, LEVELS)
    for level, loss in enumerate(every.losses):
        assert sum(row.images * row.losses[level] for row in classes) / 7 == pytest.approx(loss)
    assert sum(every.losses) / LEVELS == pytest.approx(evaluation.metrics["denoising_loss"])
    some = task(unet).evaluate(unet[1], [part_of(whole, slice(0, 1))])
    assert [row.name for row in some.table] == ["all", "cat"]
    assert task(unet).details(some)["noise_levels"][1]["images"] == 1


def test_each_image_meets_each_part_of_the_noise_range(unet: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    generate = task(unet)
    noisy = generate.objective.noisy
    monkeypatch.setattr(
        generate.objective, "noisy", lambda x, n, levels: seen.append((n, levels)) or noisy(x, n, levels)
    )
    generate.evaluate(unet[1], batched(labelled(6), 4))
    levels = torch.cat([torch.stack([levels for _, levels in seen[i : i + LEVELS]]) for i in (0, LEVELS)], dim=1)
    assert torch.equal((levels * LEVELS).long(), torch.arange(LEVELS).view(-1, 1).expand(-1, 6))
    assert levels.unique().numel() == LEVELS * 6
    noise = torch.cat([torch.stack([n for n, _ in seen[i : i + LEVELS]]) for i in (0, LEVELS)], dim=1).flatten(0, 1)
    assert len({tuple(one.flatten()[:8].tolist()) for one in noise}) == LEVELS * 6


def test_latents_are_drawn_in_training_and_their_mode_in_evaluation(sd: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen, network = sd
    batch = captioned(["a cat"])
    embeds = frozen.encode(["a cat"], torch.device("cpu"))
    cached = {"moments": frozen.moments(batch["image"]), **embeds}
    cached |= {name: batch[name] for name in ("original_size", "crop_top_left")}
    seen: list[Tensor] = []
    generate = task(sd)
    noisy = generate.objective.noisy
    monkeypatch.setattr(generate.objective, "noisy", lambda x, n, levels: seen.append(x) or noisy(x, n, levels))
    for one in (batch, cached):
        seen.clear()
        generate.loss(network, one)
        generate.loss(network, one)
        generate.evaluate(network, [one])
        mode = frozen.latents(cached["moments"], sample=False)
        assert not torch.allclose(seen[0], seen[1])
        assert not torch.allclose(seen[0], mode)
        assert all(torch.allclose(x, mode, atol=1e-6) for x in seen[2:])


def test_nothing_to_evaluate(unet: Part) -> None:
    with pytest.raises(UserError, match="the split has no image"):
        task(unet).evaluate(unet[1], [])


def test_a_class_that_is_not_known(unet: Part) -> None:
    with pytest.raises(UserError, match="no class 'bird'; choose from cat, dog, red"):
        task(unet).generate(unet[1], ["bird"], [0])
    assert len(list(task(unet).generate(unet[1], ["dog", "cat"], [0, 1]))) == 2


@pytest.mark.parametrize(("squash", "white"), [(False, 0.0), (True, 0.25)])
def test_real_images_are_cropped_or_squashed_as_the_models_are(unet: Part, tmp_path: Path, squash: bool, white: float):
    """A wide image, white at its left quarter, which the centre leaves out."""
    pixels = np.zeros((10, 40, 3), np.uint8)
    pixels[:, :10] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    images = CaptionedImages((str(tmp_path / "wide.png"),), ())
    shown = task(unet, squash=squash)._fitted(images, 0)
    assert shown.size == (SIDE, SIDE)
    assert np.asarray(shown).mean() / 255 == pytest.approx(white, abs=0.02)
