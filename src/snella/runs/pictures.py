"""Where the pictures go that a run predicts or makes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from itertools import chain, count
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from snella.errors import UserError
from snella.files import refuse_link, writing
from snella.runs.folder import read_about
from snella.tasks.registry import task_named

LONGEST = 200  # bytes of a name before its ending, of the 255 that most systems take
SOURCE = "Source"  # in a picture's PNG: the image that it was made from
PREDICTIONS = "predictions"  # in the run folder: pictures that `predict` makes


def picture_folder(folder: Path, pictures: str | None) -> Path:
    """Return the folder for pictures: the given one, which must be new, or the run's own."""
    saved = read_about(folder)
    if pictures is None:
        refuse_link(folder / PREDICTIONS)
        return folder / PREDICTIONS
    if not task_named(saved["task"]).pictures:
        raise UserError(f"--pictures: {folder} makes no pictures (its task is {saved['task']}); leave it out")
    gallery = Path(pictures)
    if gallery.exists() and not (gallery.is_dir() and not any(gallery.iterdir())):
        raise UserError(f"{gallery} exists already; choose another name")
    return gallery


def free_name(stem: str, taken: set[str]) -> str:
    """Return a name that no other image has: images of different folders may share one."""
    name = next(name for name in _names(stem) if name.casefold() not in taken)  # some systems tell no case apart
    taken.add(name.casefold())
    return name


def write_pictures(pictures: Mapping[str, Image.Image], image: str, gallery: Path, taken: set[str]) -> dict[str, str]:
    """Write what was made of an image as gallery/STEM-KIND.png and return kind -> file.

    Pictures of another image that stand there, or are `taken`, are left alone, and a number is added to the name;
    those of the same image are replaced.
    """
    source = Path(os.path.abspath(image)).as_uri()
    names = (name for name in _names(_short(Path(image).stem, source)) if name.casefold() not in taken)
    stem = next(name for name in names if _is_ours(_files(gallery, name, pictures).values(), source))
    taken.add(stem.casefold())
    files = _files(gallery, stem, pictures)
    info = PngInfo()
    info.add_text(SOURCE, source)
    for kind, picture in pictures.items():
        with writing(files[kind]) as partial:
            picture.save(partial, "PNG", pnginfo=info)
    return {kind: str(file) for kind, file in files.items()}


def _files(gallery: Path, stem: str, kinds: Iterable[str]) -> dict[str, Path]:
    return {kind: gallery / f"{stem}-{kind}.png" for kind in kinds}


def _is_ours(files: Iterable[Path], source: str) -> bool:
    """Tell whether the files are not there, or were made from this image."""
    return all(not file.exists() or _source_of(file) == source for file in files)


def _source_of(file: Path) -> object:
    try:
        with Image.open(file) as picture:
            return picture.info.get(SOURCE)
    except OSError:
        return None


def _names(stem: str) -> Iterable[str]:
    return chain([stem], (f"{stem}-{i}" for i in count(2)))


def _short(stem: str, source: str) -> str:
    """Return the stem, its end replaced by a hash of the source where it is too long for a file's name."""
    encoded = os.fsencode(stem)
    if len(encoded) <= LONGEST:
        return stem
    return f"{encoded[: LONGEST - 9].decode(errors='ignore')}-{blake2b(source.encode(), digest_size=4).hexdigest()}"
