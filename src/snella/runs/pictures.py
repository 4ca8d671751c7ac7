"""Where the pictures go that a run predicts or makes."""

from __future__ import annotations

from itertools import chain, count
from pathlib import Path

from rich.console import Console

from snella.console import print_line
from snella.errors import UserError
from snella.files import refuse_link
from snella.runs.folder import read_about
from snella.tasks.registry import task_named

PREDICTIONS = "predictions"  # in the run folder: pictures that `predict` makes


def picture_folder(folder: Path, pictures: str | None) -> Path:
    """Return the folder for pictures: the given one, which must be new, or the run's own."""
    saved = read_about(folder)
    if pictures is None:
        refuse_link(folder / PREDICTIONS)
        if any(folder.glob(f"{PREDICTIONS}/*")):
            note = f"{folder / PREDICTIONS} has pictures already; those of the same names are replaced"
            print_line(Console(stderr=True), f"snella: {note} (--pictures names another folder)")
        return folder / PREDICTIONS
    if not task_named(saved["task"]).pictures:
        raise UserError(f"--pictures: {folder} makes no pictures (its task is {saved['task']}); leave it out")
    gallery = Path(pictures)
    if gallery.exists() and not (gallery.is_dir() and not any(gallery.iterdir())):
        raise UserError(f"{gallery} exists already; choose another name")
    return gallery


def free_name(stem: str, taken: set[str]) -> str:
    """Return a name that no other image has: images of different folders may share one."""
    name = next(name for name in chain([stem], (f"{stem}-{i}" for i in count(2))) if name not in taken)
    taken.add(name)
    return name
