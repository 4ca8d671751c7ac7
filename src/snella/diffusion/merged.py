"""A tuned network in its whole pipeline, as a folder that diffusers loads without this package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from snella.diffusion.pipeline import CLASSES, condition_of, frozen_parts
from snella.errors import UserError
from snella.files import check_free, writing_into
from snella.models.export import MERGED_TOLERANCE


def save_merged_pipeline(model: nn.Module, folder: Path, *, name: str, classes: Sequence[str]) -> str:
    """Write the pipeline `name` with the tuned network (without adapters) in it; return the call that loads it.

    Its safety checker is not in it. Class names go to classes.json. The network is loaded again and must give the same
    output before the folder is put in place.

    Raises:
        UserError: the folder exists, cannot be written, or diffusers reads another network out of it.
    """
    folder = check_free(folder, overwrite=False)
    frozen = frozen_parts(name)
    part = frozen.family.network
    model.eval()
    with writing_into(folder) as temporary:
        frozen.pipe.register_modules(**{part: model})
        frozen.pipe.save_pretrained(temporary, safe_serialization=True)
        if classes and condition_of(model) == "class":
            (temporary / CLASSES).write_text(json.dumps(list(classes), ensure_ascii=False) + "\n", encoding="utf-8")
        loaded = type(model).from_pretrained(temporary, subfolder=part)  # pyright: ignore[reportAttributeAccessIssue]
        _check_same(model, loaded, name)
    if classes and condition_of(model) == "class":  # diffusers' own pipelines pass no classes on, or ImageNet's alone
        return f'diffusers.{type(model).__name__}.from_pretrained("{folder}", subfolder="{part}")'
    return f'diffusers.{type(frozen.pipe).__name__}.from_pretrained("{folder}")'


@torch.no_grad()
def _check_same(model: nn.Module, loaded: nn.Module, name: str) -> None:
    """Compare the parameters, one by one: a pipeline's input is different for each family. Raises UserError."""
    own, read = model.state_dict(), loaded.state_dict()
    odd = sorted(own.keys() ^ read.keys()) or sorted(
        key for key in own if (own[key].float() - read[key].float()).abs().max() > MERGED_TOLERANCE
    )
    if odd:
        raise UserError(f"nothing was written: diffusers reads another {odd[0]} out of the merged {name}; update it")
