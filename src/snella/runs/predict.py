"""A finished run at work: load it, test it, predict with it, merge it.

RUN/adapter ─┐
             ├─ fingerprint agrees? ─ tuned model ─┬─ evaluate ─ table, RUN/evaluation/
backbone ────┘                                     ├─ predict ── table, JSON or CSV
                                                   └─ merge ──── a plain checkpoint, ONNX
"""

from __future__ import annotations

import csv as csv_format
import io
import json as json_format
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from snella.config.schema import TrainConfig, source_name
from snella.console import checking_images, plain
from snella.data.dataset import Images
from snella.data.images import UnreadableImage, image_files, is_image
from snella.data.loading import Batches
from snella.data.transforms.images import Preprocessing
from snella.errors import UserError
from snella.methods.table import load_adapter, merged
from snella.models.backbone import fingerprint
from snella.models.export import check_onnx, export_onnx
from snella.report.tables import fidelity_line, shown
from snella.runs.folder import ADAPTER, BASE, read_about, read_config, write_json, write_text, writing
from snella.runs.train import read_run_data, tell
from snella.tasks.generation.fidelity import check_features
from snella.tasks.interface import Generates, Predicts, Task, TaskModule
from snella.tasks.registry import TASKS
from snella.training.devices import accelerator_for, check_device
from snella.training.evaluation import evaluate as evaluate_batches

PREDICTIONS = "predictions"  # in the run folder: pictures that `predict` makes
EXAMPLES = 3  # images of its own test split that `predict RUN` shows


@dataclass(frozen=True)
class LoadedRun:
    """A run's tuned model, in eval mode, and what is needed to feed it."""

    config: TrainConfig
    about: dict[str, Any]  # adapter/snella.json
    module: TaskModule
    task: Task
    preprocessing: Preprocessing
    model: nn.Module


def load_run(folder: Path, device: str = "auto") -> LoadedRun:
    """Load the tuned model of a run: its backbone, checked by fingerprint, with the adapter.

    Raises:
        UserError: no finished run, damaged files, or the backbone found is not the one that was trained on.
    """
    config, about = read_config(folder), read_about(folder)
    module = TASKS[about["task"]]
    spec = module.spec_from(about)
    base = module.build(spec)
    if (folder / BASE).is_file():
        _reading(folder / BASE, lambda: base.load_state_dict(load_file(folder / BASE)))
    if fingerprint(base) != about["fingerprint"]:
        raise UserError(
            f"{folder / ADAPTER} is an adapter for another backbone: the weights of {spec.backbone.name} found here "
            "are not those it was trained on; restore them or train again"
        )
    model = _reading(folder / ADAPTER, lambda: load_adapter(about["method"], base, folder / ADAPTER))
    model.to(accelerator_for(device, "fp32").device).eval()
    preprocessing = Preprocessing.from_dict(about["preprocessing"])
    return LoadedRun(config, about, module, module.task_from(about), preprocessing, model)


def _reading(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except UserError:
        raise
    except (OSError, SafetensorError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"{path} is damaged or incomplete ({reason}); train again") from error


def evaluate(
    folder: Path,
    *,
    data: str | None = None,
    split: str = "test",
    features: str | None = None,
    samples: int = 64,
    batch_size: int = 64,
    device: str = "auto",
    console: Console | None = None,
) -> Any:
    """Test a run on a split of its own data, or on other data; writes RUN/evaluation/NAME.json and NAME.png.

    With `features`, the name of a model, `samples` images that the run makes are compared with those of the split.

    Raises:
        UserError: no finished run, data that cannot be read or is not of its classes, or another backbone.
    """
    console = console or Console()
    about = read_about(folder)
    _check(batch_size, device)
    if features is not None:
        if samples < 2:
            raise UserError(f"--samples {samples} is below 2")
        check_features(features)
    if data is not None and split != "test":
        raise UserError("--split chooses from the run's own data; of --data the test split is taken, or all")
    images, name = _images_of(folder, data, split, about, console)
    if features is not None and len(images) < 2:
        raise UserError(f"--features compares with 2 images or more, and there are {len(images)}; name more by --data")
    run = load_run(folder, device)
    if features is not None and not isinstance(run.task, Generates):
        raise UserError(f"--features: {folder} makes no images (its task is {about['task']}); leave it out")
    batches = Batches(
        images, run.module.eval_transform(run.preprocessing), batch_size=batch_size, shuffle=False, seed=0
    )
    accelerator = _accelerator(device, run.config.precision, console)
    result = evaluate_batches(run.model, run.task, batches, accelerator)
    if batches.unreadable:
        plain(console, f"{len(batches.unreadable)} unreadable images left out, the first: {batches.unreadable[0]}")
    target = folder / "evaluation"
    source = {} if data is None else {"data": data}
    found: dict[str, Any] = {**source, "metrics": result.metrics, **run.task.report(result)}
    write_json(target / f"{name}.json", found)
    for i, (kind, draw) in enumerate(run.task.figures(result).items()):
        draw(target / (f"{name}-{kind}.png" if i else f"{name}.png"))
    console.print(run.task.table(result))
    values = ", ".join(f"{label} {shown(key, result.metrics[key])}" for key, label in run.module.METRICS.items())
    plain(console, f"{name}: {values}; figures in {target}")
    if features is not None and isinstance(run.task, Generates):
        judged = run.task.judge(run.model, images, features, count=samples, console=console)
        write_json(target / f"{name}.json", {**found, "fidelity": asdict(judged)})
        plain(console, fidelity_line(judged))
    return result


def _images_of(folder: Path, data: str | None, split: str, about: dict[str, Any], console: Console) -> tuple[Any, str]:
    """The images to test on, and what to call them."""
    config = read_config(folder)
    if data is None:
        own = read_run_data(config, console)
        if own.classes != tuple(about["classes"]):
            raise UserError(f"{own.root} has other classes than when {folder} was trained; name data by --data")
        tell(own, console)
        return own.splits[split], split
    with checking_images(console) as progress:
        found = TASKS[about["task"]].read_test(data, about, seed=config.seed, progress=progress)
    tell(found, console)
    name = source_name(data)
    return found.splits["test"], f"data-{name}" if name in ("train", "val", "test") else name


def _accelerator(device: str, precision: str, console: Console) -> Accelerator:
    """For the run's precision, or fp32 where this (valid) device cannot do it."""
    try:
        return accelerator_for(device, precision)
    except UserError:
        plain(console, f"{precision}, in which it was trained, cannot be used here; evaluated in fp32")
        return accelerator_for(device, "fp32")


def predict(
    folder: Path,
    *,
    images: Sequence[str] = (),
    json: bool = False,
    csv: bool = False,
    out: str | None = None,
    pictures: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
    console: Console | None = None,
) -> int:
    """Predict image files, the images of folders, or three test images; returns how many could not be read.

    Those are named on standard error. Predictions go to standard output, as a table, JSON or CSV, or to the file `out`;
    pictures (masks) to the folder `pictures`, or to RUN/predictions.

    Raises:
        UserError: no finished run, a path that is not there, no readable image, a folder for pictures that is not new.
    """
    gallery = picture_folder(folder, pictures)
    _check(batch_size, device)
    if out and Path(out).exists() and (not Path(out).is_file() or is_image(out)):
        raise UserError(f"--out {out} exists and is no table of predictions; choose another name")
    chosen = Images(image_files(images)) if images else _own_examples(folder)
    run = load_run(folder, device)
    if not isinstance(run.task, Predicts):
        raise UserError(f"{folder} makes images and predicts none; snella predict {folder} --prompt TEXT")
    rows, unreadable = _predicted(run, run.task, chosen, batch_size, gallery)
    if json or (out and out.endswith(".json") and not csv):
        text = json_format.dumps(rows, indent=2, ensure_ascii=False) + "\n"
    elif csv or out:
        text = _csv_text([run.task.flat(row) for row in rows])
    else:
        console = console or Console()
        console.print(run.task.prediction_table(rows))
        if run.module.PICTURES:
            plain(console, f"pictures in {gallery}")
        return unreadable
    if out:
        write_text(Path(out), text)
        plain(console or Console(), f"{len(rows)} predictions in {out}")
    else:
        print(text, end="")
    return unreadable


def picture_folder(folder: Path, pictures: str | None) -> Path:
    """The folder for pictures: the given one, which must be new, or the run's own."""
    about = read_about(folder)
    if pictures is None:
        return folder / PREDICTIONS
    if not TASKS[about["task"]].PICTURES:
        raise UserError(f"--pictures: {folder} makes no pictures (its task is {about['task']}); leave it out")
    gallery = Path(pictures)
    if gallery.exists() and not (gallery.is_dir() and not any(gallery.iterdir())):
        raise UserError(f"{gallery} exists already; choose another name")
    return gallery


def _predicted(
    run: LoadedRun, task: Predicts, images: Images, batch_size: int, gallery: Path
) -> tuple[list[dict[str, Any]], int]:
    """The predictions' rows, and how many images could not be read; pictures are written to the gallery."""
    rows: list[dict[str, Any]] = []
    unreadable, taken = 0, set[str]()
    transform = run.module.eval_transform(run.preprocessing)
    for found in task.predict(run.model, images, transform, batch_size=batch_size):
        if isinstance(found, UnreadableImage):
            unreadable += 1
            plain(Console(stderr=True), f"snella: not predicted: {found}")
            continue
        stem = free_name(Path(found.row["image"]).stem, taken)
        files = {kind: gallery / f"{stem}-{kind}.png" for kind in found.pictures}
        for kind, picture in found.pictures.items():
            with writing(files[kind]) as partial:
                picture.save(partial, "PNG")
        rows.append({**found.row, **{kind: str(file) for kind, file in files.items()}})
    if not rows:
        raise UserError("none of the images can be read; give PNG, JPEG, WebP, BMP or TIFF files")
    return rows, unreadable


def free_name(stem: str, taken: set[str]) -> str:
    """A name that no other image has: images of different folders may share one."""
    name = next(name for name in chain([stem], (f"{stem}-{i}" for i in count(2))) if name not in taken)
    taken.add(name)
    return name


def _own_examples(folder: Path) -> Any:
    """A few test images of the run's own data, spread over it, without their labels."""
    test: Any = read_run_data(read_config(folder), Console(stderr=True)).splits["test"]
    chosen = [i * len(test) // EXAMPLES for i in range(min(EXAMPLES, len(test)))]
    return Images(tuple(test.paths[i] for i in chosen), read=test.read)


def _csv_text(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv_format.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def merge(folder: Path, *, out: str, onnx: str | None = None, console: Console | None = None) -> None:
    """Write the run's model as a plain timm or transformers checkpoint, and as ONNX where asked.

    Raises:
        UserError: no finished run, a target that exists already, missing packages for ONNX, or a task without it.
    """
    console = console or Console()
    about = read_about(folder)
    if onnx and not TASKS[about["task"]].ONNX:
        raise UserError(f"--onnx: {folder} is no single model to export (its task is {about['task']}); leave it out")
    for path in (Path(out), Path(onnx) if onnx else None):
        if path is not None and path.exists():
            raise UserError(f"{path} exists already; choose another name")
    if onnx:
        check_onnx()
    run = load_run(folder, "cpu")
    model = merged(run.config.method, run.model).eval()
    hint = run.module.save_merged(model, Path(out), run.about)
    plain(console, f"merged model in {out}; load it with {hint}")
    if onnx:
        difference = export_onnx(model, onnx, image_size=run.preprocessing.image_size)
        plain(console, f"ONNX model in {onnx}; its logits differ by {difference:.1e} at most")


def _check(batch_size: int, device: str) -> None:
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size} is below 1")
    check_device(device, "fp32")
