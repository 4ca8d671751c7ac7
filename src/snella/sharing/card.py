"""The model card of a pushed run, README.md: what it is, how well it does, how to load it, and under which licences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from snella.config.schema import source_name
from snella.errors import UserError, counted
from snella.methods.adapters import PEFT_FILES
from snella.models.backbone import HF, BackboneSpec
from snella.models.bundled import BACKBONES
from snella.models.export import base_hint
from snella.pages.intervals import RESAMPLES
from snella.pages.kept import KeptRun
from snella.pages.run_page import TASK_PAGES
from snella.report.tables import NOTHING, decimal_bytes, format_metric
from snella.runs.check import read_own_data
from snella.runs.folder import ADAPTER, BASE
from snella.sharing.package import Packed
from snella.tasks.registry import task_named

# the hub's word for a task, where it has one
PIPELINES = {
    "classify": "image-classification",
    "multilabel": "image-classification",
    "segment": "image-segmentation",
    "generate": "text-to-image",
}
SHOWN_CLASSES = 50
UNKNOWN = "not known here; see where it comes from"


@dataclass(frozen=True)
class Licences:
    """What may be done with it, in words or SPDX names."""

    adapter: str | None
    backbone: str
    data: str


def licences(run: KeptRun, adapter: str | None, data: str | None) -> Licences:
    """Return the licences of a run: what is given, else what its backbone and its data say of themselves."""
    return Licences(adapter, _backbone_licence(run.about["backbone"]), data or _data_licence(run) or UNKNOWN)


def card(run: KeptRun, found: Packed, name: str, licence: Licences, pictures: Sequence[str]) -> str:
    """Return a model card.

    Args:
        run: the run.
        found: it, without what belongs to this machine.
        name: OWNER/NAME.
        licence: of the adapter, the backbone and the data.
        pictures: files beside the card that are shown.
    """
    data = source_name(run.config.data.source or "data")
    parts = [
        _front(found, name, licence),
        f"# {run.config.method.name} on {data}",
        _lead(run, found, data),
        _scores(run),
        *(f"![{Path(file).stem}]({file})" for file in pictures),
        _loading(found, name),
        _licences(licence),
        _made(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(found: Packed, name: str, licence: Licences) -> str:
    """Return what the hub reads of a card."""
    task, backbone = found.about["task"], BackboneSpec(**found.about["backbone"])
    values: dict[str, Any] = {
        "library_name": "peft",
        "tags": list(dict.fromkeys(["snella", found.config.method.name, task])),
    }
    if task in PIPELINES:
        values["pipeline_tag"] = PIPELINES[task]
    if licence.adapter:
        values["license"] = licence.adapter
    if base := _hub_name(backbone, task):
        values["base_model"] = base
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---"


def _hub_name(backbone: BackboneSpec, task: str) -> str | None:
    """Return the repository of a backbone on the hub; None where it has none that is known."""
    name = backbone.name.removeprefix(HF).removeprefix("hf-hub:")
    if backbone.name in BACKBONES or backbone.checkpoint or not backbone.pretrained:
        return None
    if "/" in name:
        return name
    return f"timm/{name}" if task != "generate" and not backbone.name.startswith((HF, "local-dir:")) else None


def _lead(run: KeptRun, found: Packed, data: str) -> str:
    images = ", ".join(f"{count:,} {split}" for split, count in run.summary.get("images", {}).items())
    adapter = decimal_bytes(run.summary["adapter_bytes"])
    lines = [
        f"`{found.about['backbone']['name']}`, tuned by {run.config.method.name} to {run.about['task']}: data {data}, "
        f"{images} images. {run.summary['trainable_parameters']:,} parameters were trained; the adapter has {adapter}."
    ]
    if run.classes:
        more = len(run.classes) - SHOWN_CLASSES
        names = ", ".join(run.classes[:SHOWN_CLASSES]) + (f" and {more} more" if more > 0 else "")
        lines.append(f"{counted(len(run.classes), 'class', 'classes').capitalize()}: {names}.")
    if found.elsewhere:
        lines.append(f"It needs files that are not here: {', '.join(found.elsewhere)}.")
    return "\n\n".join(lines)


def _scores(run: KeptRun) -> str:
    """Return the metrics as a table, with the intervals that the report has."""
    task = TASK_PAGES.get(run.about["task"])
    splits = [split for split in ("test", "val") if split in run.summary]
    bounds = {s: task.bounds(run, run.outputs[s]) for s in splits if task and s in run.outputs}
    heads = ["", *(head for split in splits for head in (split, "95 % interval"))]
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for metric, label in task_named(run.about["task"]).shown_metrics(len(run.classes)).items():
        row = [label]
        for split in splits:
            value, ends = run.summary[split].get(metric), bounds.get(split, {}).get(metric)
            row.append(NOTHING if value is None else format_metric(metric, value))
            low_high = [format_metric(metric, end) for end in (ends.low, ends.high)] if ends else [NOTHING]
            row.append(" to ".join(low_high))
        rows.append(row)
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    text = f"Intervals: percentiles of {RESAMPLES:,} bootstrap resamples of the images. " if bounds else ""
    return f"## How well it does\n\n{table}\n\n{text}The epoch is the best on val, unless config.yaml says keep: last."


def _loading(found: Packed, name: str) -> str:
    """Return how it is loaded by the command line, PEFT and timm or transformers."""
    images = "IMAGE..." if not task_named(found.about["task"]).generates else "--prompt TEXT"
    lines = [
        "## How to load it",
        "By the command line (`pip install snella`):",
        f"```bash\nsnella predict {name} {images}\nsnella evaluate {name} --data FOLDER\n"
        f"snella merge {name} --out merged    # a plain checkpoint, which needs no snella\n```",
    ]
    backbone = BackboneSpec(**found.about["backbone"])
    whole_image = found.about["task"] in ("classify", "multilabel", "regress")
    if not whole_image or backbone.name in BACKBONES:
        lines.append("The model itself is built by snella; `snella merge` writes one that needs no snella.")
        return "\n\n".join(lines)
    call = _call(backbone)
    library = call.partition(".")[0]
    if PEFT_FILES[0] in found.files:
        code = f"import peft, snella, {library}\n\nbase = {call}\n"
        if found.with_base:
            code = "from huggingface_hub import hf_hub_download\nfrom safetensors.torch import load_file\n" + code
            code += f'base.load_state_dict(load_file(hf_hub_download("{name}", "{BASE}")))\n'
        code += f'model = peft.PeftModel.from_pretrained(base, "{name}", subfolder="{ADAPTER}")'
        lines += ["By PEFT:", f"```python\n{code}\n```"]
    load = 'timm.create_model("local-dir:merged", pretrained=True)'
    if library != "timm":
        load = f'{call.partition("(")[0]}("merged")'
    lines += [f"By {library}, after `snella merge`:", f"```python\nimport {library}\n\nmodel = {load}\n```"]
    return "\n\n".join(lines)


def _call(backbone: BackboneSpec) -> str:
    """Return the call that makes the untuned backbone at the run's image size, with a new head."""
    call = base_hint(backbone).partition("; ")[0]
    known = _timm_entry(backbone.name)
    if known is None or not backbone.image_size or not known.fixed_input_size:
        return call
    return call if backbone.image_size == known.input_size[-1] else f"{call[:-1]}, img_size={backbone.image_size})"


def _timm_entry(name: str) -> Any:
    """Return what timm knows of a backbone's weights; None for those of others."""
    import timm

    return timm.models.get_pretrained_cfg(name) if timm.is_model(name.partition(".")[0]) else None


def _licences(licence: Licences) -> str:
    rows = {"adapter": licence.adapter or "not said", "backbone": licence.backbone, "data": licence.data}
    return "## Licences\n\n" + "\n".join(f"- {what}: {words}" for what, words in rows.items())


def _made(run: KeptRun) -> str:
    versions: Mapping[str, str] = run.summary.get("versions", {})
    words = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"## How it was made\n\nAll settings are in `config.yaml`, a recipe of `snella train`. Made with {words}."


def _backbone_licence(backbone: Mapping[str, Any]) -> str:
    name = backbone["name"]
    if name in BACKBONES:
        return BACKBONES[name].licence
    if not backbone.get("pretrained", True):
        return "none: it was not pre-trained"
    known = _timm_entry(name)
    return getattr(known, "license", None) or UNKNOWN


def _data_licence(run: KeptRun) -> str | None:
    """Return what the data says of its licence; None where it says nothing, or is not there any more."""
    try:
        data = read_own_data(run.folder, run.config, run.about, Console(quiet=True))
    except UserError:
        return None
    said = [note.removeprefix("licence: ") for note in data.notes if note.startswith("licence: ")]
    return "; ".join(said) or None
