"""What a run keeps of each image of a split that it was evaluated on: RUN/outputs/SPLIT.safetensors.

A tensor has a row for each image; the images' names, below the data's folder, are a JSON list in the file's metadata,
under "names". Which tensors there are is the task's to say (`TaskLearner.kept`):

    classify ..... logits (n, K) fp32, labels (n,)       multilabel ... probabilities and targets (n, K)
    regress ...... predicted and true (n, K)             segment ...... counts (n, 3, K): pixels met, true, predicted
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from snella.errors import UserError, short_reason
from snella.files import writing
from snella.json_files import parse_json

OUTPUTS = "outputs"  # the folder in a run folder
NAMES = "names"


@dataclass(frozen=True)
class Outputs:
    """The rows of a split's images."""

    names: tuple[str, ...]
    values: dict[str, np.ndarray]  # (n, ...) each


def write_outputs(folder: Path, split: str, names: Sequence[str], values: Mapping[str, Tensor]) -> None:
    """Write what is kept of the images of a split; where it is nothing, the file of an earlier time is taken away.

    Args:
        folder: the run folder.
        names: of the n images.
        values: (n, ...) each.
    """
    path = folder / OUTPUTS / f"{split}.safetensors"
    if not values:
        path.unlink(missing_ok=True)
        return
    with writing(path) as partial:
        save_file({name: x.contiguous() for name, x in values.items()}, partial, {NAMES: json.dumps(list(names))})


def read_outputs(folder: Path, split: str) -> Outputs | None:
    """Return what a run keeps of the images of a split; None where it keeps nothing.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / OUTPUTS / f"{split}.safetensors"
    if not path.is_file():
        return None
    remedy = f"write it again: snella evaluate {folder} --split {split}"
    try:
        with safe_open(path, framework="numpy") as opened:
            values = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no dict)
            written = (opened.metadata() or {}).get(NAMES, "[]")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged ({short_reason(error)}); {remedy}") from None
    names = parse_json(written, list[str], str(path), remedy=remedy)
    if any(len(value) != len(names) for value in values.values()):
        raise UserError(f"{path} is damaged (it has other images than names); {remedy}")
    return Outputs(tuple(names), values)
