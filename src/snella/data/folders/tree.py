"""All that lies below a folder of data, by one walk: images, other files, and what is left out with the reason."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from snella.data.folders.names import split_and_rest
from snella.data.images import SUFFIXES, is_hidden, is_image
from snella.errors import listed

# files that hold pictures or films in formats that are not read; counted, so that they are not missed in silence
UNREAD = (
    *(".svg", ".psd", ".xcf", ".ai", ".eps", ".ico", ".pcx", ".exr", ".hdr", ".jxl", ".j2k", ".raw", ".cr2", ".cr3"),
    *(".nef", ".arw", ".dng", ".orf", ".rw2", ".dcm", ".nii", ".mha", ".npy", ".npz", ".mat"),
    *(".mp4", ".mov", ".avi", ".webm"),
)
SYSTEM_FILES = frozenset(("Thumbs.db", "desktop.ini", "Desktop.ini"))
# beside the settings, what a run and a comparison have written in their folders
_RUN_MARKS = {"config.yaml": ("adapter", "checkpoints", "metrics.jsonl", "summary.json", "fold-1")}
_COMPARISON_MARKS = ("compare.json", "compare.png")


@dataclass(frozen=True)
class Tree:
    """What is visible below `root`: names relative to it with "/", sorted.

    Args:
        images: files with an image's ending.
        others: all other files.
        folders: all folders, empty ones included.
        notes: what is left out and why.
    """

    root: str
    images: tuple[str, ...]
    others: tuple[str, ...]
    folders: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def only(self, keep: Callable[[str], bool], *notes: str) -> Tree:
        """Return the tree with the images to keep alone, and with further notes."""
        return replace(self, images=tuple(filter(keep, self.images)), notes=(*self.notes, *notes))


def tree(root: str) -> Tree:
    """Walk a folder. Links to folders are followed, once each. Raises OSError where a folder cannot be read."""
    images: list[str] = []
    others: list[str] = []
    below: list[str] = []
    runs: list[str] = []
    system: Counter[str] = Counter()
    seen: set[str] = set()
    for parent, folders, files in os.walk(root, followlinks=True, onerror=_raise):
        real = os.path.realpath(parent)
        name = os.path.relpath(parent, root).replace(os.sep, "/")
        if real in seen or (name != "." and is_run(parent, folders, files)):
            runs += [name] if real not in seen else []
            folders.clear()
            continue
        seen.add(real)
        for folder in filter(is_hidden, folders):
            system[folder] += sum(
                is_image(file) for _, _, inner in os.walk(os.path.join(parent, folder)) for file in inner
            )
        folders[:] = sorted(folder for folder in folders if not is_hidden(folder))
        prefix = "" if name == "." else f"{name}/"
        below += [prefix + folder for folder in folders]
        images += [prefix + file for file in files if is_image(file)]
        for file in set(files) & SYSTEM_FILES:
            system[file] += 1
        system["files beginning with a dot"] += sum(is_hidden(file) and is_image(file.lstrip(".")) for file in files)
        others += [prefix + file for file in files if not (is_image(file) or is_hidden(file) or file in SYSTEM_FILES)]
    folders_of_runs = set(runs) | {os.path.dirname(run) for run in runs}
    kept = [name for name in below if name not in folders_of_runs or any(i.startswith(f"{name}/") for i in images)]
    return Tree(root, tuple(sorted(images)), tuple(sorted(others)), tuple(sorted(kept)), _notes(system, runs, others))


def near_files(found: Tree) -> list[str]:
    """Return the other files of which a set is told: at most one folder below those that wrap all images."""
    wraps = os.path.commonpath(found.images) if found.images else ""
    kept = []
    for name in found.others:
        shared = os.path.commonpath((name, wraps)) if wraps else ""
        if name.count("/") - (shared.count("/") + 1 if shared else 0) <= 1:
            kept.append(name)
    return kept


def image_resolver(found: Tree) -> Callable[[str, str], str | None]:
    """Return what finds the image that a cell means: by path, else by the end of its path, with or without ending."""
    known = set(found.images)
    by_name: defaultdict[str, list[str]] = defaultdict(list)
    for name in found.images:
        last = os.path.basename(name)
        by_name[last].append(name)
        by_name[os.path.splitext(last)[0]].append(name)

    def resolve(cell: str, split: str) -> str | None:
        name = as_written(cell)
        if name in known:
            return name
        near = by_name.get(os.path.basename(name), [])
        near = [other for other in near if "/" not in name or f"/{os.path.splitext(other)[0]}".endswith(_end(name))]
        if len(near) > 1:
            near = [other for other in near if split in (split_and_rest(part)[0] for part in other.split("/")[:-1])]
        return near[0] if len(near) == 1 else None

    return resolve


def _end(name: str) -> str:
    return f"/{os.path.splitext(name)[0] if has_image_ending(name) else name}"


def as_written(cell: str) -> str:
    return os.path.normpath(cell.strip().replace("\\", "/").lstrip("/")).replace(os.sep, "/") if cell.strip() else ""


def has_image_ending(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def is_run(folder: str, folders: Sequence[str], files: Sequence[str]) -> bool:
    """Tell whether a folder with these sub-folders and files was written by `snella train` or `snella compare`."""
    inside = {*folders, *files}
    run = any(mark in inside and inside & {*others} for mark, others in _RUN_MARKS.items())
    return run or inside.issuperset(_COMPARISON_MARKS)


def _notes(system: Counter[str], runs: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    notes = []
    hidden = [f"{place} ({count})" for place, count in system.items() if count]
    if hidden:
        notes.append(f"files that systems or programs put there, left out: {', '.join(hidden)}")
    if runs:
        notes.append(f"folders that snella wrote, left out: {listed(runs)}")
    unread = Counter(os.path.splitext(name.lower().removesuffix(".gz"))[1] for name in others)
    formats = [f"{suffix} ({unread[suffix]})" for suffix in UNREAD if unread[suffix]]
    if formats:
        notes.append(f"files of formats that are not read, left out: {', '.join(formats)}")
    return tuple(notes)


def _raise(error: OSError) -> None:
    raise error


def grouped(names: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    """Return the names by what a key makes of them; no list of what there is none of."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[key(name)].append(name)
    return groups


def stem(name: str) -> str:
    """Return the last part of a name, without its ending."""
    return os.path.splitext(os.path.basename(name))[0]
