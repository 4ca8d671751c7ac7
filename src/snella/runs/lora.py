"""A run's update as a LoRA, for what loads nothing else: how much of it that holds, and what it costs on val.

RUN/adapter ─ SVD of each layer's update ─ OUT/ ─┬─ adapter_config.json, adapter_model.safetensors ── PEFT
                                                 ├─ pytorch_lora_weights.safetensors ── load_lora_weights of diffusers
                                                 ├─ kohya.safetensors (UNets) ── ComfyUI, AUTOMATIC1111
                                                 └─ lora.json, README.md
"""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from peft import PeftModel
from rich.console import Console
from torch import nn

from snella.config.fields import read_number
from snella.console import Terminal, print_line, shown
from snella.errors import UserError
from snella.files import refuse_existing, write_json, write_text, writing_into
from snella.integrations.lora import DIFFUSERS_FILE, KOHYA_FILE, Lora, as_lora
from snella.report.tables import format_metric, new_table
from snella.runs.check import read_own_data
from snella.runs.evaluate import accelerator_for
from snella.runs.folder import BASE, read_about, read_config
from snella.runs.load import LoadedRun, load_run, tell_views, untuned
from snella.tasks.interface import LoraPlace
from snella.tasks.registry import task_named
from snella.training.evaluation import evaluate

CONVERTED = ("snella", "snell")  # methods whose updates are this package's
BATCH = 64  # images per forward pass, as `snella evaluate` has it
Metrics = dict[str, float]


def merge_as_lora(folder: Path, *, out: str, lora: str, console: Console | None = None) -> dict[str, Any]:
    """Write the run's update as a LoRA close to it, and say what each layer keeps of it and the metrics on val of both.

    The LoRA's metrics are those of the files as plain PEFT loads them. Where the run's images cannot be read, they are
    left open.

    Args:
        out: a new folder.
        lora: the rank, a whole number; or, with a point, the share of each update's squares that its rank has to hold.

    Raises:
        UserError: no finished run, one of another method, a folder that exists, a rank that no such LoRA can have, a
            layer that PEFT has no LoRA for, or a model that only this package makes.
    """
    console, rank = console or Terminal(), _rank(lora)
    config, saved, target = read_config(folder), read_about(folder), Path(out)
    if saved["method"] not in CONVERTED:
        name = saved["method"]
        reason = "is a LoRA already: RUN/adapter has PEFT's files" if name == "lora" else "has no such update"
        raise UserError(f"--lora: {folder} is a run of method {name}, which {reason}; leave --lora out")
    refuse_existing(target)
    accelerator = accelerator_for("auto", config.precision, console)
    base = untuned(folder)
    place = task_named(saved["task"]).lora_place(saved, base)
    run = load_run(folder, accelerator.device)
    assert isinstance(run.model, PeftModel)
    converted = as_lora(run.model, rank, str(run.model.active_adapter), place.part)
    val = _val(folder, run, console)
    before = _metrics(run, run.model, val, accelerator)
    with writing_into(target) as temporary:
        converted.save(temporary)
        if place.pipeline:
            converted.save_for_diffusers(temporary, place.pipeline)
        after = _metrics(run, _with_lora(base, place.part, temporary), val, accelerator)
        layers = {name: {"rank": layer.rank, "share": layer.share} for name, layer in converted.layers.items()}
        found = {"layers": layers, "val": {"run": before, "lora": after}}
        write_json(temporary / "lora.json", found)
        write_text(temporary / "README.md", _readme(folder, saved, place))
    _report(console, run, converted, target)
    tell_views(run, console)
    _tell_metrics(console, run, before, after)
    return {"out": out, **found}


def _rank(text: str) -> int | float:
    """Return the rank, or the share, that was asked for. Raises UserError."""
    with contextlib.suppress(ValueError):
        return read_number(text, int)
    share = math.nan
    with contextlib.suppress(ValueError):
        share = read_number(text, float)
    if not 0 < share <= 1:
        raise UserError(
            f"--lora {text} is neither a rank, a whole number from 1 (64), nor a share of the update, with a point, "
            "above 0 and up to 1 (0.99)"
        )
    return share


def _val(folder: Path, run: LoadedRun, console: Console) -> Any:
    """Return the val split of the run's own data; None, and a line that says why, where it cannot be had."""
    try:
        return read_own_data(folder, run.config, run.saved, console).splits["val"]
    except UserError as error:
        print_line(console, f"no metrics: the run's val images cannot be read ({error})")
        return None


def _metrics(run: LoadedRun, model: nn.Module, val: Any, accelerator: Accelerator) -> Metrics | None:
    if val is None:
        return None
    model.to(accelerator.device).eval()
    found = evaluate(model, run.learner, run.batches(val, BATCH), accelerator).metrics
    return {name: found[name] for name in run.task.metrics}


def _with_lora(base: nn.Module, part: str, folder: Path) -> nn.Module:
    """Return the untuned model with the LoRA in a folder, by nothing but PEFT."""
    inner = base.get_submodule(part)
    tuned = PeftModel.from_pretrained(inner, os.fspath(folder))  # type: ignore[arg-type]
    if not part:
        return tuned
    base.set_submodule(part, tuned)
    return base


def _report(console: Console, run: LoadedRun, lora: Lora, target: Path) -> None:
    table = new_table(f"the update as a LoRA, in {target}", left=["layer"], right=["rank", "share kept"])
    for name, layer in lora.layers.items():
        table.add_row(shown(name), str(layer.rank), f"{layer.share:.2%}")
    console.print(table)
    if (precision := run.config.model.base_precision) != "fp32":
        print_line(console, f"the run's weights were rounded to {precision}; the LoRA is measured on them as they were")


def _tell_metrics(console: Console, run: LoadedRun, before: Metrics | None, after: Metrics | None) -> None:
    if before is None or after is None:
        return
    changes = (
        f"{label} {format_metric(name, before[name])} -> {format_metric(name, after[name])}"
        for name, label in run.task.metrics.items()
    )
    print_line(console, f"val, the run -> the LoRA: {', '.join(changes)}")


def _readme(folder: Path, saved: dict[str, Any], place: LoraPlace) -> str:
    text = f"""# LoRA

A low-rank approximation of the update of a `{saved["method"]}` run; `lora.json` has each layer's rank and the share of
the update's squares that it holds, and the metrics on val before and after. It needs no `snella`:

```python
import peft

model = peft.PeftModel.from_pretrained(base, "this folder")
```

`base` is {place.base}.
"""
    if (folder / BASE).is_file():
        text += f"Its weights were drawn by the run: load the state dict {folder / BASE} into it.\n"
    if place.pipeline:
        text += f"\nIn a pipeline of diffusers: `pipe.load_lora_weights(folder)`, which reads `{DIFFUSERS_FILE}`.\n"
    if place.pipeline == "unet":
        text += f"ComfyUI and AUTOMATIC1111 read `{KOHYA_FILE}`.\n"
    return text
