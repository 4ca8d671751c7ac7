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

from snella.errors import UserError
from snella.files import Records, discard, failures_of, writing

KEPT = 2  # the newest, and one before it in case that one turns out to be damaged

Tensors = dict[str, dict[str, Tensor]]  # file name without suffix: name: tensor


def checkpoints(folder: Path) -> list[Path]:
    """Return the whole checkpoints of a run folder, oldest first."""
    found = (folder / "checkpoints").glob("step-*")
    return sorted((p for p in found if re.fullmatch(r"step-\d{8,}", p.name)), key=_step)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint that a run would be resumed from, or None."""
    return max(checkpoints(folder), key=_step, default=None)


def write_checkpoint(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Any) -> Path:
    """Save tensors and a JSON-able state as the checkpoint of `step` of a run folder.

    Raises:
        UserError: the disk is full or the folder read-only; earlier checkpoints are as they were.
    """
    final = folder / "checkpoints" / f"step-{step:08d}"
    # not beside it: there is nothing but whole checkpoints
    with writing(final, partial=folder / ".checkpoint.partial", durable=True, remedy=Records.REMEDY) as partial:
        partial.mkdir()
        sums = {}
        for name, group in tensors.items():
            content = safetensors.torch.save({key: _plain(value) for key, value in group.items()})
            sums[f"{name}.safetensors"] = _write(partial / f"{name}.safetensors", content)
        sums["state.json"] = _write(partial / "state.json", json.dumps(state).encode())
        _write(partial / "checksums.json", json.dumps(sums).encode())
    for old in checkpoints(folder)[:-KEPT]:
        with failures_of(folder, Records.REMEDY):
            discard(old, folder / ".checkpoint.discarded")
    return final


def read_checkpoint(path: Path) -> tuple[Tensors, Any]:
    """Return the tensors (on the CPU) and the state of a checkpoint folder.

    Raises:
        UserError: a file is missing, cut short or altered.
    """
    try:
        sums = json.loads((path / "checksums.json").read_bytes())
        content = {name: (path / name).read_bytes() for name in sums}
        damaged = [name for name, data in content.items() if zlib.crc32(data) != sums[name]]
        if damaged:
            raise ValueError(f"{damaged[0]} does not match its checksum")
        state = json.loads(content.pop("state.json"))
        tensors = {name.removesuffix(".safetensors"): safetensors.torch.load(d) for name, d in content.items()}
    except (OSError, ValueError, TypeError, AttributeError, KeyError, SafetensorError) as error:
        raise UserError(
            f"checkpoint {path} is damaged ({error}); delete that folder to resume from the one before it"
        ) from error
    return tensors, state


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _plain(tensor: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU: safetensors refuses tensors that share memory, as tied weights do."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _write(path: Path, content: bytes) -> int:
    path.write_bytes(content)
    return zlib.crc32(content)
