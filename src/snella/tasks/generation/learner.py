"""Denoising: the loss of a diffusion model, how it is judged, and what it makes.

A batch is {"image": (b, 3, s, s) in [-1, 1]} or, out of the cache, {"moments": (b, 2c, h, w)}, with "caption" (a list)
or text embeddings, or "label" (b,), and "original_size" and "crop_top_left" (b, 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from rich.console import Console, RenderableType
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from snella.config.schema import TrainConfig
from snella.console import working
from snella.data.dataset import ImageData
from snella.data.images import Progress
from snella.data.loading import Examples
from snella.data.readers.captioned import CaptionedImages
from snella.data.transforms.images import Preprocessing
from snella.diffusion.noise import Objective, with_offset
from snella.diffusion.pipeline import Condition, Frozen, condition_of
from snella.diffusion.sampling import SampleSettings, check_settings, sample
from snella.distributed.draws import whole_draws
from snella.distributed.evaluation import all_parts, first_place
from snella.distributed.part import whole
from snella.errors import UserError
from snella.files import save_picture
from snella.tasks.generation.fidelity import fidelity, fidelity_line
from snella.tasks.generation.noise_levels import LEVELS, LevelRow, noise_level_table, noise_levels_figure
from snella.tasks.generation.prepare import prepare
from snella.tasks.generation.sample_grids import before_after_figure, grid
from snella.tasks.interface import TaskLearner
from snella.training.interfaces import DeviceBatch, DeviceBatches


@dataclass(frozen=True)
class NoiseEvaluation:
    """The result of `Generate.evaluate`."""

    metrics: dict[str, float]  # denoising_loss: squared error per value, all levels alike
    table: tuple[LevelRow, ...]  # all images, then each class


class Generate(TaskLearner[NoiseEvaluation, ImageData[CaptionedImages], CaptionedImages]):
    """A diffusion model's denoising of images.

    Args:
        frozen: the pipeline but its network.
        classes: names of the classes of class-conditional data; () for others.
        prompts: of the sample grids: captions, or names of classes; () for an unconditional model.
        sampling: how samples are made.
        samples: how many for each prompt.
        snr_gamma: of min-SNR weighting; None: all timesteps count alike.
        noise_offset: strength of the offset noise.
        caption_dropout: share of captions left empty while training.
        prior_weight: of the loss on the prior's images, where a batch has some.
        squash: whether images are squashed to the square, so that real ones are shown and judged so too.

    Example:
        >>> task = Generate(frozen_parts("small_unet"), ("cat", "dog"), sampling=SampleSettings(32))
        >>> task.loss(network, {"image": images, "label": labels}).shape
        torch.Size([])
    """

    selection = "denoising_loss"
    higher_is_better = False

    def __init__(
        self,
        frozen: Frozen,
        classes: Sequence[str] = (),
        *,
        sampling: SampleSettings,
        prompts: Sequence[str] = (),
        samples: int = 4,
        snr_gamma: float | None = None,
        noise_offset: float = 0.0,
        caption_dropout: float = 0.0,
        prior_weight: float = 1.0,
        squash: bool = False,
    ) -> None:
        self.frozen, self.objective = frozen, Objective(frozen.pipe.scheduler)
        self.classes, self.prompts, self.samples = tuple(classes), tuple(prompts), samples
        self.sampling, self.squash = sampling, squash
        self.snr_gamma, self.noise_offset = snr_gamma, noise_offset
        self.caption_dropout, self.prior_weight = caption_dropout, prior_weight
        self.empty: dict[str, Tensor] | None = None  # embeddings of the empty caption, each (1, ...)
        check_settings(frozen, sampling)

    def loss(self, model: nn.Module, batch: DeviceBatch) -> Tensor:
        """Return the mean squared error of what the model predicts (0-d) in fp32, weighted as asked for."""
        with whole_draws():
            x, condition = self._inputs(model, batch, training=True)
        count, weights = len(x), x.new_ones(len(x))
        if "prior" in batch:
            with whole_draws():
                more, its = self._inputs(model, batch["prior"], training=True)
            condition = {name: torch.cat([value, its[name]]) for name, value in condition.items()}
            weights = torch.cat([weights, weights.new_full((len(more),), self.prior_weight * count / len(more))])
            x = torch.cat([x, more])
        with whole_draws(blocks=1 + ("prior" in batch)):
            noise = torch.randn_like(x)
            if self.noise_offset:
                noise = with_offset(noise, self.noise_offset)
            levels = self.objective.draw_levels(len(x), x.device)
        noisy = self.objective.noisy(x, noise, levels)
        found = self.frozen.predict(model, noisy.x, noisy.timesteps, condition)
        errors = (found.float() - noisy.target.float()).square().flatten(1).mean(1)
        if self.snr_gamma is not None:
            errors = errors * self.objective.min_snr_weights(noisy.snr, self.snr_gamma)
        return (errors * weights).sum() / whole(count)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: DeviceBatches) -> NoiseEvaluation:
        """Return the error on held-out images, each once in each part of the noise range. The model is in eval mode.

        Noise and level of an image are drawn from its place in the split, so every model and epoch meets the same.

        Raises:
            UserError: there is no batch.
        """
        model.eval()
        rows: list[Tensor] = []
        labels: list[int] = []
        for batch in batches:
            x, condition = self._inputs(model, batch, training=False)
            place = first_place() + sum(map(len, rows))
            draws = [_fixed_draw(place + i, x.shape[1:]) for i in range(len(x))]
            losses = []
            for part in range(LEVELS):
                levels = torch.stack([level[part] for level, _ in draws]).to(x.device)
                noise = torch.stack([noise[part] for _, noise in draws]).to(x)
                noisy = self.objective.noisy(x, noise, levels)
                found = self.frozen.predict(model, noisy.x, noisy.timesteps, condition)
                losses.append((found.float() - noisy.target.float()).square().flatten(1).mean(1).cpu())
            rows.append(torch.stack(losses, dim=1))
            labels += batch["label"].tolist() if "label" in batch else []
        parts = all_parts((rows, labels))
        rows, labels = [row for found, _ in parts for row in found], [label for _, found in parts for label in found]
        if not rows:
            raise UserError("nothing to evaluate: the split has no image; give --data with at least one")
        found = torch.cat(rows).double()  # (n, LEVELS)
        table = [LevelRow("all", len(found), tuple(found.mean(0).tolist()))]
        for label, name in enumerate(self.classes if labels else ()):
            of_class = found[torch.tensor(labels) == label]
            if len(of_class):
                table.append(LevelRow(name, len(of_class), tuple(of_class.mean(0).tolist())))
        return NoiseEvaluation({"denoising_loss": found.mean().item()}, tuple(table))

    def _inputs(self, model: nn.Module, batch: Mapping[str, Any], *, training: bool) -> tuple[Tensor, Condition]:
        """Return x (b, c, h, w) as the network sees it, and what it is asked for."""
        network, device = base_of(model), next(model.parameters()).device
        if "moments" in batch:
            x = self.frozen.latents(batch["moments"], sample=training)
        elif self.frozen.vae is not None:
            self.frozen.to(device, encoders=False)
            x = self.frozen.latents(self.frozen.moments(batch["image"]), sample=training)
        else:
            x = batch["image"]
            x = x.mean(1, keepdim=True) if network.config.in_channels == 1 else x
        condition: dict[str, Tensor] = {}
        if self.frozen.family.encode is not None:
            condition = self._text(batch, device, training)
            sides = [batch["original_size"], batch["crop_top_left"]]
            sides.append(torch.full_like(sides[0], self.sampling.size))
            condition["time_ids"] = torch.cat(sides, dim=1).to(x)  # as SDXL takes them; the others do not look at it
        elif condition_of(network) == "class":
            if "label" not in batch:
                raise UserError("the images have no classes, which the model needs; sort them into class folders")
            condition = {"class_labels": batch["label"]}
        return x, condition

    def _text(self, batch: Mapping[str, Any], device: torch.device, training: bool) -> dict[str, Tensor]:
        if "caption" in batch:
            self.frozen.to(device, vae=False)
            found = self.frozen.encode(batch["caption"], device)
        else:
            found = {name: batch[name] for name in self.frozen.family.embeddings if name in batch}
            if not found:
                raise UserError("the images have no captions, which the model needs; add some, or give --prompt")
        if training and self.caption_dropout:
            if self.empty is None:
                self.empty = self.frozen.encode([""], device)
            dropped = torch.rand(len(next(iter(found.values()))), device=device) < self.caption_dropout
            for name, value in found.items():
                mask = dropped.view(-1, *(1,) * (value.ndim - 1))
                found[name] = torch.where(mask, self.empty[name].to(value), value)
        return found

    def generate(
        self,
        model: nn.Module,
        asked: Sequence[str | None],
        seeds: Sequence[int],
        *,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Iterator[Image.Image]:
        """Yield an image for each prompt (a class's name for class-conditional models, None for unconditional ones).

        Raises:
            UserError: no such class, or more steps than there are.
        """
        network, own = base_of(model), self.sampling
        sampling = replace(own, steps=steps or own.steps, guidance=own.guidance if guidance is None else guidance)
        if self.frozen.family.encode is None:
            known = condition_of(network) == "class"
            labels = [self._label(name) if known else None for name in asked]
            return sample(self.frozen, network, labels, seeds, sampling)
        return sample(self.frozen, network, [prompt or "" for prompt in asked], seeds, sampling)

    def _label(self, name: str | None) -> int:
        if name not in self.classes:
            raise UserError(f"the model knows no class {name!r}; choose from {', '.join(self.classes)}")
        return self.classes.index(name)

    def prepare(
        self,
        model: nn.Module,
        data: ImageData[CaptionedImages],
        preprocessing: Preprocessing,
        config: TrainConfig,
        device: torch.device,
        console: Console,
    ) -> Mapping[str, Examples]:
        """Return what the batches of each split are made of (`tasks.generation.prepare`)."""
        unknown = [name for name in self.prompts if condition_of(model) == "class" and name not in self.classes]
        if unknown:
            raise UserError(f"--sample-prompts {unknown[0]} is none of the classes: {', '.join(self.classes)}")
        prepared = prepare(self.frozen, self.sampling, model, data, preprocessing, config, device, console)
        self.empty = prepared.empty
        return prepared.splits

    def show(
        self,
        model: nn.Module,
        data: ImageData[CaptionedImages],
        folder: Path,
        stage: str,
        progress: Progress | None = None,
    ) -> None:
        """Write RUN/samples/STAGE.png, a row for each prompt, and at the end before-after.png.

        Seeds and prompts are the same at all stages. Before and after, the pictures are kept one by one as well.
        """
        prompts: list[str | None] = list(self.prompts) or [None]
        asked = [prompt for prompt in prompts for _ in range(self.samples)]
        seeds = list(range(self.samples)) * len(prompts)
        pictures: list[Image.Image] = []
        for picture in self.generate(model, asked, seeds):
            pictures.append(picture)
            if progress is not None:
                progress(len(pictures), len(asked))
        samples = folder / "samples"
        save_picture(grid(pictures, self.samples), samples / f"{stage}.png")
        if stage in ("before", "after"):
            _save_all(pictures, samples / stage)
        if stage == "after":
            real = [
                self._fitted(data.splits["test"], index)
                for prompt in prompts
                for index in _like(data, prompt, self.samples)
            ]
            _save_all(real, samples / "real")
            before = [Image.open(samples / "before" / f"{i:02d}.png").convert("RGB") for i in range(len(pictures))]
            titles = [prompt or "" for prompt in prompts]
            before_after_figure(before, pictures, real, folder / "before-after.png", titles=titles)

    def judge(
        self, model: nn.Module, references: CaptionedImages, features: str, *, count: int, console: Console
    ) -> tuple[dict[str, Any], str]:
        """Compare `count` images, asked for what the references show, with them in the named model's features.

        Raises:
            UserError: unknown features, or their weights are missing; too few images.
        """
        kinds: Sequence[str | None] = references.captions
        if self.frozen.family.encode is None:
            kinds = [self.classes[label] for label in references.labels] if self.classes else ()
        asked = [kinds[i * len(kinds) // count % len(kinds)] if kinds else None for i in range(count)]
        made = []
        with working(console, "generating images") as progress:
            for picture in self.generate(model, asked, range(count)):
                made.append(picture)
                progress(len(made), count)
        real = (self._fitted(references, i) for i in range(len(references)))
        device = next(model.parameters()).device
        found = fidelity(map(_pixels, made), map(_pixels, real), features, device=device)
        return asdict(found), fidelity_line(found)

    def _fitted(self, images: CaptionedImages, index: int) -> Image.Image:
        """Return a real image in the shape that the model has seen."""
        picture: Any = images[index]["image"]
        square = (self.sampling.size, self.sampling.size)
        if self.squash:
            return picture.resize(square, Image.Resampling.BICUBIC)
        return ImageOps.fit(picture, square, Image.Resampling.BICUBIC)

    def report(self, evaluation: NoiseEvaluation) -> dict[str, Any]:
        return self.details(evaluation)

    def details(self, evaluation: NoiseEvaluation) -> dict[str, Any]:
        return {"noise_levels": [asdict(row) for row in evaluation.table]}

    def table(self, evaluation: NoiseEvaluation) -> RenderableType:
        return noise_level_table(evaluation.table)

    def figures(self, evaluation: NoiseEvaluation) -> dict[str, Callable[[Path], object]]:
        return {"levels": partial(noise_levels_figure, evaluation.table)}


def base_of(model: nn.Module) -> Any:
    """Return the network itself, with its adapters in it, whether PEFT stands around it or not."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue]


def _like(data: ImageData[CaptionedImages], prompt: str | None, count: int) -> list[int]:
    """Return `count` test images, spread evenly over those of the class or with the caption, or over all."""
    images: CaptionedImages = data.splits["test"]
    kinds = [
        {*images.captions[i : i + 1], *(data.classes[k] for k in images.labels[i : i + 1])} for i in range(len(images))
    ]
    chosen = [i for i, kind in enumerate(kinds) if prompt in kind] or list(range(len(images)))
    return [chosen[k * len(chosen) // count % len(chosen)] for k in range(count)]


def _save_all(pictures: Sequence[Image.Image], folder: Path) -> None:
    for i, picture in enumerate(pictures):
        save_picture(picture, folder / f"{i:02d}.png")


def _pixels(picture: Image.Image) -> Tensor:
    """Return the picture as (1, 3, h, w) uint8."""
    return pil_to_tensor(picture.convert("RGB"))[None]


def _fixed_draw(index: int, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return levels (LEVELS,), one in each part of the range, and noise (LEVELS, *shape) of the image at a place."""
    generator = torch.Generator().manual_seed(index)
    levels = (torch.arange(LEVELS) + torch.rand(LEVELS, generator=generator)) / LEVELS
    return levels, torch.randn(LEVELS, *shape, generator=generator)
