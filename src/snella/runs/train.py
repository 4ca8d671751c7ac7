"""A run, from config to result: joins data, task, backbone, method, training and report.

config ─ checks ─ data ─ backbone ─ method ─ fit ─┬─ adapter/ (best epoch on val)
                                                  ├─ val and test metrics ─ summary.json
                                                  └─ figures
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_tensorboard_available
from rich.console import Console
from safetensors.torch import save_file
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from snella.config.schema import TrainConfig, run_folder, shrunk
from snella.config.validation import validate
from snella.console import print_line, working
from snella.data.bundled.elpv import BASELINE
from snella.data.dataset import ImageData
from snella.data.images import Progress
from snella.data.loading import Batches, Examples
from snella.data.transforms.images import Preprocessing
from snella.errors import UserError
from snella.files import read_rows, size_of, write_json, writing
from snella.methods.table import MethodSettings, after_step, save_adapter, with_convolutions, wrap
from snella.models.backbone import BackboneSpec, fingerprint
from snella.models.bundled import BACKBONES
from snella.report.allocation import allocation_figure
from snella.report.figures import training_curves_figure
from snella.report.tables import summary_table
from snella.runs.data import read_run_data, tell
from snella.runs.folder import (
    ABOUT,
    ADAPTER,
    BASE,
    SUMMARY,
    alone_in,
    check_claim,
    claim,
    is_tested,
    read_about,
    read_summary,
    state_of,
    versions,
)
from snella.tasks.interface import Generates, Spec, Task
from snella.tasks.registry import TASKS
from snella.training.checkpoint import checkpoints
from snella.training.devices import accelerator_for, device_name
from snella.training.estimate import estimate, estimate_table
from snella.training.evaluation import evaluate
from snella.training.loop import FitResult, LoopSettings, fit
from snella.training.optimiser import check_optimiser
from snella.training.tuned_weights import load_tuned_state

FEW = 4  # examples, of each class where there are some, of which memory is estimated
GRIDS = 5  # sample grids of a run, where their number is not given
LISTED = 20  # classes up to which the end of a training tells of each


@dataclass(frozen=True)
class Prepared:
    """All that a training needs, ready before the run folder is touched."""

    data: ImageData
    spec: Spec
    preprocessing: Preprocessing
    fingerprint: str  # of the backbone, before the method changed it
    base: dict[str, Tensor] | None  # the model's weights, where neither a name nor a file can restore them
    model: nn.Module
    task: Task
    examples: Mapping[str, Examples]  # what the batches are made of
    batches: dict[str, Batches]


def train(config: TrainConfig, console: Console | None = None) -> dict[str, Any]:
    """Train as the config says and return what summary.json holds (with `estimate`: the memory it will need).

    Flags are checked first, then paths and data, then the model is built; only then is the run folder touched.

    Raises:
        UserError: something given is wrong; the message names it and the remedy.
        snella.training.interrupt.Interrupted: Ctrl-C or SIGTERM during training; a checkpoint was written.
    """
    console = console or Console()
    validate(config)
    config = shrunk(config) if config.smoke else config
    folder = run_folder(config)
    _check_machine(config)
    TASKS[config.task].check(config)
    if config.estimate:
        return _estimate(config, console)
    check_claim(folder, config)
    trained = config.resume and state_of(folder) == "finished"
    if trained and is_tested(summary := read_summary(folder), config.test):
        print_line(console, f"{folder} is finished; --overwrite trains it again")
        return summary

    if trained and not checkpoints(folder):
        raise UserError(f"{folder} has no checkpoints to test; use snella evaluate, or train again with --overwrite")

    ready = _prepare(config, console)
    if trained and ready.fingerprint != read_about(folder)["fingerprint"]:
        raise UserError(f"{config.backbone} is not what {folder} was trained on; its weights have changed")
    claim(folder, config)
    with alone_in(folder, "training"):
        return _train(config, ready, folder, trained, console)


def _train(config: TrainConfig, ready: Prepared, folder: Path, trained: bool, console: Console) -> dict[str, Any]:
    """All but the checks; `trained`: only the tests are missing."""
    if ready.base is not None and not trained:
        with writing(folder / BASE) as partial:
            save_file(ready.base, partial)
    print_line(console, f"{config.backbone}, {config.method}: {_trainable(ready.model):,} trainable parameters")
    print_line(console, f"results in {folder}")
    accelerator = accelerator_for(config.device, config.precision)

    def show(stage: str, progress: Progress | None = None) -> None:
        if isinstance(ready.task, Generates):
            ready.task.show(ready.model.to(accelerator.device).eval(), ready.data, folder, stage, progress)

    def after_epoch(epoch: int) -> None:
        every = -(-config.epochs // GRIDS) if config.sample_every is None else config.sample_every
        if every and epoch % every == 0 and epoch < config.epochs:
            show(f"epoch-{epoch:03d}")

    if not checkpoints(folder):
        with working(console, "generating samples") as progress:
            show("before", progress)
    result = fit(
        ready.model,
        ready.task,
        ready.batches["train"],
        ready.batches["val"],
        _loop_settings(config),
        folder,
        after_step=after_step(config.method, ready.model),
        after_epoch=after_epoch,
        resume=config.resume,
        console=console,
    )
    if not trained:
        _save_adapter(folder, config, ready)
        with working(console, "generating samples") as progress:
            show("after", progress)
    return _finish(folder, config, ready, result, console)


def _estimate(config: TrainConfig, console: Console) -> dict[str, Any]:
    """Print what a training step needs in memory; `peak_memory_bytes` is as in summary.json."""
    ready = _prepare(config, console)

    def make_batch(images: int) -> dict[str, Any]:
        few = replace(config, batch_size=images, workers=0)
        return next(_batches(few, ready.examples, ready.preprocessing)["train"].epoch(1))

    found = estimate(
        ready.model,
        ready.task,
        make_batch,
        accelerator_for(config.device, config.precision),
        batch_size=min(config.batch_size, _epoch_size(config, ready.data)),
        optimizer=config.optimizer,
        ema=config.ema is not None,
        seed=config.seed,
    )
    console.print(estimate_table(found))
    return {**asdict(found), "peak_memory_bytes": found.total}


def _epoch_size(config: TrainConfig, data: ImageData) -> int:
    """Examples of an epoch: images, or those of the prior, of which there may be more."""
    return max(len(data.splits["train"]), config.prior_images if config.prior_prompt is not None else 0)


def _check_machine(config: TrainConfig) -> None:
    """Refuse a device, a precision or a package that is not there, before anything is read."""
    check_optimiser(config.optimizer, accelerator_for(config.device, config.precision).device)
    if config.tensorboard and not is_tensorboard_available():
        raise UserError("--tensorboard needs the package tensorboard; run: pip install 'snella[tensorboard]'")


def _prepare(config: TrainConfig, console: Console) -> Prepared:
    module = TASKS[config.task]
    data = read_run_data(config, console)
    tell(data, console)
    spec = module.make_spec(config, len(data.classes))
    _tell_backbone(spec.backbone, console)
    base = module.build(spec)
    preprocessing = replace(module.preprocessing(spec, base), resize=config.resize or module.RESIZE)
    if config.normalisation == "imagenet":
        preprocessing = replace(preprocessing, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD)
    mark = fingerprint(base)
    restorable = config.pretrained or config.checkpoint
    weights = None if restorable else {name: tensor.clone() for name, tensor in base.state_dict().items()}
    task = module.make_task(config, data, preprocessing)
    examples: Mapping[str, Examples] = data.splits
    if config.estimate:  # a few are enough to count
        examples = {name: module.few(part, FEW) for name, part in data.splits.items()}
    if isinstance(task, Generates):
        device = accelerator_for(config.device, config.precision).device
        shown = replace(data, splits=dict(examples))
        examples = task.prepare(base, shown, preprocessing, config, device, console)
    batches = _batches(config, examples, preprocessing)
    if config.half_weights:
        base.to({"bf16": torch.bfloat16, "fp16": torch.float16}[config.precision])
    model = wrap(config.method, base, _method_settings(config, base, len(batches["train"])))
    for parameter in model.parameters():
        if parameter.requires_grad:  # a copy of the head is made in the base's precision
            parameter.data = parameter.data.float()
    return Prepared(data, spec, preprocessing, mark, weights, model, task, examples, batches)


def _trainable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _tell_backbone(spec: BackboneSpec, console: Console) -> None:
    """Say where a bundled backbone comes from, with licence; the others' names say so."""
    if spec.name in BACKBONES and spec.pretrained:
        print_line(console, f"{spec.name}: a bundled backbone")
        for note in BACKBONES[spec.name].notes:
            print_line(console, f"  {note}")


def _batches(config: TrainConfig, examples: Mapping[str, Examples], preprocessing: Preprocessing) -> dict[str, Batches]:
    module = TASKS[config.task]
    workers = config.workers
    if workers is None:
        workers = min(8, os.cpu_count() or 1) if torch.cuda.is_available() and config.device != "cpu" else 0
    return {
        name: Batches(
            images,
            module.train_transform(preprocessing, config) if name == "train" else module.eval_transform(preprocessing),
            batch_size=config.batch_size,
            shuffle=name == "train",
            seed=config.seed,
            workers=workers,
            # one image alone is too little for a batch norm over it; in the next epoch it is another one
            drop_last=name == "train" and 1 < config.batch_size < len(images) and len(images) % config.batch_size == 1,
        )
        for name, images in examples.items()
    }


def _method_settings(config: TrainConfig, model: nn.Module, batches: int) -> MethodSettings:
    steps_per_epoch = math.ceil(batches / config.accumulate)
    names = ("r", "heads", "scale", "relative_scale", "start_scale", "init_alpha", "kernel", "gate", "init_sparsity")
    names += ("target_sparsity", "init_warmup", "final_warmup", "update_dropout", "update_drop_path")
    return MethodSettings(
        allocate_every=config.allocate_every or steps_per_epoch,
        total_step=config.epochs * steps_per_epoch,
        target_modules=with_convolutions(model) if config.adapt_convs else _targets(config.target_modules),
        rematerialize={"none": False, "inputs": True, "mlp": "mlp"}[config.rematerialize],
        **{name: getattr(config, name) for name in names},
    )


def _targets(names: tuple[str, ...] | None) -> list[str] | str | None:
    """As PEFT wants them: a list of names' ends, or one text: a regular expression or `all-linear`."""
    if names is None:
        return None
    one = len(names) == 1 and (names[0] == "all-linear" or re.search(r"[*+?|\\^$()\[\]]", names[0]))
    return names[0] if one else list(names)


def _loop_settings(config: TrainConfig) -> LoopSettings:
    names = ("epochs", "lr", "min_lr", "warmup_lr", "warmup", "weight_decay", "clip_grad", "accumulate", "ema")
    names += ("optimizer", "early_stopping", "checkpoint_every", "precision", "device", "seed", "tensorboard")
    return LoopSettings(**{name: getattr(config, name) for name in names})


def _save_adapter(folder: Path, config: TrainConfig, ready: Prepared) -> None:
    about = {
        "task": config.task,
        "method": config.method,
        **asdict(ready.spec),  # pyright: ignore[reportArgumentType] (dataclasses, all of them)
        "classes": list(ready.data.classes),
        **TASKS[config.task].about(config, ready.data),
        "preprocessing": ready.preprocessing.to_dict(),
        "fingerprint": ready.fingerprint,
        "versions": versions(),
    }
    with writing(folder / ADAPTER) as partial:
        save_adapter(config.method, ready.model, partial)
        write_json(partial / ABOUT, about)


def _finish(folder: Path, config: TrainConfig, ready: Prepared, result: FitResult, console: Console) -> dict[str, Any]:
    """Test what was asked for; draw the figures; the summary ends the run."""
    accelerator = accelerator_for(config.device, config.precision)
    names, task = TASKS[config.task].METRICS, ready.task
    found = {
        split: evaluate(ready.model, task, ready.batches[split], accelerator, seed=config.seed)
        for split in (("val",) if config.test == "none" else ("val", "test"))
    }
    metrics = {split: {name: evaluation.metrics[name] for name in names} for split, evaluation in found.items()}
    tested = found.get("test")
    if config.test == "both":  # nothing that follows looks at the model's values
        last = found["test"]
        if result.last is not None:
            load_tuned_state(ready.model, result.last)
            last = evaluate(ready.model, task, ready.batches["test"], accelerator, seed=config.seed)
        metrics["test_last"] = {name: last.metrics[name] for name in names}
    if allocations := read_rows(folder / "allocation.jsonl"):
        allocation_figure(allocations, folder / "allocation.png")
    if result.history:  # metrics.jsonl may be lost, where a run folder was copied
        training_curves_figure(
            read_rows(folder / "metrics.jsonl"),
            folder / "curves.png",
            best_epoch=result.best_epoch,
            metric=task.selection,
            name=names[task.selection],
            higher_is_better=task.higher_is_better,
        )
    for kind, draw in (task.figures(tested) if tested else {}).items():
        draw(folder / f"{kind}.png")
    summary = {
        **metrics,
        "selection": {"metric": task.selection, "higher_is_better": task.higher_is_better},
        **(task.details(tested) if tested else {}),
        "trainable_parameters": _trainable(ready.model),
        "adapter_bytes": size_of(folder / ADAPTER),
        "peak_memory_bytes": result.peak_memory_bytes,
        "seconds": round(result.seconds, 3),
        "images": {split: len(images) for split, images in ready.data.splits.items()},
        "device": device_name(accelerator.device),
        "seed": config.seed,
        "versions": versions(),
    }
    write_json(folder / SUMMARY, summary)
    if tested and len(ready.data.classes) <= LISTED:
        console.print(task.table(tested))
    console.print(summary_table(summary, names, title=f"{config.method} on {Path(ready.data.root).name}"))
    if BASELINE in ready.data.notes:
        print_line(console, BASELINE)
    print_line(
        console, f"best epoch on val: {result.best_epoch} of {result.epochs_done}; results and figures in {folder}"
    )
    return summary
