"""What of a run folder goes to the hub: enough to evaluate, predict and merge with it, and nothing of the data.

config.yaml, adapter/snella.json   without the paths of this machine     start.json   without the images' names
adapter/, base.safetensors, summary.json, *.jsonl, allocation.png, curves.png

Not pushed: images and what shows or names them (figures of predictions, outputs/, splits.csv, report.html, samples/,
predictions/, evaluation/), checkpoints and trackers.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snella.config.recipe import FOLDER_PREFIXES, PLACES, to_yaml, whole_path
from snella.config.schema import TrainConfig
from snella.errors import UserError
from snella.files import write_checksums, write_json, write_text
from snella.report.rows import ALLOCATION, METRICS
from snella.runs.check import read_start
from snella.runs.folder import ABOUT, ADAPTER, BASE, CONFIG, START, SUMMARY, read_about, read_config, read_summary

PICTURES = ("allocation.png", "curves.png")  # which show no image of the data
MODEL_CARD = "README.md"
FILES = (CONFIG, f"{ADAPTER}/*", BASE, SUMMARY, METRICS, ALLOCATION, START, *PICTURES, MODEL_CARD)
KEPT_OF_SUMMARY = (  # nothing by which an image could be known
    *("val", "test", "test_last", "selection", "images", "trainable_parameters", "adapter_bytes", "peak_memory_bytes"),
    *("seconds", "device", "seed", "versions", "classes", "targets", "kappa", "noise_levels"),
)
_FILE = re.compile(r"\.[A-Za-z]{2,5}(#.*)?$")  # how the name of an image ends, or of a part of one
_PREFIX = re.compile("|".join([*FOLDER_PREFIXES, "hfds/", "torch/", "wds/"]))


@dataclass(frozen=True)
class Packed:
    """A run without what belongs to this machine."""

    config: TrainConfig
    about: Mapping[str, Any]  # adapter/snella.json
    elsewhere: tuple[str, ...]  # files and folders that whoever loads the run has to have, by name
    files: frozenset[str]  # of the adapter
    with_base: bool  # whether the backbone's weights are in the run: they are of no other place


def packed(folder: Path) -> Packed:
    """Return a run's settings and facts without paths of this machine. Raises UserError as `read_about`."""
    config, about = read_config(folder), read_about(folder)
    changed = {name: shorter for name in PLACES if (shorter := _shortened(config, name)) is not None}
    values = {config.value(name): shorter or None for name, shorter in changed.items()}
    unset = {"tracker": None, "tracker_adapter": False, "tensorboard": False}
    own = config.changed(**{name: shorter or None for name, shorter in changed.items()}, **unset)
    own_prompts = config.generate.sample_prompts is not None or about.get("condition") != "text"
    if "prompts" in about and not own_prompts and config.generate.prompt is None:
        about["prompts"] = []  # captions of the data
    needed = tuple(shorter for name, shorter in changed.items() if shorter)
    files = frozenset(path.name for path in (folder / ADAPTER).iterdir())
    return Packed(own, _replaced(about, values), needed, files, (folder / BASE).is_file())


def stage(folder: Path, target: Path) -> Packed:
    """Write what is pushed of a run, but for the card, to a new folder.

    Raises:
        UserError: the run is not finished or damaged, or a path of this machine would be left in it.
    """
    found, summary, start = packed(folder), read_summary(folder), read_start(folder)
    shutil.copytree(folder / ADAPTER, target / ADAPTER)
    for name in (BASE, METRICS, ALLOCATION, *PICTURES):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    write_text(target / CONFIG, to_yaml(found.config))
    write_json(target / ADAPTER / ABOUT, found.about)
    write_json(target / SUMMARY, {name: summary[name] for name in KEPT_OF_SUMMARY if name in summary})
    if start is not None:
        write_json(target / START, start | {"entries": None})
    write_checksums(target / ADAPTER)
    check_private(folder, target)
    return found


def check_private(folder: Path, target: Path) -> None:
    """Refuse to push files that name a path of this machine or an image of the data. Raises UserError."""
    config, start = read_config(folder), read_start(folder) or {}
    places = {str(folder.resolve()), *(p for name in PLACES if (p := _path(config, name)) is not None)}
    names = (name for known in (start.get("entries") or {}).values() for name in known)
    images = {name for name in names if _FILE.search(name)}
    for path in target.rglob("*"):
        if path.suffix in (".json", ".yaml", ".md"):
            text = path.read_text(encoding="utf-8", errors="surrogateescape")
            for word in (*places, *images):
                if word in text:
                    name = path.relative_to(target)
                    raise UserError(f"{name} names {word}, which would be pushed; take it out of {folder / name}")


def _path(config: TrainConfig, name: str) -> str | None:
    """Return the path that a setting holds, in whole; None where it names something that others have too."""
    value = config.value(name) or ""
    found = _PREFIX.match(value)
    rest = value[found.end() :] if found else value
    return rest if Path(rest).expanduser().is_absolute() or whole_path(config, name) else None


def _shortened(config: TrainConfig, name: str) -> str | None:
    """Return what stands for a path that a setting holds: "" for data, a name for weights; None: no path is held."""
    path = _path(config, name)
    if path is None or not path:
        return None
    if name not in ("checkpoint", "backbone"):
        return ""
    return config.value(name).replace(path, Path(path).name)


def _replaced(value: Any, values: Mapping[Any, str | None]) -> Any:
    """Return JSON with other texts in place of some."""
    if isinstance(value, Mapping):
        return {key: _replaced(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, values) for item in value]
    return values.get(value, value) if isinstance(value, str) else value
