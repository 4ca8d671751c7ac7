"""Tensors on disk by key: what a frozen network makes of an image or a text is computed once.

The key says all that a value depends on, so nothing is ever out of date; to empty the cache, delete its folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from snella.files import writing

_SUM = "sha256"


class TensorCache:
    """FOLDER/ab/abcdef….safetensors: one file a key, written atomically; a damaged file counts as absent.

    Several processes may use one folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> dict[str, Tensor] | None:
        """Return the tensors, on the CPU, or None."""
        try:
            with safe_open(self._path(key), "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
                whole = (file.metadata() or {}).get(_SUM) == _checksum(tensors)
        except (OSError, SafetensorError):
            return None
        return tensors if whole else None

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors. Raises UserError where the folder cannot be written to."""
        plain = {
            name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        content = safetensors.torch.save(plain, {_SUM: _checksum(plain)})
        with writing(self._path(key), shared=True) as partial:
            partial.write_bytes(content)

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def _path(self, key: str) -> Path:
        if not re.fullmatch(r"[\w-]{3,}", key, re.ASCII):
            raise ValueError(f"key {key!r} makes no file name; use content_key")
        return self.folder / key[:2] / f"{key}.safetensors"


def content_key(*parts: str | bytes | Mapping) -> str:
    """Return the SHA-256 (hexadecimal) of the parts in their order; of mappings the order of keys does not count.

    >>> content_key("ab", "c") == content_key("a", "bc")
    False
    """
    tagged: list[tuple[str, object]] = []
    for part in parts:
        if isinstance(part, bytes):
            tagged.append(("bytes", hashlib.sha256(part).hexdigest()))
        elif isinstance(part, str):
            tagged.append(("text", part))
        else:
            tagged.append(("mapping", dict(part)))
    return hashlib.sha256(json.dumps(tagged, sort_keys=True).encode()).hexdigest()


def image_key(image: Image.Image) -> str:
    """Return the `content_key` of mode, size and pixels: it changes with the image, and stays when its file moves."""
    form = {"mode": image.mode, "size": image.size, "palette": image.getpalette()}
    return content_key(form, image.tobytes())


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the sum of names, types, shapes and values."""
    parts: list[str | bytes] = []
    for name in sorted(tensors):
        tensor = tensors[name]
        parts += [name, f"{tensor.dtype} {list(tensor.shape)}", tensor.reshape(-1).view(torch.uint8).numpy().tobytes()]
    return content_key(*parts)
