"""A tuned segmenter as a checkpoint that loads without this package.

segmentation-models-pytorch . its own folder                       plain ViT . model.pt2, by torch.export
transformers ................ its own folder, with a processor
each with preprocessing.json: class names, mask values, colours, image size and normalisation
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from snella.data.masks import MaskCode
from snella.data.transforms import Preprocessing
from snella.export import beside, check_free, check_reload, put_in_place
from snella.tasks.backbone import HF
from snella.tasks.segmenter import PlainSegmenter, Segmenter, SegmenterSpec

PROGRAM = "model.pt2"


def save_segmenter(
    model: Segmenter,
    folder: Path,
    *,
    spec: SegmenterSpec,
    classes: Sequence[str],
    code: MaskCode,
    palette: Sequence[Sequence[int]],
    preprocessing: Preprocessing,
) -> str:
    """Write a segmenter without adapters, load it again, compare the logits, and only then put it in place.

    Returns:
        The call that loads it: images (b, 3, s, s) -> logits (b, K, s, s), from transformers as coarse as its own are.

    Raises:
        UserError: the folder exists and is not empty; what was written gives other logits.
    """
    check_free(folder)
    model.eval()
    net: Any = model.net
    said = {"classes": list(classes), "masks": code.to_dict(), "palette": [list(color) for color in palette]}
    with beside(folder) as temporary:
        (temporary / "preprocessing.json").write_text(
            json.dumps({**preprocessing.to_dict(), **said}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        if isinstance(net, PlainSegmenter):
            library, hint, written = "torch", f'torch.export.load("{folder / PROGRAM}").module()', model
            _export(model, temporary / PROGRAM, preprocessing.image_size)
        elif spec.backbone.name.startswith(HF):
            library, hint, written = "transformers", _transformers_hint(folder), net
            _save_transformers(net, temporary, classes, preprocessing)
        else:
            library, hint, written = "segmentation_models_pytorch", f'smp.from_pretrained("{folder}")', net
            net.save_pretrained(temporary)
        size = -(-preprocessing.image_size // model.multiple) * model.multiple
        check_reload(written, lambda: _load(temporary, library), spec.backbone.name, library, size)
        put_in_place(temporary, folder)
    return hint


def _transformers_hint(folder: Path) -> str:
    return f'transformers.AutoModelForSemanticSegmentation.from_pretrained("{folder}")'


def _export(model: Segmenter, file: Path, image_size: int) -> None:
    images = torch.zeros(2, 3, image_size, image_size)  # one image would be taken for a fixed size
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own parts, about one another
        program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, file)


def _save_transformers(net: Any, folder: Path, classes: Sequence[str], p: Preprocessing) -> None:
    from timm.data.transforms import str_to_pil_interp
    from transformers import ViTImageProcessor

    net.config.id2label = dict(enumerate(classes))
    net.config.label2id = {name: label for label, name in enumerate(classes)}
    # one file: parts left from a larger model would be read in the place of a single one
    net.save_pretrained(folder, safe_serialization=True, max_shard_size="1TB")
    size = {"height": p.image_size, "width": p.image_size}
    mean, std, resample = list(p.mean), list(p.std), int(str_to_pil_interp(p.interpolation))
    ViTImageProcessor(size=size, image_mean=mean, image_std=std, resample=resample).save_pretrained(folder)


def _load(folder: Path, library: str) -> nn.Module:
    if library == "torch":
        return torch.export.load(folder / PROGRAM).module()
    if library == "transformers":
        from transformers import AutoModelForSemanticSegmentation

        return AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
    import segmentation_models_pytorch as smp

    with contextlib.redirect_stdout(None):  # it prints where the weights come from
        return smp.from_pretrained(str(folder)).eval()
