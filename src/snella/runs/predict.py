"""Predict images with a finished run: a table, JSON or CSV, and pictures."""

from __future__ import annotations

import json as json_format
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import chain, count
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.console import Console

from snella.console import Terminal, print_line, print_text
from snella.data.checks import white_of, widest_values
from snella.data.dataset import Images, name_in
from snella.data.images import WHITE, ImageFiles, Progress, UnreadableImage, image_files
from snella.errors import UserError
from snella.explain.maps import check_captum
from snella.explain.pictures import Explain
from snella.files import refuse_existing, refuse_link, write_text, writing
from snella.report.tables import csv_text
from snella.runs.check import read_own_data
from snella.runs.devices import make_accelerator
from snella.runs.folder import read_about, read_config, with_own_splits
from snella.runs.load import LoadedRun, check_options, load_ensemble, load_run
from snella.runs.prepare import read_run_data
from snella.tasks.registry import task_named

LONGEST = 200  # bytes of a name before its ending, of the 255 that most systems take
SOURCE = "Source"  # in a picture's PNG: the image that it was made from
PREDICTIONS = "predictions"  # in the run folder: pictures that `predict` makes
EXPLANATIONS = "explanations"  # beside the file of predictions, or in the run folder: heat maps over images
EXPLANATION = "explanation"  # kind of such a picture, and its column
EXAMPLES = 3  # images of its own test split that `predict RUN` shows


def predict(
    folder: Path,
    *,
    images: Sequence[str] = (),
    others: Sequence[Path] = (),
    json: bool = False,
    csv: bool = False,
    out: str | None = None,
    pictures: str | None = None,
    explain: bool = False,
    batch_size: int = 64,
    device: str = "auto",
    console: Console | None = None,
) -> int:
    """Predict image files, the images of folders, or three test images; returns how many could not be read.

    Those are named on standard error. With `others`, further runs, probabilities are the mean of all runs'.
    Predictions go to standard output, as a table, JSON or CSV, or to the file `out`; pictures (masks) to the folder
    `pictures`, or to RUN/predictions. With `explain` each image gets a heat map of its likeliest class, in `pictures`,
    or in the folder explanations beside `out`, or in the run folder.

    Raises:
        UserError: no finished run, a path that is not there, no readable image, a folder for pictures that is not new,
            or no heat maps of such a run.
    """
    gallery = picture_folder(folder, pictures, _explanations(folder, others, out) if explain else None)
    check_options(batch_size, device)
    if out:
        refuse_existing(Path(out))
    chosen = Images(image_files(images)) if images else _own_examples(folder)
    if task_named(read_about(folder)["task"]).generates:
        raise UserError(f"{folder} makes images and predicts none; snella predict {folder} --prompt TEXT")
    run = load_ensemble([folder, *others], make_accelerator(device, "fp32").device)
    chosen, note = scaled(chosen, run.saved.get("white", WHITE))
    if note:
        print_line(Terminal(stderr=True), f"snella: {note}")
    rows, unreadable = _predictions(run, chosen, batch_size, gallery, run.explainer() if explain else None)
    console = console or Terminal()
    if json or (out and out.endswith(".json") and not csv):
        text = json_format.dumps(rows, indent=2, ensure_ascii=False) + "\n"
    elif csv or out:
        text = csv_text([run.learner.csv_row(row) | {k: row[k] for k in (EXPLANATION,) if k in row} for row in rows])
    else:
        text = ""
    _show(run, rows, text, out, console)
    if explain:
        print_line(console if out or not text else Terminal(stderr=True), f"heat maps in {gallery}")
    elif run.task.pictures and not text:
        print_line(console, f"pictures in {gallery}")
    return unreadable


def _show(run: LoadedRun, rows: list[dict[str, Any]], text: str, out: str | None, console: Console) -> None:
    """Write predictions as text to a file or to standard output; without a text, show them as a table."""
    if not text:
        console.print(run.learner.prediction_table(rows))
    elif out:
        write_text(Path(out), text)
        print_line(console, f"{len(rows)} predictions in {out}")
    else:
        print_text(text)


def _predictions(
    run: LoadedRun, images: Images, batch_size: int, gallery: Path, explain: Explain | None
) -> tuple[list[dict[str, Any]], int]:
    """Return the predictions' rows, and how many images could not be read; pictures are written to the gallery."""
    rows: list[dict[str, Any]] = []
    unreadable, taken = 0, set[str]()
    for found in run.predictions(images, batch_size):
        if isinstance(found, UnreadableImage):
            unreadable += 1
            print_line(Terminal(stderr=True), f"snella: not predicted: {found}")
            continue
        name, pictures = found.row["image"], found.pictures
        if explain is not None:
            pictures = {**pictures, EXPLANATION: explain(images.read(name), likeliest(found.row))}
        rows.append({**found.row, **write_pictures(pictures, name, gallery, taken)})
    if not rows:
        raise UserError("none of the images can be read; give PNG, JPEG, WebP, BMP or TIFF files")
    return rows, unreadable


def likeliest(row: Mapping[str, Any]) -> int:
    """Return the place of the class of the highest probability, the first of equal ones, in a prediction's row."""
    found = list(row["probabilities"].values())
    return found.index(max(found))


def _explanations(folder: Path, others: Sequence[Path], out: str | None) -> Path:
    """Return the folder for heat maps. Raises UserError, before anything is loaded, where there are none."""
    task = read_about(folder)["task"]
    if not task_named(task).explains:
        raise UserError(f"--explain: {folder} tells no classes of an image (its task is {task}); leave it out")
    if others:
        raise UserError("--explain: a heat map is of one run; name one run alone")
    check_captum()
    return (folder if out is None else Path(out).parent) / EXPLANATIONS


def scaled(images: Images, white: int | None) -> tuple[Images, str]:
    """Return the images with 16-bit greys read as the run's, and what to say where these have no use for their range.

    None: the run saw none, and the bits that these use are taken for theirs.
    """
    widest = widest_values(images.paths) if isinstance(images.read, ImageFiles) else {}
    if not widest:
        return images, ""
    used = white_of(widest.values())
    white, note = white or used, ""
    if used < WHITE and used != white:
        first = next(iter(widest))
        text = f"{len(widest)} images of 16-bit greys use {used.bit_length()} bits, the first: {first}"
        note = f"{text}; in this run {white} is white, so they are dark"
    elif used < WHITE:
        note = f"{len(widest)} images of 16-bit greys: {white} is taken for white"
    return replace(images, read=ImageFiles(white)), note


def _own_examples(folder: Path) -> Any:
    """Return a few test images of the run's own data, spread over it, without their labels."""
    test: Any = read_run_data(with_own_splits(folder, read_config(folder)), Terminal(stderr=True)).splits["test"]
    chosen = [i * len(test) // EXAMPLES for i in range(min(EXAMPLES, len(test)))]
    return Images(tuple(test.paths[i] for i in chosen), read=test.read)


def own_predictions(folder: Path, results: Path, device: str, progress: Progress) -> Iterator[dict[str, Any]]:
    """Yield a row of CSV for each image of a run's own test split: its name below the data (file), its label, and what
    the run finds; masks are written to the folder `results`.
    """
    taken = set[str]()
    run = load_run(folder, make_accelerator(device, "fp32").device)
    data = read_own_data(folder, run.config, run.saved, Console(quiet=True))
    test, gallery = data.splits["test"], results / PREDICTIONS
    found = run.predictions(Images(test.paths, read=test.read), run.config.data.images_per_batch)
    for i, (path, prediction) in enumerate(zip(test.paths, found, strict=True)):
        progress(i + 1, len(test))
        if isinstance(prediction, UnreadableImage):
            print_line(Terminal(stderr=True), f"snella: not predicted: {prediction}")
            continue
        masks = {kind: picture for kind, picture in prediction.pictures.items() if kind == "mask"}
        files = write_pictures(masks, path, gallery, taken)
        files = {kind: os.path.relpath(file, results).replace(os.sep, "/") for kind, file in files.items()}
        row = run.learner.csv_row({**prediction.row, **files})
        label = {"label": data.classes[test.labels[i]]} if getattr(test, "labels", ()) else {}
        yield {"file": name_in(data.root, path, data.folder), **label, **{k: v for k, v in row.items() if k != "image"}}


# ---- pictures


def picture_folder(folder: Path, pictures: str | None, maps: Path | None = None) -> Path:
    """Return the folder for pictures: the given one, which must be new, or `maps`, that of heat maps, or the run's."""
    saved = read_about(folder)
    if pictures is None:
        own = maps or folder / PREDICTIONS
        refuse_link(own)
        return own
    if maps is None and not task_named(saved["task"]).pictures:
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
