"""All that a training needs, made ready before the run folder is touched: data, model, learner, batches."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from snella.config.method import METHODS, MethodConfig
from snella.config.recipe import placed
from snella.config.schema import SMOKE_PER_CLASS, TrainConfig
from snella.config.validation import check_rates
from snella.console import checking_images, print_line
from snella.data.dataset import ImageData, white_in, with_white
from snella.data.images import UnreadableImage
from snella.data.kept_images import keep_images
from snella.data.loading import Examples, ImageBatches
from snella.data.readers.suspicions import suspicions
from snella.data.transforms.images import Preprocessing
from snella.distributed.environment import processes_here
from snella.distributed.part import ALONE, Share
from snella.distributed.world import share
from snella.errors import UserError
from snella.machine import free_memory, usable_cores
from snella.methods.adapters import wrap
from snella.methods.layers import with_convolutions
from snella.models.backbone import BackboneSpec, fingerprint
from snella.models.bundled import BACKBONES
from snella.models.checkpointing import blocks_of, checkpoint_blocks
from snella.models.compiling import compile_blocks
from snella.ops import native
from snella.runs.devices import lay_out
from snella.runs.folder import versions
from snella.tasks.interface import Spec, Task, TaskLearner
from snella.tasks.registry import task_named
from snella.training.tuned_weights import lone_batch_norm
from snella.tuner import set_base_precision

SMALL_BATCHES = {500: 8, 2000: 16}  # images to train on -> what a batch has below that
LARGEST_BATCH = 32  # of those that the program chooses
STEPS = 1500  # of a training whose epochs are left to the program: a third of the published runs'
FEWEST_EPOCHS, MOST_EPOCHS = 10, 100  # the latter as published
KEPT_SHARE = 0.25  # of the memory that is free, for decoded images
SHEET_ROWS, SHEET_COLUMNS = 20, 8  # of a contact sheet
SHEET = f"up to {SHEET_COLUMNS} images of each, of up to {SHEET_ROWS} classes"
ESTIMATED_FROM = 4  # examples, of each class where there are some, of which memory is estimated


@dataclass(frozen=True)
class Prepared:
    """All that a training needs."""

    config: TrainConfig
    data: ImageData[Any]
    task: Task[Any, Any, Any]
    spec: Spec
    preprocessing: Preprocessing
    fingerprint: str  # of the backbone, before the method changed it
    base: dict[str, Tensor] | None  # the model's weights, where neither a name nor a file can restore them
    model: nn.Module
    learner: TaskLearner[Any, Any, Any]
    examples: Mapping[str, Examples]  # what the batches are made of
    batches: dict[str, ImageBatches]


def read_run_data(config: TrainConfig, console: Console) -> ImageData:
    """Return the data of a run, the same at every call: splits come from the seed, --smoke's few images from them."""
    if config.data.source is None:
        raise UserError("this run has no data with it, as none from the hub has; name some: --data PATH, or images")
    task = task_named(config.task)
    with checking_images(console) as progress:
        data = with_white(task.read(config, progress), config.data.white)
    if config.smoke:
        data = replace(data, splits={name: task.subset(part, SMOKE_PER_CLASS) for name, part in data.splits.items()})
    return data


def tell(data: ImageData, console: Console) -> None:
    """Say what was found, with licence and source."""
    counts = ", ".join(f"{len(images):,} {name}" for name, images in data.splits.items())
    classes = f" {len(data.classes)} classes," if data.classes else ""
    print_line(console, f"{data.root}: {data.layout},{classes} {counts} images")
    for note in data.notes:
        print_line(console, f"  {note}")
    if data.skipped:
        print_line(console, f"  {len(data.skipped)} unreadable images left out, the first: {data.skipped[0]}")


def doubts(config: TrainConfig, data: ImageData) -> list[str]:
    """Return a line for each thing in the data that looks wrong and is not trusted."""
    return [str(suspicion) for suspicion in suspicions(data, config.data.trust or ())]


def pictures_by_name(data: ImageData[Any]) -> dict[str, list[Image.Image]]:
    """Return a few images of each class or label, up to 20 of them, or of each split where there are none."""
    split_of = [(split, i) for split, images in data.splits.items() for i in range(len(images))]
    chosen: dict[str, list[tuple[str, int]]] = {}
    names = data.classes if any(_classes_of(data.splits[split], i) for split, i in split_of[:1]) else tuple(data.splits)
    for split, i in split_of:
        for k in _classes_of(data.splits[split], i) if names == data.classes else [names.index(split)]:
            chosen.setdefault(names[k], []).append((split, i))
    found: dict[str, list[Image.Image]] = {}
    for name in names[:SHEET_ROWS]:
        own = chosen.get(name, [])
        every = max(1, len(own) // SHEET_COLUMNS)
        found[name] = []
        for split, i in own[::every][:SHEET_COLUMNS]:
            with contextlib.suppress(UnreadableImage):
                found[name].append(data.splits[split].read(data.splits[split].paths[i]))
    return found


def _classes_of(images: Any, i: int) -> list[int]:
    """Return the classes of an image, or its labels; of one with quantities, a mask or a caption none."""
    if labels := getattr(images, "labels", ()):
        return [labels[i]]
    targets = getattr(images, "targets", ())
    if targets and all(value in (0, 1) for row in targets[:100] for value in row):
        return [k for k, value in enumerate(targets[i]) if value]
    return []


def prepare(config: TrainConfig, data: ImageData, device: torch.device, console: Console) -> Prepared:
    """Build the model of the data and wrap it by the method; nothing is written but caches.

    Raises:
        UserError: data, model and method that do not go together, or one of them cannot be had.
    """
    task = task_named(config.task)
    spec = task.make_spec(config, len(data.classes))
    _tell_backbone(spec.backbone, console)
    base = task.build(spec)
    config = _with_schedule(config, data, base, console)
    preprocessing = _preprocessing(config, task, spec, base)
    mark = fingerprint(base)
    restorable = config.model.pretrained or config.model.checkpoint
    weights = None if restorable else {name: tensor.clone() for name, tensor in base.state_dict().items()}
    learner = task.learner(config, data, preprocessing)
    splits = data.splits
    if config.estimate:  # a few are enough to count
        splits = {name: task.subset(part, ESTIMATED_FROM) for name, part in splits.items()}
    examples = learner.prepare(base, replace(data, splits=splits), preprocessing, config, device, console)
    batches = make_batches(config, examples, preprocessing, share(), led=learner.mixes)
    if config.generate.half_weights:
        base.to({"bf16": torch.bfloat16, "fp16": torch.float16}[config.precision])
    if config.model.base_precision != "fp32":
        set_base_precision(base, config.model.base_precision)
    if config.model.gradient_checkpointing and not checkpoint_blocks(base):
        raise UserError(f"{spec.backbone.name} has no blocks to checkpoint; leave out --gradient-checkpointing")
    blocks = blocks_of(base) if config.model.compile else []
    if config.model.compile and not blocks:
        raise UserError(f"{spec.backbone.name} has no blocks to compile; leave out --compile")
    steps_per_epoch = math.ceil(len(batches["train"]) / config.loop.accumulate)
    model = wrap(
        base, _method_config(config, base, steps_per_epoch), total_step=config.loop.epoch_count * steps_per_epoch
    )
    for parameter in model.parameters():
        if parameter.requires_grad:  # a copy of the head is made in the base's precision
            parameter.data = parameter.data.float()
    if min(config.data.images_per_batch, len(examples["train"])) == 1:
        _check_lone_image(model, preprocessing.image_size)
    lay_out(model, device)
    compile_blocks(blocks)
    return Prepared(config, data, task, spec, preprocessing, mark, weights, model, learner, examples, batches)


def _check_lone_image(model: nn.Module, size: int) -> None:
    """Refuse batches of one image where a batch norm cannot train on them. Raises UserError."""
    norm = lone_batch_norm(model, torch.zeros(1, 3, size, size))
    if norm is not None:
        raise UserError(
            f"a batch of one image gives the batch norm {norm} one value to train on; pass --batch-size 2 or more "
            "(of two images or more), or another --method, by which it is not trained"
        )


def images_an_epoch(config: TrainConfig, data: ImageData[Any]) -> int:
    """Return how many images an epoch has: those to train on, or those of the prior where they are more."""
    own = config.generate
    return max(len(data.splits["train"]), own.prior_images if own.prior_prompt is not None else 0)


def with_batch(config: TrainConfig, data: ImageData[Any], console: Console) -> TrainConfig:
    """Return the config with a size of the batches, which is said where it was left open."""
    if config.data.batch_size is not None:
        return config
    images = len(data.splits["train"])
    size = LARGEST_BATCH
    if config.task != "generate":
        size = next((small for most, small in SMALL_BATCHES.items() if images < most), LARGEST_BATCH)
    print_line(console, f"auto: batches of {size}, for {images:,} images")
    return config.changed(batch_size=size)


def _with_schedule(config: TrainConfig, data: ImageData[Any], base: nn.Module, console: Console) -> TrainConfig:
    """Return the config with what `auto` stands for in place of the learning rate and the epochs, which is said."""
    found: dict[str, Any] = {}
    batches = math.ceil(images_an_epoch(config, data) / config.data.images_per_batch)
    steps = math.ceil(batches / config.loop.accumulate)  # an epoch
    if config.loop.epochs == "auto":
        found["epochs"] = min(max(math.ceil(STEPS / steps), FEWEST_EPOCHS), MOST_EPOCHS)
    all_steps = steps * found.get("epochs", config.loop.epochs)
    if config.loop.lr == "auto":
        method = METHODS[config.method.name]
        rate = method.usual_rate
        if method.batch_norm_rate is not None and any(isinstance(m, _BatchNorm) for m in base.modules()):
            rate = method.batch_norm_rate
        found["lr"] = rate if method.most_travel is None else min(rate, _rounded(method.most_travel / all_steps))
    if found:
        words = {"epochs": "{} epochs", "lr": "learning rate {:g}"}
        chosen = " and ".join(words[name].format(value) for name, value in found.items())
        print_line(console, f"auto: {chosen}, for {config.method.name} on {len(data.splits['train']):,} images")
    config = config.changed(**found)
    check_rates(config)
    return config


def _rounded(rate: float) -> float:
    """Return a rate in one digit."""
    return float(f"{rate:.0e}")


def _preprocessing(config: TrainConfig, task: Task[Any, Any, Any], spec: Spec, base: nn.Module) -> Preprocessing:
    preprocessing = replace(task.preprocessing(spec, base), resize=config.data.resize or task.resize)
    if config.data.normalisation == "imagenet":
        if preprocessing.bgr:
            raise UserError(f"{spec.backbone.name} takes blue, green, red as they are; leave out --normalisation")
        preprocessing = replace(preprocessing, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD)
    return preprocessing


def _tell_backbone(spec: BackboneSpec, console: Console) -> None:
    """Say where a bundled backbone comes from, with licence; the others' names say so."""
    if spec.name in BACKBONES and spec.pretrained:
        print_line(console, f"{spec.name}: a bundled backbone")
        for note in BACKBONES[spec.name].notes:
            print_line(console, f"  {note}")


def make_batches(
    config: TrainConfig,
    examples: Mapping[str, Examples],
    preprocessing: Preprocessing,
    share: Share = ALONE,
    *,
    led: bool = False,
) -> dict[str, ImageBatches]:
    """Return the batches of each split, or a process's share of them: those of train shuffled and augmented.

    `led` as in `ImageBatches`. What is evaluated at once is what a process has of a batch.
    """
    task, data = task_named(config.task), config.data
    workers, size = data.workers, data.images_per_batch
    beside_gpu = torch.cuda.is_available() and config.device != "cpu"
    if workers is None:
        workers = min(8, usable_cores() // processes_here()) if beside_gpu else 0
    must = data.cache_images == "on"
    if must or (data.cache_images == "auto" and beside_gpu):
        limit = round((1 if must else KEPT_SHARE) * free_memory() / processes_here())
        every_epoch = {name: part for name, part in examples.items() if name != "test"}
        examples = {**examples, **keep_images(every_epoch, workers=workers, limit=limit, must=must)}
    return {
        name: ImageBatches(
            images,
            task.train_transform(preprocessing, config) if name == "train" else task.eval_transform(preprocessing),
            batch_size=size if name == "train" else math.ceil(size / share.count),
            shuffle=name == "train",
            seed=config.seed,
            workers=workers,
            # one image alone is too little for a batch norm over it; in the next epoch it is another one
            drop_last=name == "train" and 1 < size < len(images) and len(images) % size == 1,
            share=share,
            led=led and name == "train" and share.count > 1,
        )
        for name, images in examples.items()
    }


def _method_config(config: TrainConfig, model: nn.Module, steps_per_epoch: int) -> MethodConfig:
    """Return the method's settings, with what their defaults mean for this run."""
    method = config.method
    targets = (with_convolutions(model),) if config.generate.adapt_convs else method.target_modules
    return replace(method, allocate_every=method.allocate_every or steps_per_epoch, target_modules=targets)


def whole_spec(config: TrainConfig, ready: Prepared) -> dict[str, Any]:
    """Return how to build the model again, as snella.json holds it: with whole paths."""
    spec = ready.task.make_spec(placed(config), ready.spec.backbone.num_classes)
    return asdict(spec)  # pyright: ignore[reportArgumentType] (dataclasses, all of them)


def about_run(config: TrainConfig, ready: Prepared, settled: Mapping[str, Any]) -> dict[str, Any]:
    """Return what snella.json says of a run; `settled` is what its best epoch has decided on val."""
    return {
        "task": config.task,
        "method": config.method.name,
        **whole_spec(config, ready),
        "classes": list(ready.data.classes),
        **ready.task.facts(config, ready.data),
        **settled,
        "preprocessing": ready.preprocessing.to_dict(),
        "white": white_in(ready.data),
        "fingerprint": ready.fingerprint,
        "versions": versions(),
        "arithmetic": native.arithmetic(),
    }
