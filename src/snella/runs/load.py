"""Load the tuned model of a finished run, and merge it into its backbone.

RUN/adapter ─┐
             ├─ fingerprint agrees? ─ tuned model ─┬─ evaluate ─ table, RUN/evaluation/
backbone ────┘                                     ├─ predict ── table, JSON or CSV
                                                   └─ merge ──── a plain checkpoint, ONNX
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from torch import nn

from snella.config.schema import TrainConfig
from snella.console import Terminal, print_line
from snella.data.images import UnreadableImage
from snella.data.loading import Examples, ImageBatches
from snella.data.transforms.images import Preprocessing
from snella.errors import UserError, short_reason
from snella.explain.pictures import Explain, explainer
from snella.files import refuse_existing
from snella.methods.adapters import load_adapter, merged, read_tensors
from snella.models.backbone import Ensemble, fingerprint
from snella.models.export import check_onnx, export_onnx
from snella.runs.devices import check_device
from snella.runs.folder import ABOUT, ADAPTER, BASE, read_about, read_config
from snella.tasks.interface import Prediction, Task, TaskLearner
from snella.tasks.registry import task_named
from snella.tuner import set_base_precision

T = TypeVar("T")
OF_ONE_RUN = {"method", "backbone", "fingerprint", "versions", "arithmetic"}  # what runs of an ensemble may differ in


@dataclass(frozen=True)
class LoadedRun:
    """A run's tuned model, in eval mode, and what is needed to feed it."""

    config: TrainConfig
    saved: dict[str, Any]  # adapter/snella.json
    task: Task[Any, Any, Any]
    learner: TaskLearner[Any, Any, Any]
    preprocessing: Preprocessing
    model: nn.Module

    def batches(self, images: Examples, batch_size: int) -> ImageBatches:
        """Return images as batches to evaluate, in order."""
        transform = self.task.eval_transform(self.preprocessing)
        return ImageBatches(images, transform, batch_size=batch_size, shuffle=False, seed=0)

    def predictions(self, images: Any, batch_size: int) -> Iterator[Prediction | UnreadableImage]:
        """Yield, in order of the images, what is found in each, or why nothing is."""
        transform = self.task.eval_transform(self.preprocessing)
        return self.learner.predict(self.model, images, transform, batch_size=batch_size)

    def explainer(self) -> Explain:
        """Return what paints over an image what a class of it rests on. Raises UserError where there are no maps."""
        transform = self.task.eval_transform(self.preprocessing)
        return explainer(self.model, self.preprocessing, transform, mirrored=self.saved.get("tta") == "flip")


def load_run(folder: Path, device: torch.device | str = "cpu") -> LoadedRun:
    """Load the tuned model of a run onto a device: its backbone, checked by fingerprint, with the adapter.

    Raises:
        UserError: no finished run, damaged files, or the backbone found is not the one that was trained on.
    """
    config, saved = read_config(folder), read_about(folder)
    task, about = task_named(saved["task"]), folder / ADAPTER / ABOUT
    spec = _made_of(about, lambda: task.spec_from(saved))
    preprocessing = _made_of(about, lambda: Preprocessing.from_dict(saved["preprocessing"]))
    learner = _made_of(about, lambda: task.learner_from(saved))
    base = _base(folder, saved, task, spec)
    set_base_precision(base, config.model.base_precision)
    set_base_precision(base, "fp32")  # the rounded values, in plain tensors, which are faster
    model = load_adapter(saved["method"], base, folder / ADAPTER)
    model.to(device).eval()
    return LoadedRun(config, saved, task, learner, preprocessing, model)


def untuned(folder: Path) -> nn.Module:
    """Return a run's model as it was before the training, in the precision that it came in. Raises as `load_run`."""
    saved = read_about(folder)
    task = task_named(saved["task"])
    return _base(folder, saved, task, _made_of(folder / ADAPTER / ABOUT, lambda: task.spec_from(saved)))


def _base(folder: Path, saved: dict[str, Any], task: Task[Any, Any, Any], spec: Any) -> nn.Module:
    base = _made_of(folder / ADAPTER / ABOUT, lambda: task.build(spec))
    if (folder / BASE).is_file():
        weights = read_tensors(folder / BASE)
        _made_of(folder / BASE, lambda: base.load_state_dict(weights))
    if fingerprint(base) != saved["fingerprint"]:
        raise UserError(
            f"{folder / ADAPTER} is an adapter for another backbone: the weights of {spec.backbone.name} found here "
            "are not those it was trained on; restore them or train again"
        )
    return base


def load_ensemble(folders: Sequence[Path], device: torch.device | str = "cpu") -> LoadedRun:
    """Load runs, of any backbones, as one whose probabilities are the mean of theirs; one run alone as it is.

    Raises:
        UserError: as `load_run` does, or the runs have other tasks, classes or preprocessing.
    """
    runs = [load_run(folder, device) for folder in folders]
    first = runs[0]
    if len(runs) == 1:
        return first
    if not first.task.ensembles:
        raise UserError(f"{folders[0]}: there is no mean of several runs where the task is {first.saved['task']}")
    for folder, run in zip(folders, runs, strict=True):
        if key := first_difference(first.saved, run.saved, but=OF_ONE_RUN):
            raise UserError(f"{folders[0]} and {folder} differ in {key}: there is no mean of them")
    return replace(first, model=Ensemble([run.model for run in runs]).eval())


def first_difference(one: Mapping[str, Any], other: Mapping[str, Any], *, but: Collection[str] = ()) -> str | None:
    """Return the first key, by name, whose values differ; None where none does."""
    keys = sorted(key for key in one.keys() | other.keys() if key not in but)
    return next((key for key in keys if one.get(key) != other.get(key)), None)


def _made_of(path: Path, make: Callable[[], T]) -> T:
    """Return what is made of a file's values. Raises UserError, which names the file, where nothing can be."""
    try:
        return make()
    except UserError:
        raise
    except Exception as error:  # values of the right types that no library function takes
        raise UserError(f"{path} is damaged or incomplete ({short_reason(error)}); train again") from error


def tell_views(run: LoadedRun, console: Console) -> None:
    """Say where a run looks at an image more often than the model that is made of it."""
    if run.saved.get("tta", "none") != "none":
        print_line(console, "it sees an image once; the run, and its metrics, take the mean of two views (--tta flip)")


def check_options(batch_size: int, device: str) -> None:
    """Refuse, before anything is read, a batch size or a device that cannot be. Raises UserError."""
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size} is below 1")
    check_device(device, "fp32")


def merge(folder: Path, *, out: str, onnx: str | None = None, console: Console | None = None) -> dict[str, Any]:
    """Write the run's model as a plain timm or transformers checkpoint, and as ONNX where asked; return what was made.

    Raises:
        UserError: no finished run, a target that exists already, missing packages for ONNX, or a task without it.
    """
    console = console or Terminal()
    saved = read_about(folder)
    if onnx and not task_named(saved["task"]).exports_onnx:
        raise UserError(f"--onnx: {folder} is not a single model to export (its task is {saved['task']}); leave it out")
    for path in (Path(out), Path(onnx) if onnx else None):
        if path is not None:
            refuse_existing(path)
    if onnx:
        check_onnx()
    run = load_run(folder, torch.device("cpu"))
    model = merged(run.config.method.name, run.model).eval()
    hint = run.task.save_merged(model, Path(out), run.saved)
    print_line(console, f"merged model in {out}; load it with {hint}")
    tell_views(run, console)
    if (precision := run.config.model.base_precision) != "fp32":
        print_line(console, f"its weights were rounded to {precision} before tuning, as --base-precision asked")
    found: dict[str, Any] = {"out": out, "load": hint}
    if onnx:
        difference = export_onnx(model, onnx, image_size=run.preprocessing.image_size)
        print_line(console, f"ONNX model in {onnx}; its logits differ by {difference:.1e} at most")
        found |= {"onnx": onnx, "onnx_difference": difference}
    return found
