"""Merge a run's update into its backbone."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from snella.console import Terminal, print_line
from snella.errors import UserError
from snella.methods.adapters import merged
from snella.models.export import check_onnx, export_onnx
from snella.runs.folder import read_about
from snella.runs.load import load_run
from snella.tasks.registry import task_named


def merge(folder: Path, *, out: str, onnx: str | None = None, console: Console | None = None) -> None:
    """Write the run's model as a plain timm or transformers checkpoint, and as ONNX where asked.

    Raises:
        UserError: no finished run, a target that exists already, missing packages for ONNX, or a task without it.
    """
    console = console or Terminal()
    saved = read_about(folder)
    if onnx and not task_named(saved["task"]).exports_onnx:
        raise UserError(f"--onnx: {folder} is not a single model to export (its task is {saved['task']}); leave it out")
    for path in (Path(out), Path(onnx) if onnx else None):
        if path is not None and path.exists():
            raise UserError(f"{path} exists already; choose another name")
    if onnx:
        check_onnx()
    run = load_run(folder, torch.device("cpu"))
    model = merged(run.config.method.name, run.model).eval()
    hint = run.task.save_merged(model, Path(out), run.saved)
    print_line(console, f"merged model in {out}; load it with {hint}")
    if onnx:
        difference = export_onnx(model, onnx, image_size=run.preprocessing.image_size)
        print_line(console, f"ONNX model in {onnx}; its logits differ by {difference:.1e} at most")
