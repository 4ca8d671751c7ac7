"""What a finished run keeps, read for its page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from snella.config.schema import TrainConfig
from snella.data.dataset import ImageData
from snella.errors import UserError
from snella.explain.pictures import Explain
from snella.pages.thumbnails import Thumbnails
from snella.report.outputs import Outputs, read_outputs
from snella.runs.folder import read_about, read_config, read_summary, resume_command, state_of

PAGE = "report.html"  # in the folder of a run or of a comparison


@dataclass(frozen=True)
class KeptRun:
    """A finished run: what its folder holds, and the images that can be shown."""

    folder: Path
    config: TrainConfig
    about: Mapping[str, Any]  # adapter/snella.json
    summary: Mapping[str, Any]
    split: str  # "test", or "val" where nothing was tested
    outputs: Mapping[str, Outputs]  # of val and test, where they are kept
    thumbnails: Thumbnails  # of the split's images
    notes: tuple[str, ...] = ()  # what is wrong with it
    explain: Explain | None = None  # paints heat maps over images, where they were asked for

    @property
    def classes(self) -> list[str]:
        """Names of classes, labels or quantities."""
        return list(self.about["classes"])


def read_kept(folder: Path, data: ImageData | None) -> KeptRun:
    """Read a finished run.

    Raises:
        UserError: no run, one that is not finished, or a damaged file.
    """
    config, about = read_config(folder), read_about(folder)
    if state_of(folder) != "finished":
        raise UserError(f"{folder} is not finished; finish it: {resume_command(folder)}")
    summary = read_summary(folder)
    split = "test" if "test" in summary else "val"
    outputs = {name: found for name in ("val", "test") if (found := read_outputs(folder, name)) is not None}
    finite = {name: x for name, x in outputs.items() if all(np.isfinite(value).all() for value in x.values.values())}
    notes = [
        f"What the model gives for some images of {name} is not finite: train again with a lower --lr. "
        "Nothing of these images is shown."
        for name in outputs.keys() - finite.keys()
    ]
    return KeptRun(folder, config, about, summary, split, finite, Thumbnails(data, split), tuple(sorted(notes)))
