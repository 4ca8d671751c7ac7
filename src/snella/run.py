"""A run, from config to result: joins data, task, backbone, method, training and report.

config ─ checks ─ data ─ backbone ─ method ─ fit ─┬─ adapter/ (best epoch on val)
                                                  ├─ val and test metrics ─ summary.json
                                                  └─ figures
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import nn

from snella.config import SMOKE_PER_CLASS, TrainConfig, run_folder, shrunk, validate
from snella.console import checking_images, plain
from snella.data import (
    Augmentation,
    Batches,
    ImageData,
    Images,
    Preprocessing,
    class_weights,
    eval_transform,
    read_data,
    train_transform,
)
from snella.data.elpv import BASELINE
from snella.methods import MethodSettings, after_step, save_adapter, wrap
from snella.report.allocation import allocation_figure
from snella.report.figures import confusion_figure, training_curves_figure
from snella.runfolder import (
    ABOUT,
    ADAPTER,
    BASE,
    SUMMARY,
    check_claim,
    claim,
    read_rows,
    read_summary,
    size_of,
    state_of,
    versions,
    write_json,
    writing,
)
from snella.tasks.backbone import BackboneSpec, build_backbone, check_backbone_name, fingerprint, preprocessing_of
from snella.tasks.classify import Classify, Evaluation
from snella.training.devices import accelerator_for, check_device
from snella.training.evaluation import evaluate as evaluate_batches
from snella.training.loop import FitResult, LoopSettings, fit


def train(config: TrainConfig, console: Console | None = None) -> dict[str, Any]:
    """Train as the config says and return what summary.json holds.

    Flags are checked first, then paths and data, then the model is built; only then is the run folder touched.

    Raises:
        UserError: something given is wrong; the message names it and the remedy.
        snella.training.interrupt.Interrupted: Ctrl-C or SIGTERM during training; a checkpoint was written.
    """
    console = console or Console()
    validate(config)
    config = shrunk(config) if config.smoke else config
    folder = run_folder(config)
    spec = _spec(config, num_classes=2)
    augmentation = _augmentation(config)
    check_device(config.device, config.precision)
    check_backbone_name(spec)
    check_claim(folder, config)
    if config.resume and state_of(folder) == "finished":
        plain(console, f"{folder} is finished; --overwrite trains it again")
        return read_summary(folder)

    data = read_run_data(config, console)
    tell(data, console)
    spec = replace(spec, num_classes=len(data.classes))
    base = build_backbone(spec)
    preprocessing = replace(preprocessing_of(spec, base), resize=config.resize)
    mark = fingerprint(base)
    loaders = _loaders(config, data, preprocessing, augmentation)
    settings = _method_settings(config, len(loaders["train"]))
    restorable = spec.pretrained or spec.checkpoint
    base_state = None if restorable else {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = wrap(config.method, base, settings)
    claim(folder, config)
    if base_state is not None:
        with writing(folder / BASE) as partial:
            save_file(base_state, partial)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    plain(console, f"{spec.name}, {config.method}: {trainable:,} trainable parameters")
    plain(console, f"results in {folder}")
    task = _task(config, data)
    result = fit(
        model,
        task,
        loaders["train"],
        loaders["val"],
        _loop_settings(config),
        folder,
        after_step=after_step(config.method, model),
        resume=config.resume,
        console=console,
    )
    _save_adapter(folder, config, model, spec, data, preprocessing, mark)
    return _finish(folder, config, model, task, loaders, result, data, console)


def _spec(config: TrainConfig, num_classes: int) -> BackboneSpec:
    return BackboneSpec(
        name=config.backbone,
        pretrained=config.pretrained,
        checkpoint=config.checkpoint,
        image_size=config.image_size,
        num_classes=num_classes,
        drop_path=config.drop_path,
        seed=config.seed,
    )


def _augmentation(config: TrainConfig) -> Augmentation:
    return Augmentation(
        name=config.augment,
        auto_augment=config.auto_augment,
        color_jitter=config.color_jitter,
        random_erasing=config.random_erasing,
    )


def read_run_data(config: TrainConfig, console: Console) -> ImageData:
    """The data of a run, the same at every call: the splits come from the seed, --smoke's few images from them."""
    assert config.data is not None  # validated
    with checking_images(console) as progress:
        data = read_data(
            config.data,
            seed=config.seed,
            val_fraction=config.val_fraction,
            test_fraction=config.test_fraction,
            progress=progress,
        )
    if config.smoke:
        data = replace(data, splits={name: _few(images) for name, images in data.splits.items()})
    return data


def _few(images: Images) -> Images:
    """The first SMOKE_PER_CLASS images of each class."""
    seen: Counter[int] = Counter()
    chosen = []
    for index, label in enumerate(images.labels):
        seen[label] += 1
        if seen[label] <= SMOKE_PER_CLASS:
            chosen.append(index)
    return replace(images, paths=tuple(images.paths[i] for i in chosen), labels=tuple(images.labels[i] for i in chosen))


def tell(data: ImageData, console: Console) -> None:
    """Say what was found, with licence and source."""
    counts = ", ".join(f"{len(images):,} {name}" for name, images in data.splits.items())
    plain(console, f"{data.root}: {data.layout}, {len(data.classes)} classes, {counts} images")
    for note in data.notes:
        if note != BASELINE:  # that one belongs beside the result
            plain(console, f"  {note}")
    if data.skipped:
        plain(console, f"  {len(data.skipped)} unreadable images left out, the first: {data.skipped[0]}")


def _loaders(
    config: TrainConfig, data: ImageData, preprocessing: Preprocessing, augmentation: Augmentation
) -> dict[str, Batches]:
    workers = config.workers
    if workers is None:
        workers = min(8, os.cpu_count() or 1) if torch.cuda.is_available() and config.device != "cpu" else 0
    return {
        name: Batches(
            images,
            train_transform(preprocessing, augmentation) if name == "train" else eval_transform(preprocessing),
            batch_size=config.batch_size,
            shuffle=name == "train",
            seed=config.seed,
            workers=workers,
        )
        for name, images in data.splits.items()
    }


def _method_settings(config: TrainConfig, batches: int) -> MethodSettings:
    steps_per_epoch = math.ceil(batches / config.accumulate)
    return MethodSettings(
        r=config.r,
        heads=config.heads,
        scale=config.scale,
        kernel=config.kernel,
        gate=config.gate,
        init_sparsity=config.init_sparsity,
        target_sparsity=config.target_sparsity,
        init_warmup=config.init_warmup,
        final_warmup=config.final_warmup,
        allocate_every=config.allocate_every or steps_per_epoch,
        total_step=config.epochs * steps_per_epoch,
        target_modules=_targets(config.target_modules),
        update_dropout=config.update_dropout,
        update_drop_path=config.update_drop_path,
    )


def _targets(names: tuple[str, ...] | None) -> list[str] | str | None:
    """As PEFT wants them: a list of names' ends, or one text: a regular expression or `all-linear`."""
    if names is None:
        return None
    one = len(names) == 1 and (names[0] == "all-linear" or re.search(r"[*+?|\\^$()\[\]]", names[0]))
    return names[0] if one else list(names)


def _task(config: TrainConfig, data: ImageData) -> Classify:
    return Classify(
        data.classes,
        class_weights=class_weights(data.splits["train"], data.classes) if config.class_weights else None,
        label_smoothing=config.label_smoothing,
        mixup=config.mixup,
        cutmix=config.cutmix,
    )


def _loop_settings(config: TrainConfig) -> LoopSettings:
    names = ("epochs", "lr", "min_lr", "warmup_lr", "warmup", "weight_decay", "clip_grad", "accumulate", "ema")
    names += ("early_stopping", "checkpoint_every", "precision", "device", "seed", "tensorboard")
    return LoopSettings(**{name: getattr(config, name) for name in names})


def _save_adapter(
    folder: Path,
    config: TrainConfig,
    model: nn.Module,
    spec: BackboneSpec,
    data: ImageData,
    preprocessing: Preprocessing,
    mark: str,
) -> None:
    about = {
        "task": config.task,
        "method": config.method,
        "backbone": asdict(spec),
        "classes": list(data.classes),
        "preprocessing": preprocessing.to_dict(),
        "fingerprint": mark,
        "versions": versions(),
    }
    with writing(folder / ADAPTER) as partial:
        save_adapter(config.method, model, partial)
        write_json(partial / ABOUT, about)


def _finish(
    folder: Path,
    config: TrainConfig,
    model: nn.Module,
    task: Classify,
    loaders: dict[str, Batches],
    result: FitResult,
    data: ImageData,
    console: Console,
) -> dict[str, Any]:
    """Test once, with the best epoch on val; draw the figures; write and show the summary."""
    accelerator = accelerator_for(config.device, config.precision)
    val: Evaluation = evaluate_batches(model, task, loaders["val"], accelerator)
    test: Evaluation = evaluate_batches(model, task, loaders["test"], accelerator)
    summary = {
        "test": _fractions(test),
        "val": _fractions(val),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "adapter_bytes": size_of(folder / ADAPTER),
        "peak_memory_bytes": result.peak_memory_bytes,
        "seconds": round(result.seconds, 3),
        "seed": config.seed,
        "versions": versions(),
    }
    if allocations := read_rows(folder / "allocation.jsonl"):
        allocation_figure(allocations, folder / "allocation.png")
    training_curves_figure(read_rows(folder / "metrics.jsonl"), folder / "curves.png")
    confusion_figure(test.confusion, data.classes, folder / "confusion.png")
    write_json(folder / SUMMARY, summary)
    console.print(_summary_table(summary, config))
    if BASELINE in data.notes:
        plain(console, BASELINE)
    plain(console, f"best epoch on val: {result.best_epoch} of {result.epochs_done}; results and figures in {folder}")
    return summary


def _fractions(evaluation: Evaluation) -> dict[str, float]:
    return {name: value for name, value in evaluation.metrics.items() if name != "loss"}


def _summary_table(summary: dict[str, Any], config: TrainConfig) -> Table:
    table = Table(title=f"{config.method} on {config.data}", show_header=False, title_justify="left")
    rows = {
        "test top-1": f"{summary['test']['top1']:.2%}",
        "test balanced accuracy": f"{summary['test']['balanced_accuracy']:.2%}",
        "val top-1": f"{summary['val']['top1']:.2%}",
        "trainable parameters": f"{summary['trainable_parameters']:,}",
        "adapter": f"{summary['adapter_bytes'] / 1e6:.2f} MB",
        "peak memory": f"{summary['peak_memory_bytes'] / 1e6:.0f} MB",
        "training time": f"{summary['seconds']:.0f} s",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table
