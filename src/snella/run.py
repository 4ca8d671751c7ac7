"""A run, from config to result: joins data, task, backbone, method, training and report.

config ─ checks ─ data ─ backbone ─ method ─ fit ─┬─ adapter/ (best epoch on val)
                                                  ├─ val and test metrics ─ summary.json
                                                  └─ figures
"""

from __future__ import annotations

import csv as _csv
import io
import json as _json
import math
import os
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import nn

from snella.config import SMOKE_PER_CLASS, TrainConfig, run_folder, shrunk, validate
from snella.console import checking_images, plain
from snella.data import (
    Augmentation,
    Batches,
    ImageData,
    Images,
    Preprocessing,
    UnreadableImage,
    class_weights,
    eval_transform,
    read_data,
    read_test_data,
    train_transform,
)
from snella.data.elpv import BASELINE
from snella.data.images import image_files
from snella.errors import UserError
from snella.export import check_onnx, export_onnx, loading_hint, save_merged
from snella.methods import MethodSettings, after_step, load_adapter, merged, save_adapter, wrap
from snella.report.allocation import allocation_figure
from snella.report.figures import confusion_figure, training_curves_figure
from snella.runfolder import (
    ABOUT,
    ADAPTER,
    BASE,
    SUMMARY,
    check_claim,
    claim,
    read_about,
    read_config,
    read_summary,
    size_of,
    state_of,
    versions,
    write_json,
    write_text,
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

    data = _read(config, console)
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


def evaluate(
    folder: Path,
    *,
    data: str | None = None,
    split: str = "test",
    batch_size: int = 64,
    device: str = "auto",
    console: Console | None = None,
) -> Evaluation:
    """Test a run on a split of its own data, or on other data; writes RUN/evaluation/NAME.json and .png.

    Raises:
        UserError: no finished run, data that cannot be read, or a backbone that is not the run's.
    """
    console = console or Console()
    run = load_run(folder, device)
    if data is None:
        images, name = _read(run.config, console).splits[split], split
    else:
        with checking_images(console) as progress:
            found = read_test_data(data, run.classes, seed=run.config.seed, progress=progress)
        _tell(found, console)
        images, name = found.splits["test"], Path(data).name or "data"
    batches = Batches(images, eval_transform(run.preprocessing), batch_size=batch_size, shuffle=False, seed=0)
    accelerator = accelerator_for(device, run.config.precision)
    result: Evaluation = evaluate_batches(run.model, Classify(run.classes), batches, accelerator)
    target = folder / "evaluation"
    target.mkdir(exist_ok=True)
    write_json(
        target / f"{name}.json",
        {
            "metrics": result.metrics,
            "classes": [asdict(row) for row in result.table],
            "confusion": result.confusion.tolist(),
        },
    )
    confusion_figure(result.confusion, run.classes, target / f"{name}.png")
    console.print(_class_table(result))
    metrics = result.metrics
    plain(
        console,
        f"{name}: top-1 {metrics['top1']:.2%}, top-5 {metrics['top5']:.2%}, "
        f"balanced accuracy {metrics['balanced_accuracy']:.2%}; details in {target}",
    )
    return result


def predict(
    folder: Path,
    *,
    images: tuple[str, ...] = (),
    json: bool = False,
    csv: bool = False,
    out: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
    console: Console | None = None,
) -> int:
    """Classify image files, the images of folders, or three test images; return how many could not be read.

    Raises:
        UserError: no finished run, a path that is not there, or no image among them.
    """
    console = console or Console()
    run = load_run(folder, device)
    if images:
        paths = image_files(images)
    else:
        paths = _read(run.config, Console(quiet=True)).splits["test"].paths[:3]
    rows, unreadable = [], []
    transform, examples = eval_transform(run.preprocessing), Images(paths)
    for start in range(0, len(paths), batch_size):
        names, pixels = [], []
        for index in range(start, min(start + batch_size, len(paths))):
            try:
                pixels.append(transform(examples[index])["image"])
                names.append(paths[index])
            except UnreadableImage as error:
                unreadable.append(error)
        if pixels:
            batch = torch.stack(pixels).to(next(run.model.parameters()).device)
            probabilities = Classify(run.classes).predict(run.model, batch)
            rows += [_prediction(n, p, run.classes) for n, p in zip(names, probabilities.tolist(), strict=True)]
    for error in unreadable:
        plain(Console(stderr=True), f"snella: skipped {error}")
    if not rows:
        raise UserError("none of the images can be read; give PNG, JPEG, WebP, BMP or TIFF files")
    text = None
    if json or (out and out.endswith(".json") and not csv):
        text = _json.dumps(rows, indent=2, ensure_ascii=False) + "\n"
    elif csv or out:
        text = _csv_text(rows, run.classes)
    if text is None:
        console.print(_prediction_table(rows))
    elif out:
        write_text(Path(out), text)
        plain(console, f"{len(rows)} predictions in {out}")
    else:
        print(text, end="")
    return len(unreadable)


def merge(folder: Path, *, out: str, onnx: str | None = None, console: Console | None = None) -> None:
    """Write the run's model as a plain timm or transformers checkpoint, and as ONNX where asked.

    Raises:
        UserError: no finished run, a target that exists already, missing packages for ONNX.
    """
    console = console or Console()
    target = Path(out)
    for path in (target, Path(onnx) if onnx else None):
        if path is not None and path.exists():
            raise UserError(f"{path} exists; choose another name or remove it")
    if onnx:
        check_onnx()
    run = load_run(folder, "cpu")
    model = merged(run.config.method, run.model).eval()
    save_merged(model, target, spec=run.spec, classes=run.classes, preprocessing=run.preprocessing)
    plain(console, f"merged model in {target}: {loading_hint(run.spec, target)}")
    if onnx:
        difference = export_onnx(model, onnx, image_size=run.preprocessing.image_size)
        plain(console, f"ONNX model in {onnx}; its logits differ by at most {difference:.1e}")


@dataclass(frozen=True)
class LoadedRun:
    """A run's model, ready to be used, and what is needed to feed it."""

    config: TrainConfig
    spec: BackboneSpec
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    model: nn.Module


def load_run(folder: Path, device: str = "auto") -> LoadedRun:
    """Load the tuned model of a run: its backbone, checked by fingerprint, with the adapter.

    Raises:
        UserError: no finished run, or the backbone found is not the one that was trained on.
    """
    config, about = read_config(folder), read_about(folder)
    spec = BackboneSpec(**about["backbone"])
    base = build_backbone(spec)
    if (folder / BASE).is_file():
        base.load_state_dict(load_file(folder / BASE))
    if fingerprint(base) != about["fingerprint"]:
        raise UserError(
            f"{folder / ADAPTER} was trained on another backbone than the {spec.name} found here; "
            "use the weights it was trained with, or train again"
        )
    model = load_adapter(config.method, base, folder / ADAPTER)
    model.to(accelerator_for(device, config.precision).device).eval()
    return LoadedRun(config, spec, tuple(about["classes"]), Preprocessing.from_dict(about["preprocessing"]), model)


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


def _read(config: TrainConfig, console: Console) -> ImageData:
    assert config.data is not None  # validated
    with checking_images(console) as progress:
        data = read_data(
            config.data,
            seed=config.seed,
            val_fraction=config.val_fraction,
            test_fraction=config.test_fraction,
            progress=progress,
        )
    _tell(data, console)
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


def _tell(data: ImageData, console: Console) -> None:
    counts = ", ".join(f"{len(images):,} {name}" for name, images in data.splits.items())
    plain(console, f"{data.root}: {data.layout}, {len(data.classes)} classes, {counts} images")
    for note in data.notes:
        plain(console, f"  {note}")
    if data.skipped:
        plain(console, f"  skipped {len(data.skipped)} unreadable images, such as {data.skipped[0]}")


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
    targets = config.target_modules
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
        # one entry that is no plain name is a regular expression, or all-linear
        target_modules=None
        if targets is None
        else targets[0]
        if len(targets) == 1 and not targets[0].replace(".", "").isidentifier()
        else list(targets),
        update_dropout=config.update_dropout,
        update_drop_path=config.update_drop_path,
    )


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
        "test": test.metrics,
        "val": val.metrics,
        "best_epoch": result.best_epoch,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "adapter_bytes": size_of(folder / ADAPTER),
        "peak_memory_bytes": result.peak_memory_bytes,
        "seconds": result.seconds,
        "seed": config.seed,
        "versions": versions(),
    }
    allocation = folder / "allocation.jsonl"
    records = [_json.loads(line) for line in allocation.read_text().splitlines()] if allocation.is_file() else []
    if records:
        allocation_figure(records, folder / "allocation.png")
    metrics = [_json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    training_curves_figure(metrics, folder / "curves.png")
    confusion_figure(test.confusion, data.classes, folder / "confusion.png")
    write_json(folder / SUMMARY, summary)
    console.print(_summary_table(summary, config))
    if config.data == "elpv" and not config.smoke:
        plain(console, BASELINE)
    plain(console, f"results in {folder}")
    return summary


def _summary_table(summary: dict[str, Any], config: TrainConfig) -> Table:
    table = Table(title=f"{config.method} on {config.data}", show_header=False, title_justify="left")
    rows = {
        "test top-1": f"{summary['test']['top1']:.2%}",
        "test balanced accuracy": f"{summary['test']['balanced_accuracy']:.2%}",
        "best epoch on val": f"{summary['best_epoch']} (top-1 {summary['val']['top1']:.2%})",
        "trainable parameters": f"{summary['trainable_parameters']:,}",
        "adapter": f"{summary['adapter_bytes'] / 1e6:.1f} MB",
        "peak memory": f"{summary['peak_memory_bytes'] / 1e6:.0f} MB",
        "training time": f"{summary['seconds']:.0f} s",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _class_table(result: Evaluation) -> Table:
    table = Table(title="by class", title_justify="left")
    for column in ("class", "images", "recall", "precision", "f1"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for row in result.table:
        shares = ("–" if share is None else f"{share:.2%}" for share in (row.recall, row.precision, row.f1))
        table.add_row(row.name, f"{row.count:,}", *shares)
    return table


def _prediction(name: str, probabilities: list[float], classes: tuple[str, ...]) -> dict[str, Any]:
    best = max(range(len(classes)), key=probabilities.__getitem__)
    return {
        "image": name,
        "class": classes[best],
        "probability": probabilities[best],
        "probabilities": dict(zip(classes, probabilities, strict=True)),
    }


def _prediction_table(rows: list[dict[str, Any]]) -> Table:
    table = Table()
    for column in ("image", "class", "probability", "next"):
        table.add_column(column, justify="right" if column == "probability" else "left", overflow="fold")
    for row in rows:
        others = sorted(row["probabilities"].items(), key=lambda item: -item[1])[1:3]
        following = ", ".join(f"{name} {share:.1%}" for name, share in others)
        table.add_row(row["image"], row["class"], f"{row['probability']:.1%}", following)
    return table


def _csv_text(rows: list[dict[str, Any]], classes: tuple[str, ...]) -> str:
    text = io.StringIO()
    writer = _csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "class", "probability", *classes])
    for row in rows:
        writer.writerow([row["image"], row["class"], row["probability"], *(row["probabilities"][c] for c in classes)])
    return text.getvalue()
