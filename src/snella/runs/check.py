"""Whether a run is what it was: at a resume, and by `snella check RUN`.

RUN/start.json holds what a run was started with besides its settings: the images of each split (names, sizes, labels),
the fingerprint of the backbone, and by what updates were computed. Runs made before there was one have none.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from snella.config.fields import flag
from snella.config.recipe import PLACES, differences
from snella.config.schema import TrainConfig, settings
from snella.console import Terminal, print_line
from snella.data.dataset import ImageData, entries_of, folder_of, name_in
from snella.data.images import WHITE
from snella.data.readers.division import splits_table
from snella.distributed import world
from snella.distributed.start import REMEDY, check_same_start
from snella.errors import UserError
from snella.files import CHECKSUMS, check_checksums, write_json, write_text
from snella.json_files import Count, Record, read_json
from snella.ops import native
from snella.report.rows import read_allocations, read_metrics
from snella.runs.folder import (
    ABOUT,
    ADAPTER,
    SPLITS_TABLE,
    START,
    SUMMARY,
    fold_folders,
    is_cross_validation,
    read_about,
    read_config,
    read_summary,
    resume_command,
    state_of,
    versions,
    with_own_splits,
)
from snella.runs.load import load_run
from snella.runs.prepare import Prepared, read_run_data
from snella.training.checkpoint import checkpoints, read_checkpoint, read_divergences
from snella.training.train_state import STATE_HOLDS, not_finite

LISTED = 100_000  # images up to which each is written down, so that one that has changed can be named
NAMED = 3  # of what has changed
Entries = Mapping[str, Mapping[str, str]]  # split -> name -> what is known of an image
_HOLDS = Record(
    {"data": str, "images": dict[str, Count], "backbone": str, "arithmetic": str},
    {"entries": dict[str, dict[str, str]] | None},
)


def read_start(folder: Path) -> dict[str, Any] | None:
    """Return what a run was started with; None where that was not written down. Raises UserError if it is damaged."""
    path = folder / START
    return read_json(path, _HOLDS, remedy="restore it, or delete it") if path.is_file() else None


def write_start(folder: Path, ready: Prepared, data: ImageData[Any]) -> None:
    """Write down what a run is started with, and its splits as a table for others."""
    entries = entries_of(data)
    start = {
        "data": listing_fingerprint(entries),
        "images": {split: len(known) for split, known in entries.items()},
        "backbone": ready.fingerprint,
        "arithmetic": native.arithmetic(),
        "entries": entries if sum(map(len, entries.values())) <= LISTED else None,
    }
    write_text(folder / SPLITS_TABLE, splits_table(data))
    write_json(folder / START, start)


def listing_fingerprint(entries: Entries) -> str:
    """Return the SHA-256 of a listing of images."""
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def check_data(folder: Path, start: Mapping[str, Any] | None, data: ImageData[Any]) -> bool:
    """Return whether it is known that the data are those that a run was started with.

    Args:
        start: what `read_start` gives of the run.

    Raises:
        UserError: they are others; the message names up to three images.
    """
    if start is None:
        return False
    entries = entries_of(data)
    if start["data"] != listing_fingerprint(entries) and _renamed(start, data) != entries:
        raise UserError(
            f"the data of {folder} are not those that it was started with ({_changes(start, entries)}); restore them, "
            "or go on all the same with --resume --accept-data, or test on other images with evaluate --data PATH"
        )
    return True


def read_own_data(folder: Path, config: TrainConfig, saved: Mapping[str, Any], console: Console) -> ImageData[Any]:
    """Return the data of a finished run, divided and scaled as in its training.

    Raises:
        UserError: they cannot be read, or are others now.
    """
    data = read_run_data(with_own_splits(folder, config).changed(white=saved.get("white", WHITE)), console)
    check_data(folder, read_start(folder), data)
    return data


def _renamed(start: Mapping[str, Any], data: ImageData[Any]) -> Entries:
    """Return a start's entries by today's names: once those of crops and of packages held the whole path."""
    return {
        split: {name_in(data.root, name, data.folder): fact for name, fact in known.items()}
        for split, known in (start.get("entries") or {}).items()
    }


def _changes(start: Mapping[str, Any], entries: Entries) -> str:
    """Return in words how a listing differs from the one that a run was started with."""
    if start.get("entries") is None:
        counts = ", ".join(
            f"{start['images'].get(split, 0)} {split} then, {len(entries[split])} now" for split in entries
        )
        return f"images: {counts}"
    old, new = (
        {(split, name): fact for split in of for name, fact in of[split].items()} for of in (start["entries"], entries)
    )
    moved = {name for _, name in old} & {name for _, name in new}
    found = {
        "gone": [f"{split}/{name}" for split, name in old if (split, name) not in new and name not in moved],
        "new": [f"{split}/{name}" for split, name in new if (split, name) not in old and name not in moved],
        "now in": [f"{split}/{name}" for split, name in new if (split, name) not in old and name in moved],
        "other": [f"{s}/{n}: {new[s, n]}, was {old[s, n]}" for s, n in old if (s, n) in new and old[s, n] != new[s, n]],
    }
    words = []
    for what, names in found.items():
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            words.append(f"{what}: {', '.join(names[:NAMED])}{more}")
    return "; ".join(words) or "the order of its classes"


def may_be_data(start: Mapping[str, Any], root: str) -> bool:
    """Return whether a path may hold the images that a run was started with: by files' names and sizes, none opened."""
    folder = folder_of(root)
    for known in (start.get("entries") or {}).values():
        for name, facts in known.items():
            size = re.match(r"(\d+) bytes", facts)  # of a file; its name may go on with the place of a crop
            path = os.path.join(folder, name)
            paths = (path, path.rpartition("#")[0])
            if size and not any(os.path.isfile(p) and os.path.getsize(p) == int(size[1]) for p in paths):
                return False
    return True


def settings_to_compare(config: TrainConfig) -> dict[str, str]:
    """Return the settings that several processes of a training must have alike, in words by flag."""
    known = {name: setting for name, setting in settings().items() if not setting.reading.start and name not in PLACES}
    return {flag(name): str(config.value(name)) for name, setting in known.items() if not setting.reading.free}


def check_same_data(ready: Prepared, data: ImageData[Any]) -> None:
    """Refuse to train where a process has other images or another backbone than the first.

    Raises:
        UserError: names the process, and up to three images.
    """
    if world.count() == 1:
        return
    entries = entries_of(data)
    first: dict[str, Any] = {"data": listing_fingerprint(entries)}
    if len(set(world.gathered(first["data"]))) > 1:
        first = world.from_first(lambda: {"images": {}, "entries": entries})
        found = world.gathered("" if first["entries"] == entries else _changes(first, entries))
        number = next(number for number, words in enumerate(found) if words)
        raise UserError(f"process {number} has other data than process 0 ({found[number]}); {REMEDY}")
    check_same_start({"a backbone of fingerprint": ready.fingerprint, "batches": str(len(ready.batches["train"]))})


def check_backbone(folder: Path, start: Mapping[str, Any] | None, fingerprint: str, name: str) -> None:
    """Refuse a backbone that is not the one that a run was started with, where that is known. Raises UserError."""
    finished = (folder / ADAPTER / ABOUT).is_file()
    known = start["backbone"] if start is not None else read_about(folder)["fingerprint"] if finished else None
    if known is not None and known != fingerprint:
        raise UserError(f"{name} is not what {folder} was trained on; its weights have changed")


def arithmetic_note(start: Mapping[str, Any] | None) -> str | None:
    """Return a line where updates are computed by something else than at the start of a run."""
    now = native.arithmetic()
    if start is None or start["arithmetic"] == now:
        return None
    return f"updates were computed by {start['arithmetic']}, and are now by {now}: results differ in their last bits"


def moved(folder: Path, config: TrainConfig) -> list[str]:
    """Return which places of a run (its data, the files of its backbone) are others now, as phrases."""
    if state_of(folder) not in ("started", "finished"):
        return []
    old = read_config(folder)
    same = config.changed(**{name: old.value(name) for name in PLACES})
    return [phrase for phrase in differences(old, config) if phrase not in differences(old, same)]


# ---- snella check RUN


def check(folder: Path, *, console: Console | None = None, seen: list[dict[str, str]] | None = None) -> int:
    """Look at everything in a run folder, print a line for each part, and return how many are wrong.

    What is said goes to the list `seen` too: "run", "part", "state" (ok or wrong), "text".

    Raises:
        UserError: it is not a run folder, or its config.yaml is damaged.
    """
    console, wrong, seen = console or Terminal(), 0, [] if seen is None else seen
    config = read_config(folder)
    if is_cross_validation(config):
        return _check_folds(folder, config, console, seen)
    parts: dict[str, Callable[[Path, TrainConfig], list[str]]] = {
        "run": _state,
        "records": _records,
        "checkpoints": _checkpoints,
        "adapter": _adapter,
        "data": _data,
        "versions": _versions,
    }
    for name, look in parts.items():
        try:
            found = [("ok", line) for line in look(folder, config)]
        except UserError as error:
            wrong += 1
            found = [("wrong", str(error))]
        for state, line in found:
            _say(folder, name, state, line, console, seen)
    return wrong


def _say(folder: Path, part: str, state: str, text: str, console: Console, seen: list[dict[str, str]]) -> None:
    print_line(console, f"{state:<6} {part}: {text}")
    seen.append({"run": str(folder), "part": part, "state": state, "text": text})


def _check_folds(folder: Path, config: TrainConfig, console: Console, seen: list[dict[str, str]]) -> int:
    """Look at each run of a cross-validation, and return how much is wrong in all."""
    wrong = 0
    for own in fold_folders(folder, config):
        print_line(console, f"{own}:")
        if state_of(own) == "absent":
            _say(own, "run", "wrong", f"not begun; go on with: {resume_command(folder)}", console, seen)
            wrong += 1
        else:
            wrong += check(own, console=console, seen=seen)
    if not (folder / SUMMARY).is_file():
        _say(folder, str(folder), "wrong", f"not finished; go on with: {resume_command(folder)}", console, seen)
        wrong += 1
    return wrong


def _state(folder: Path, config: TrainConfig) -> list[str]:
    links = [path for path in (*folder.iterdir(), *folder.glob("*/*")) if path.is_symlink()]
    if links:
        raise UserError(f"{links[0]} is a link, which no training makes; put what it points to in its place")
    diverged = read_divergences(folder)
    notes = [f"diverged at step {found['step']} with --lr {found['lr']:g}" for found in diverged]
    if state_of(folder) == "finished":
        return [f"finished; {', '.join(notes)}" if notes else "finished"]
    lower = f" --lr {diverged[-1]['lr'] / 10:.3g}" if diverged and diverged[-1]["lr"] == config.loop.peak_lr else ""
    raise UserError(f"{'; '.join([*notes, 'not finished'])}; go on with: {resume_command(folder)}{lower}")


def _records(folder: Path, config: TrainConfig) -> list[str]:
    allocations = read_allocations(folder)
    rows = read_metrics(folder)
    found = [f"{len(rows)} rows of metrics, {len(allocations)} of allocations"]
    if not rows:
        found = ["metrics.jsonl is not there: figures cannot be drawn again"]
    if (folder / SUMMARY).is_file():
        summary = read_summary(folder)
        best = [value for split in ("val", "test") for value in (summary.get(split) or {}).values()]
        if None in best:
            raise UserError(f"{folder / SUMMARY} has a metric that is not finite; train again with a lower --lr")
        found.append(f"summary.json, with {len(best)} metrics")
    return found


def _checkpoints(folder: Path, config: TrainConfig) -> list[str]:
    found = checkpoints(folder)
    for path in found:
        for name, group in read_checkpoint(path, STATE_HOLDS)[0].items():
            if broken := not_finite(group):
                raise UserError(f"{path / name}.safetensors: {broken} is not finite; delete that checkpoint's folder")
    return [f"{len(found)}, whole and finite" if found else "none: the run cannot be gone on with"]


def _adapter(folder: Path, config: TrainConfig) -> list[str]:
    """Load the run as every command does, and look at the budgets."""
    about = read_about(folder)
    run = load_run(folder)
    has_sums = check_checksums(folder / ADAPTER, remedy="restore it, or train again")
    found = ["finite, complete, and on its backbone" + ("" if has_sums else f"; it has no {CHECKSUMS}, as older runs")]
    layers = [module for module in run.model.modules() if hasattr(module, "matrix_size") and hasattr(module, "kept")]
    if layers:
        kept, sizes = _budgets(folder, layers)
        share, target = kept / sizes, 1 - config.method.target_sparsity
        late = "" if share <= target * 1.05 else "; at its best epoch the target was not reached yet"
        found.append(f"budgets: {share:.1%} of all entries are kept, the target is {target:.1%}{late}")
    return [*found, f"{about['method']} on {about['backbone']['name']}"]


def _budgets(folder: Path, layers: list[Any]) -> tuple[int, int]:
    """Return how many entries are kept of how many. Raises UserError where a budget cannot be."""
    kept = sizes = 0
    for layer in layers:
        size, own = layer.matrix_size("default"), layer.kept("default")
        if not torch.all((own >= 0) & (own <= size)):
            raise UserError(f"{folder / ADAPTER}: the budget of {layer.name} is outside 0 to {size}; train again")
        kept, sizes = kept + int(own.sum()), sizes + size * len(own)
    return kept, sizes


def _data(folder: Path, config: TrainConfig) -> list[str]:
    source = config.data.source or ""
    try:
        data = read_run_data(with_own_splits(folder, config), Console(quiet=True))
    except UserError as error:
        raise UserError(f"{error}; where they have moved: {resume_command(folder)} --data NEW") from None
    known = check_data(folder, read_start(folder), data)
    return [f"{source}: the images that it was started with" if known else f"{source}: there; what it was is not known"]


def _versions(folder: Path, config: TrainConfig) -> list[str]:
    then, now = read_about(folder).get("versions", {}), versions()
    other = [
        f"{name} was {then[name]}, is {now.get(name, 'not there')}" for name in then if then[name] != now.get(name)
    ]
    note = arithmetic_note(read_start(folder))
    found = [f"others than in the training ({', '.join(other)}): results may differ a little" if other else "the same"]
    return [*found, *([note] if note else [])]
