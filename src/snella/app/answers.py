"""What runs say of images, and what they make, as a page shows it: values and pictures in HTML, nothing of Gradio.

Images are read and predicted by what `snella predict` reads and predicts with. Whatever is wrong with an image or a
value is said in words in its place.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from snella.data.dataset import Images
from snella.data.images import WHITE, UnreadableImage
from snella.errors import UserError
from snella.explain.pictures import Explain
from snella.pages.calibration import fitted_temperature, probabilities
from snella.pages.thumbnails import as_uri, small
from snella.report.outputs import read_outputs
from snella.runs.generate import check_prompt
from snella.runs.load import LoadedRun, load_run
from snella.runs.predict import likeliest, scaled
from snella.tasks.interface import Prediction

SIDE = 400  # pixels of the longer side of a picture on the page
QUALITY = 88
BATCH = 8  # images per forward pass
SHOWN = 5  # classes, the likeliest first
SHOWN_LABELS = 8
MOST_IMAGES = 24  # that are answered at once


@dataclass(frozen=True)
class AppRun:
    """A run on the page."""

    folder: Path
    run: LoadedRun
    temperature: float | None = None  # that val gives its logits; None: none is known, or it tells no classes
    explain: Explain | None = None  # None: there are no heat maps
    notes: tuple[str, ...] = ()  # what is to be known of it

    @property
    def name(self) -> str:
        return self.folder.name or str(self.folder)

    @property
    def backbone(self) -> str:
        """Its name, or that of its folder: where that lies is nobody's business who sees the page."""
        name = self.run.saved["backbone"]["name"]
        return os.path.basename(name) if os.path.isabs(name) else name


@dataclass(frozen=True)
class Bar:
    """A line of an answer."""

    name: str
    text: str
    share: float | None = None  # the bar's length, from 0 to 1
    colour: str = ""  # of a class in a mask
    told: bool = True  # False: it is shown beside what is told


@dataclass(frozen=True)
class Answer:
    """What a run says of an image, or makes; `problem` says why it does not."""

    bars: Sequence[Bar] = ()
    pictures: Sequence[tuple[str, str]] = ()  # label, data URI
    problem: str = ""


@dataclass(frozen=True)
class Answered:
    """An image, or what was asked for, with the answer of each run."""

    name: str
    answers: Sequence[Answer]
    picture: str = ""  # a data URI
    problem: str = ""  # why the image cannot be read


def open_runs(folders: Sequence[Path], device: Any) -> list[AppRun]:
    """Load the runs of a page.

    Raises:
        UserError: as `load_run` does, or some make images and others look at them.
    """
    runs = [_opened(folder, device) for folder in folders]
    makes = {shown.run.task.generates for shown in runs}
    if len(makes) > 1:
        raise UserError("some of these runs make images and others look at them; show them on a page each")
    return runs


def _opened(folder: Path, device: Any) -> AppRun:
    run, notes, explain = load_run(folder, device), list[str](), None
    temperature = _temperature(folder) if run.saved["task"] == "classify" else None
    if temperature is not None:
        notes.append(f"Probabilities are calibrated by the temperature that val gives: {temperature:.3g}.")
    elif run.saved["task"] == "classify":
        notes.append("Probabilities are as the model gives them: there is no error on val that could calibrate them.")
    if run.task.explains:
        try:
            explain = run.explainer()
        except UserError as error:
            notes.append(f"There is no heat map: {error}")
    return AppRun(folder, run, temperature, explain, tuple(notes))


def _temperature(folder: Path) -> float | None:
    """Return the temperature of the least cross-entropy on val; None where no logits of it are kept, or all are right.

    Of images that are all told right the colder temperature is always the better one, and nothing is known.
    """
    outputs = read_outputs(folder, "val")
    if outputs is None or not np.isfinite(outputs.values["logits"]).all():
        return None
    logits, labels = outputs.values["logits"], outputs.values["labels"]
    return None if (logits.argmax(1) == labels).all() else fitted_temperature(logits, labels)


# ---- images


def answer_images(runs: Sequence[AppRun], paths: Sequence[str], *, heat: bool) -> tuple[list[Answered], list[str]]:
    """Return what each run says of each image, and what is to be known of all.

    Args:
        paths: image files; of more than MOST_IMAGES the first ones are answered.
        heat: show heat maps, where a run has some.
    """
    notes = [f"The first {MOST_IMAGES} of {len(paths)} images."] if len(paths) > MOST_IMAGES else []
    paths = paths[:MOST_IMAGES]
    read = [scaled(Images(tuple(paths)), shown.run.saved.get("white", WHITE)) for shown in runs]
    notes += dict.fromkeys(_with_names(note, paths) for _, note in read if note)
    columns = [_column(shown, images, heat=heat) for shown, (images, _) in zip(runs, read, strict=True)]
    first, _ = read[0]
    return [_answered(path, [column[i] for column in columns], first) for i, path in enumerate(paths)], notes


def _answered(path: str, answers: Sequence[Answer | UnreadableImage], images: Images) -> Answered:
    name = os.path.basename(path)
    unreadable = [answer for answer in answers if isinstance(answer, UnreadableImage)]
    if unreadable:
        return Answered(name, (), problem=unreadable[0].reason)
    return Answered(
        name, [a for a in answers if isinstance(a, Answer)], as_uri(small(images.read(path), SIDE), QUALITY)
    )


def _column(shown: AppRun, images: Images, *, heat: bool) -> list[Answer | UnreadableImage]:
    """Return what a run says of each image."""
    answers: list[Answer | UnreadableImage] = []
    try:
        for path, found in zip(images.paths, shown.run.predictions(images, BATCH), strict=True):
            answers.append(found if isinstance(found, UnreadableImage) else _answer(shown, images, path, found, heat))
    except UserError as error:
        problem = Answer(problem=_with_names(str(error), images.paths))
        answers += [problem] * (len(images) - len(answers))
    return answers


def _answer(shown: AppRun, images: Images, path: str, found: Prediction, heat: bool) -> Answer:
    bars = BARS.get(shown.run.saved["task"], _row_bars)(shown, found.row)
    pictures = [(kind, as_uri(small(made, SIDE), QUALITY)) for kind, made in found.pictures.items() if kind != "mask"]
    if heat and shown.explain is not None:
        place = likeliest(found.row)
        label = f"what speaks for {shown.run.saved['classes'][place]}"
        pictures.append((label, as_uri(small(shown.explain(images.read(path), place), SIDE), QUALITY)))
    return Answer(bars, pictures)


def _class_bars(shown: AppRun, row: Mapping[str, Any]) -> list[Bar]:
    """Return the likeliest classes, with probabilities at the run's temperature."""
    with np.errstate(divide="ignore"):  # a probability of 0 stays one
        logits = np.log(np.array([list(row["probabilities"].values())]))
    (shares,) = probabilities(logits, shown.temperature or 1.0).tolist()
    pairs = sorted(zip(row["probabilities"], shares, strict=True), key=lambda pair: -pair[1])[:SHOWN]
    return [Bar(name, f"{share:.1%}", share, told=i == 0) for i, (name, share) in enumerate(pairs)]


def _label_bars(shown: AppRun, row: Mapping[str, Any]) -> list[Bar]:
    """Return the likeliest labels; those above their threshold are told."""
    pairs = sorted(row["probabilities"].items(), key=lambda pair: -pair[1])
    most = max(SHOWN_LABELS, len(row["labels"]))
    return [Bar(name, f"{share:.1%}", share, told=name in row["labels"]) for name, share in pairs[:most]]


def _region_bars(shown: AppRun, row: Mapping[str, Any]) -> list[Bar]:
    """Return the classes that are there, the largest first, in their colours."""
    colours = dict(zip(shown.run.saved["classes"], shown.run.saved["palette"], strict=True))
    there = [(name, area["share"]) for name, area in row["areas"].items() if area["pixels"]]
    return [
        Bar(name, f"{share:.1%}", share, colour=f"rgb({', '.join(map(str, colours[name]))})")
        for name, share in sorted(there, key=lambda pair: -pair[1])
    ]


def _value_bars(shown: AppRun, row: Mapping[str, Any]) -> list[Bar]:
    return [Bar(name, f"{value:.4g}") for name, value in row["values"].items()]


def _row_bars(shown: AppRun, row: Mapping[str, Any]) -> list[Bar]:
    return [Bar(name, str(value)) for name, value in row.items() if name != "image"]


# a task that is not here shows its row as it is
BARS: dict[str, Callable[[AppRun, Mapping[str, Any]], list[Bar]]] = {
    "classify": _class_bars,
    "multilabel": _label_bars,
    "segment": _region_bars,
    "regress": _value_bars,
}


def _with_names(text: str, paths: Sequence[str]) -> str:
    """Return a text with the names of files in the place of their paths, which are those of a temporary folder."""
    for path in paths:
        text = text.replace(path, os.path.basename(path))
    return text


# ---- generated images


def answer_prompt(runs: Sequence[AppRun], prompt: str | None, seed: int, count: int) -> list[Answered]:
    """Return what each run makes of a prompt, or of a class's name, with the seeds from `seed` on."""
    return [Answered(prompt or "", [_made(shown, prompt, seed, count) for shown in runs])]


def _made(shown: AppRun, prompt: str | None, seed: int, count: int) -> Answer:
    run, seeds = shown.run, [seed + i for i in range(count)]
    prompt = None if run.saved.get("condition") == "none" else prompt
    try:
        check_prompt(shown.folder, run.saved, prompt)
        made = list(run.learner.generate(run.model, [prompt] * count, seeds))
    except UserError as error:
        return Answer(problem=str(error))
    return Answer(pictures=[(f"seed {own}", _png(picture)) for own, picture in zip(seeds, made, strict=True)])


def _png(picture: Image.Image) -> str:
    """Return a picture as it is, as a data URI."""
    written = io.BytesIO()
    picture.save(written, "PNG")
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()


# ---- HTML


def as_html(template: str, **values: Any) -> str:
    """Return the HTML of a template: names in it are text, never markup."""
    environment = Environment(
        loader=PackageLoader("snella.app"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    # a name in an encoding of its own has halves of characters, which no browser is sent
    return environment.get_template(template).render(**values).encode("utf-8", "backslashreplace").decode()
