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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from snella.config import TrainConfig
from snella.console import checking_images, plain
from snella.data import Batches, Images, Preprocessing, UnreadableImage, eval_transform, image_files, read_test_data
from snella.errors import UserError
from snella.export import check_onnx, export_onnx, loading_hint, save_merged
from snella.methods import load_adapter, merged
from snella.report.figures import confusion_figure
from snella.report.tables import class_table, prediction_table
from snella.run import read_run_data, tell
from snella.runfolder import ADAPTER, BASE, read_about, read_config, write_json, write_text
from snella.tasks.backbone import BackboneSpec, build_backbone, fingerprint
from snella.tasks.classify import Classify, Evaluation
from snella.training.devices import accelerator_for, check_device
from snella.training.evaluation import evaluate as evaluate_batches

EXAMPLES = 3  # images of its own test split that `predict RUN` shows


@dataclass(frozen=True)
class LoadedRun:
    """A run's tuned model, in eval mode, and what is needed to feed it."""

    config: TrainConfig
    spec: BackboneSpec
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    model: nn.Module


def load_run(folder: Path, device: str = "auto") -> LoadedRun:
    """Load the tuned model of a run: its backbone, checked by fingerprint, with the adapter.

    Raises:
        UserError: no finished run, damaged files, or the backbone found is not the one that was trained on.
    """
    config, about = read_config(folder), read_about(folder)
    spec = BackboneSpec(**about["backbone"])
    base = build_backbone(spec)
    if (folder / BASE).is_file():
        _reading(folder / BASE, lambda: base.load_state_dict(load_file(folder / BASE)))
    if fingerprint(base) != about["fingerprint"]:
        raise UserError(
            f"{folder / ADAPTER} is an adapter for another backbone: the weights of {spec.name} found here are not "
            "those it was trained on; restore them or train again"
        )
    model = _reading(folder / ADAPTER, lambda: load_adapter(about["method"], base, folder / ADAPTER))
    model.to(accelerator_for(device, "fp32").device).eval()
    return LoadedRun(config, spec, tuple(about["classes"]), Preprocessing.from_dict(about["preprocessing"]), model)


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
    batch_size: int = 64,
    device: str = "auto",
    console: Console | None = None,
) -> Evaluation:
    """Test a run on a split of its own data, or on other data; writes RUN/evaluation/NAME.json and NAME.png.

    Raises:
        UserError: no finished run, data that cannot be read or is not of its classes, or another backbone.
    """
    console = console or Console()
    about = read_about(folder)
    _check(batch_size, device)
    if data is not None and split != "test":
        raise UserError("--split chooses from the run's own data; of --data the test split is taken, or all")
    classes = tuple(about["classes"])
    images, name = _images_of(folder, data, split, classes, console)
    run = load_run(folder, device)
    batches = Batches(images, eval_transform(run.preprocessing), batch_size=batch_size, shuffle=False, seed=0)
    accelerator = accelerator_for(device, run.config.precision)
    result: Evaluation = evaluate_batches(run.model, Classify(classes), batches, accelerator)
    if batches.unreadable:
        plain(console, f"{len(batches.unreadable)} unreadable images left out, the first: {batches.unreadable[0]}")
    target = folder / "evaluation"
    report = {
        "metrics": result.metrics,
        "classes": [asdict(row) for row in result.table],
        "confusion": result.confusion.tolist(),
    }
    write_json(target / f"{name}.json", report)
    confusion_figure(result.confusion, classes, target / f"{name}.png")
    console.print(class_table(result.table))
    metrics = result.metrics
    plain(
        console,
        f"{name}: top-1 {metrics['top1']:.2%}, top-5 {metrics['top5']:.2%}, "
        f"balanced accuracy {metrics['balanced_accuracy']:.2%}; figures in {target}",
    )
    return result


def _images_of(
    folder: Path, data: str | None, split: str, classes: tuple[str, ...], console: Console
) -> tuple[Images, str]:
    """The images to test on, and what to call them."""
    config = read_config(folder)
    if data is None:
        own = read_run_data(config, console)
        if own.classes != classes:
            raise UserError(f"{own.root} has other classes than when {folder} was trained; name data by --data")
        tell(own, console)
        return own.splits[split], split
    with checking_images(console) as progress:
        found = read_test_data(data, classes, seed=config.seed, progress=progress)
    tell(found, console)
    return found.splits["test"], Path(data).resolve().stem or "data"


def predict(
    folder: Path,
    *,
    images: Sequence[str] = (),
    json: bool = False,
    csv: bool = False,
    out: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
    console: Console | None = None,
) -> int:
    """Classify image files, the images of folders, or three test images; returns how many could not be read.

    Those are named on standard error. Predictions go to standard output, as a table, JSON or CSV, or to the file `out`.

    Raises:
        UserError: no finished run, a path that is not there, or no readable image.
    """
    read_about(folder)
    _check(batch_size, device)
    chosen = Images(image_files(images)) if images else _own_examples(folder)
    run = load_run(folder, device)
    rows, unreadable = [], []
    for found in _predictions(run, chosen, batch_size):
        if isinstance(found, UnreadableImage):
            unreadable.append(found)
            plain(Console(stderr=True), f"snella: not predicted: {found}")
        else:
            rows.append(found)
    if not rows:
        raise UserError("none of the images can be read; give PNG, JPEG, WebP, BMP or TIFF files")
    if json or (out and out.endswith(".json") and not csv):
        text = json_format.dumps(rows, indent=2, ensure_ascii=False) + "\n"
    elif csv or out:
        text = _csv_text(rows, run.classes)
    else:
        (console or Console()).print(prediction_table(rows))
        return len(unreadable)
    if out:
        write_text(Path(out), text)
        plain(console or Console(), f"{len(rows)} predictions in {out}")
    else:
        print(text, end="")
    return len(unreadable)


def _own_examples(folder: Path) -> Images:
    """A few test images of the run's own data, spread over it."""
    test = read_run_data(read_config(folder), Console(stderr=True)).splits["test"]
    chosen = [i * len(test) // EXAMPLES for i in range(min(EXAMPLES, len(test)))]
    return Images(tuple(test.paths[i] for i in chosen), read=test.read)


def _predictions(run: LoadedRun, images: Images, batch_size: int) -> Iterator[dict[str, Any] | UnreadableImage]:
    """In order of the images: the prediction, or why there is none."""
    transform, task = eval_transform(run.preprocessing), Classify(run.classes)
    device = next(run.model.parameters()).device

    def opened(index: int) -> Tensor | UnreadableImage:
        try:
            return transform(images[index])["image"]
        except UnreadableImage as error:
            return error

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(images), batch_size):
            names = images.paths[start : start + batch_size]
            found = list(pool.map(opened, range(start, start + len(names))))
            pixels = [image for image in found if isinstance(image, Tensor)]
            shares = iter(task.predict(run.model, torch.stack(pixels).to(device)).tolist() if pixels else ())
            for name, image in zip(names, found, strict=True):
                yield image if isinstance(image, UnreadableImage) else _prediction(name, next(shares), run.classes)


def _prediction(name: str, probabilities: list[float], classes: tuple[str, ...]) -> dict[str, Any]:
    best = max(range(len(classes)), key=probabilities.__getitem__)
    return {
        "image": name,
        "class": classes[best],
        "probability": probabilities[best],
        "probabilities": dict(zip(classes, probabilities, strict=True)),
    }


def _csv_text(rows: list[dict[str, Any]], classes: tuple[str, ...]) -> str:
    text = io.StringIO()
    writer = csv_format.writer(text, lineterminator="\n")
    writer.writerow(["image", "class", "probability", *classes])
    for row in rows:
        writer.writerow([row["image"], row["class"], row["probability"], *(row["probabilities"][c] for c in classes)])
    return text.getvalue()


def merge(folder: Path, *, out: str, onnx: str | None = None, console: Console | None = None) -> None:
    """Write the run's model as a plain timm or transformers checkpoint, and as ONNX where asked.

    Raises:
        UserError: no finished run, a target that exists already, missing packages for ONNX.
    """
    console = console or Console()
    read_about(folder)
    for path in (Path(out), Path(onnx) if onnx else None):
        if path is not None and path.exists():
            raise UserError(f"{path} exists already; choose another name")
    if onnx:
        check_onnx()
    run = load_run(folder, "cpu")
    model = merged(run.config.method, run.model).eval()
    save_merged(model, out, spec=run.spec, classes=run.classes, preprocessing=run.preprocessing)
    plain(console, f"merged model in {out}; load it with {loading_hint(run.spec, out)}")
    if onnx:
        difference = export_onnx(model, onnx, image_size=run.preprocessing.image_size)
        plain(console, f"ONNX model in {onnx}; its logits differ by {difference:.1e} at most")


def _check(batch_size: int, device: str) -> None:
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size} is below 1")
    check_device(device, "fp32")
