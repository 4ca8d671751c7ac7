"""Checkpoint folders: whole or not there.

    RUN/checkpoints/step-00000010/   checksums.json   CRC-32 of every other file
                                     state.json       what is not a tensor
                                     NAME.safetensors groups of named tensors

A checkpoint is written beside that folder and renamed into it when every byte is on disk; the newest two stay.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from snella.errors import UserError, short_reason
from snella.files import CHECKSUMS, Records, discard, failures_of, write_json, writing
from snella.json_files import Count, Record, parse_json, read_json, without_nan

DIVERGENCES = "diverged.json"  # in a run folder, where its training has
_DIVERGENCE = Record({"step": Count, "learning_rate": float, "lr": float})
KEPT = 2  # the newest, and one before it in case that one turns out to be damaged

Tensors = dict[str, dict[str, Tensor]]  # file name without suffix: name: tensor


def checkpoints(folder: Path) -> list[Path]:
    """Return the whole checkpoints of a run folder, oldest first."""
    found = (folder / "checkpoints").glob("step-*")
    return sorted((p for p in found if re.fullmatch(r"step-\d{8,}", p.name)), key=step_of)


def checkpoint_of(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step of a run folder stands."""
    return folder / "checkpoints" / f"step-{step:08d}"


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint that a run would be resumed from, or None."""
    return max(checkpoints(folder), key=step_of, default=None)


def done_steps(folder: Path) -> int:
    """Return the optimiser steps after which a run would be resumed, 0 where there is no checkpoint."""
    newest = newest_checkpoint(folder)
    return 0 if newest is None else step_of(newest)


def write_checkpoint(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Any) -> Path:
    """Save tensors and a JSON-able state as the checkpoint of `step` of a run folder.

    Raises:
        UserError: the disk is full or the folder read-only; earlier checkpoints are as they were.
    """
    final = checkpoint_of(folder, step)
    # not beside it: there is nothing but whole checkpoints
    with writing(final, partial=folder / ".checkpoint.partial", durable=True, remedy=Records.REMEDY) as partial:
        partial.mkdir()
        sums = {}
        for name, group in tensors.items():
            content = safetensors.torch.save({key: _plain(value) for key, value in group.items()})
            sums[f"{name}.safetensors"] = _write(partial / f"{name}.safetensors", content)
        sums["state.json"] = _write(partial / "state.json", json.dumps(without_nan(state), allow_nan=False).encode())
        _write(partial / CHECKSUMS, json.dumps(sums).encode())
    for old in checkpoints(folder)[:-KEPT]:
        with failures_of(folder, Records.REMEDY):
            discard(old, folder / ".checkpoint.discarded")
    return final


def read_divergences(folder: Path) -> list[dict[str, Any]]:
    """Return where a run has diverged: the step, the learning rate there, and the one of the settings ("lr").

    Raises:
        UserError: the file is damaged.
    """
    if not (folder / DIVERGENCES).is_file():
        return []
    return read_json(folder / DIVERGENCES, list[_DIVERGENCE], remedy="delete it")


def write_divergence(folder: Path, step: int, rate: float, lr: float) -> None:
    """Add a divergence to those of a run, unless it is there."""
    found, new = read_divergences(folder), {"step": step, "learning_rate": rate, "lr": lr}
    if new not in found:
        write_json(folder / DIVERGENCES, [*found, new])


def read_checkpoint(path: Path, hint: Any = Any) -> tuple[Tensors, Any]:
    """Return the tensors (on the CPU) and the state of a checkpoint folder.

    Raises:
        UserError: a file is missing, cut short or altered, or the state is not what the hint says.
    """
    remedy = "delete that folder to resume from the one before it"
    try:
        sums = read_json(path / CHECKSUMS, dict[str, Count], remedy=remedy)
        content = {name: (path / Path(name).name).read_bytes() for name in sums}
        damaged = [name for name, data in content.items() if zlib.crc32(data) != sums[name]]
        if damaged:
            raise ValueError(f"{damaged[0]} does not match its checksum")
        state = content.pop("state.json").decode()
        tensors = {name.removesuffix(".safetensors"): safetensors.torch.load(d) for name, d in content.items()}
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise UserError(f"checkpoint {path} is damaged ({short_reason(error)}); {remedy}") from error
    return tensors, parse_json(state, hint, f"{path / 'state.json'}", remedy=remedy)


def step_of(path: Path) -> int:
    """Return the optimiser steps done at a checkpoint."""
    return int(path.name.removeprefix("step-"))


def _plain(tensor: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU: safetensors refuses tensors that share memory, as tied weights do."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _write(path: Path, content: bytes) -> int:
    path.write_bytes(content)
    return zlib.crc32(content)
