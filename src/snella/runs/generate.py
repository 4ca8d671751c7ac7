"""What a run that makes images makes: while it trains, and finished, by `snella predict RUN --prompt TEXT`."""

from __future__ import annotations

import json as json_format
import math
import re
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console

from snella.console import Terminal, print_line, print_text, working
from snella.data.images import Progress
from snella.distributed import world
from snella.errors import UserError
from snella.files import save_picture
from snella.report.trackers import send_pictures
from snella.runs.devices import check_device, make_accelerator
from snella.runs.folder import read_about
from snella.runs.load import load_run
from snella.runs.predict import free_name, picture_folder
from snella.runs.prepare import Prepared
from snella.tasks.registry import task_named
from snella.training.checkpoint import done_steps

GRIDS = 5  # sample grids of a run, where their number is not given


def generate(
    folder: Path,
    *,
    prompt: str | None = None,
    n: int = 4,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    pictures: str | None = None,
    json: bool = False,
    device: str = "auto",
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Make `n` images and write them as PNG to the folder `pictures`, or to RUN/predictions; returns a row for each.

    Image i has seed `seed` + i, and is the same whichever others are made.

    Args:
        prompt: a text, or a class's name; None: `n` images of each of the prompts of the run's sample grids.
        steps, guidance: of the sampling; None: those of the run.

    Raises:
        UserError: no finished run, one that makes no images, an unknown class, a prompt for an unconditional model,
            values out of range.
    """
    saved = read_about(folder)
    if not task_named(saved["task"]).generates:
        raise UserError(f"{folder} makes no images (its task is {saved['task']}); give images to predict")
    _check_numbers(("--n", n, 1), ("--seed", seed, 0), ("--steps", steps, 1), ("--guidance", guidance, 0))
    gallery = picture_folder(folder, pictures)
    check_device(device, "fp32")
    check_prompt(folder, saved, prompt)
    run = load_run(folder, make_accelerator(device, "fp32").device)
    prompts: list[str | None] = [prompt] if prompt is not None else [*run.learner.prompts] or [None]
    asked = [text for text in prompts for _ in range(n)]
    seeds = [seed + i for i in range(n)] * len(prompts)
    rows: list[dict[str, Any]] = []
    taken = set[str]()
    stems = {text: free_name(_file_name(text), taken) for text in prompts}  # two prompts may begin alike
    made = run.learner.generate(run.model, asked, seeds, steps=steps, guidance=guidance)
    with working(Terminal(stderr=True), "generating images") as progress:
        for text, own, picture in zip(asked, seeds, made, strict=True):
            file = gallery / f"{stems[text]}-{own}.png"
            save_picture(picture, file)
            rows.append({"prompt": text, "seed": own, "image": str(file)})
            progress(len(rows), len(asked))
    _report(rows, gallery, json, console)
    return rows


def show_samples(
    stage: str, ready: Prepared, folder: Path, accelerator: Accelerator, progress: Progress | None, epoch: int = 0
) -> None:
    """Write a grid of samples of a training's stage, RUN/samples/STAGE.png, and give it to the trackers.

    Of a task that makes no images it does nothing, nor in a process that is not the first.
    """
    if ready.task.generates and world.is_first():
        ready.learner.show(ready.model.to(accelerator.device).eval(), ready.data, folder, stage, progress)
        steps = math.ceil(len(ready.batches["train"]) / ready.config.loop.accumulate)
        step = done_steps(folder) if stage == "after" else epoch * steps
        send_pictures(accelerator, {"samples": folder / "samples" / f"{stage}.png"}, step)


def samples_of_epoch(epoch: int, ready: Prepared, folder: Path, accelerator: Accelerator) -> None:
    """Show samples after an epoch, from 1, where it is one of those whose samples are shown."""
    epochs, every = ready.config.loop.epoch_count, ready.config.generate.sample_every
    every = -(-epochs // GRIDS) if every is None else every
    if every and epoch % every == 0 and epoch < epochs:
        show_samples(f"epoch-{epoch:03d}", ready, folder, accelerator, None, epoch)


def _report(rows: list[dict[str, Any]], gallery: Path, json: bool, console: Console | None) -> None:
    if json:
        print_text(json_format.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    else:
        print_line(console or Terminal(), f"{len(rows)} images in {gallery}")


def _check_numbers(*numbers: tuple[str, float | None, int]) -> None:
    """Refuse (flag, value, least) whose value is below the least or cannot be. Raises UserError."""
    for name, value, least in numbers:
        if value is not None and value < least:
            raise UserError(f"{name} {value} is below {least}")
        if value is not None and not value < 2**63:  # nan, too
            raise UserError(f"{name} {value} is out of range")


def check_prompt(folder: Path, saved: dict[str, Any], prompt: str | None) -> None:
    """Refuse, before the model is loaded, a prompt that it does not take. Raises UserError."""
    if prompt is None:
        return
    if saved.get("condition") == "none":
        raise UserError(f"--prompt: the model of {folder} is unconditional; leave it out")
    if saved.get("condition") == "class" and prompt not in saved["classes"]:
        raise UserError(f"--prompt {prompt} is none of the run's classes: {', '.join(saved['classes'])}")


def _file_name(text: str | None) -> str:
    return re.sub(r"[^\w]+", "-", text or "image")[:60].strip("-") or "image"
