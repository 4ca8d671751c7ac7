"""Runs as they are kept, made up: for pages, without a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from snella.config.schema import TrainConfig
from snella.data.dataset import ImageData, Images
from snella.pages.kept import KeptRun
from snella.pages.thumbnails import Thumbnails
from snella.report.outputs import Outputs


def class_outputs(count: int, classes: int = 3, *, seed: int = 0, names: Sequence[str] = ()) -> Outputs:
    """Return logits that are right more often than not, of images with a name each."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    logits = random.normal(size=(count, classes)).astype(np.float32) * 2
    logits[np.arange(count), labels] += 1.5
    named = tuple(names) or tuple(f"c{label}/{i}.png" for i, label in enumerate(labels))
    return Outputs(named, {"logits": logits, "labels": labels})


def noise(name: str) -> Image.Image:
    """Return an image of noise, another one for each name: the worst that a JPEG can get."""
    random = np.random.default_rng(sum(name.encode("utf-8", "surrogateescape")))
    return Image.fromarray(random.integers(0, 255, (120, 160, 3), dtype=np.uint8))


def pictured(outputs: Outputs, read: Callable[[str], Image.Image] = noise) -> Thumbnails:
    """Return the thumbnails of a test split whose images `read` makes."""
    data = ImageData("made up", "nowhere", (), {"test": Images(outputs.names, read=read)})
    return Thumbnails(data, "test")


def kept(
    folder: Path,
    task: str,
    classes: Sequence[str],
    outputs: Mapping[str, Outputs],
    *,
    metrics: Mapping[str, float],
    thumbnails: Thumbnails | None = None,
    about: Mapping[str, Any] | None = None,
    summary: Mapping[str, Any] | None = None,
) -> KeptRun:
    """Return a finished run of these outputs; its folder holds nothing."""
    found = {
        "test": dict(metrics), "val": dict(metrics), "trainable_parameters": 5, "adapter_bytes": 20,
        "peak_memory_bytes": 3_000_000, "seconds": 61.0, "seed": 0, "versions": {"torch": "2"}, **(summary or {}),
    }  # fmt: skip
    known = {"task": task, "classes": list(classes), "backbone": {"name": "test_vit"}, **(about or {})}
    config = TrainConfig().changed(data="photos", task=task)
    return KeptRun(folder, config, known, found, "test", outputs, thumbnails or Thumbnails(None, "test"))


@contextmanager
def written_once() -> Iterator[None]:
    """Let the page of every training be a copy of the first one: most tests of runs look at everything but it."""
    from snella.pages import page

    write, first = page.report_trained, []

    def copy(folder: Path, data: ImageData[Any]) -> None:
        if not first:
            write(folder, data)
            first.append((folder / page.PAGE).read_bytes())
        (folder / page.PAGE).write_bytes(first[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "report_trained", copy)
        yield
