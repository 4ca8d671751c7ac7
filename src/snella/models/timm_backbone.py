"""Backbones from timm: the model, its weights from the hub or from a file, and its input size."""

from __future__ import annotations

import difflib
import logging
import os
from typing import Any

import numpy as np
import timm
import timm.data
import timm.models
import torch
from torch import Tensor, nn

from snella.data.transforms.images import Preprocessing
from snella.errors import UserError, short_reason
from snella.models.hub import WEIGHTS, WITHOUT_HUB, check_input_size, require_hub

SOURCES = ("hf-hub:", "local-dir:")  # timm's own prefixes of names
CHECKPOINTS = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt", ".npz")

_log = logging.getLogger(__name__)


def check_name(name: str, *, pretrained: bool, checkpoint: str | None) -> None:
    """Refuse an unknown name, one without weights, or a checkpoint that is not there; nothing is built.

    Raises:
        UserError: with near names, or the weights that there are.
    """
    if checkpoint is not None:
        if not os.path.isfile(checkpoint):
            raise UserError(f"checkpoint {checkpoint} is not a file; check the path")
        if not checkpoint.lower().endswith(CHECKPOINTS):
            raise UserError(f"checkpoint {checkpoint} is of no known kind; use {', '.join(CHECKPOINTS)}")
    if name.startswith(SOURCES):
        folder = name.removeprefix("local-dir:")
        if folder != name and not os.path.isfile(os.path.join(folder, "config.json")):
            raise UserError(f"{folder} is not a folder with a timm model: it has no config.json; check the path")
        return
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models() + timm.list_pretrained(), n=3, cutoff=0.5)
        hint = (
            f"; did you mean {' or '.join(near)}?" if near else "; python -c 'import timm; print(timm.list_models())'"
        )
        raise UserError(f"backbone {name!r} is unknown to timm{hint}")
    architecture, _, tag = name.partition(".")
    known = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in known:
        raise UserError(f"timm has no weights {name!r}; {_choices(architecture, known)}")
    if pretrained and checkpoint is None and not known and _config(name) is not None:
        raise UserError(f"timm has no pre-trained weights for {name}; {WITHOUT_HUB}")


def build(
    name: str,
    *,
    pretrained: bool,
    checkpoint: str | None,
    image_size: int | None,
    num_classes: int,
    drop_path: float,
    seed: int,
) -> nn.Module:
    """Build the timm model with a head for `num_classes`; a file's head of as many classes is kept.

    Raises:
        UserError: weights that cannot be had or do not fit, a size or a drop-path that the model cannot take.
    """
    if name.startswith("hf-hub:"):
        _require_named(name)
    options: dict[str, Any] = {"num_classes": num_classes}
    if drop_path:
        options["drop_path_rate"] = drop_path
    if image_size is not None:
        options |= _size_options(name, options, image_size)
    torch.manual_seed(seed)
    if checkpoint is None:
        return _from_hub(name, options) if pretrained else _create(name, options)
    if checkpoint.lower().endswith(".npz"):
        return _from_npz(name, options, checkpoint)
    return _from_file(name, options, checkpoint, seed)


def outline(name: str) -> Any:
    """Build the named model without weights, in no memory where timm can, to look at its class, stages and sizes.

    Raises:
        UserError: a name on a hub that cannot be reached.
    """
    if name.startswith("hf-hub:"):
        _require_named(name)
    try:
        with torch.device("meta"):
            return _create(name, {"num_classes": 0})
    except (RuntimeError, NotImplementedError):  # an architecture that computes with what it draws
        return _create(name, {"num_classes": 0})


def preprocessing_of(model: nn.Module) -> Preprocessing:
    """Return the preprocessing that the model's weights were trained with, at that size."""
    config = timm.data.resolve_model_data_config(model)
    return Preprocessing(
        image_size=config["input_size"][-1],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
    )


def _require_named(name: str) -> None:
    require_hub(name.removeprefix("hf-hub:"), remedy="name a local copy, local-dir:FOLDER, or another backbone")


def _choices(architecture: str, known: list[str]) -> str:
    return f"choose from {', '.join(known)}" if known else f"{architecture} has none; {WITHOUT_HUB}"


def _config(name: str) -> Any:
    """Return timm's entry for the weights of a name; None for a name that timm keeps for old code only."""
    return timm.models.get_pretrained_cfg(name)


def _create(name: str, options: dict[str, Any], **weights: Any) -> Any:  # timm's models have more than a Module says
    try:
        return timm.create_model(name, **options, **weights)
    except TypeError as error:
        if "'drop_path_rate'" in str(error):
            raise UserError(f"backbone {name} has no drop-path; leave --drop-path at 0") from error
        raise


def _size_options(name: str, options: dict[str, Any], image_size: int) -> dict[str, int]:
    """Return the option that makes the model for this size: none for a net that takes any, such as a convolutional."""
    model, chosen = _create(name, options), {}
    own_size = timm.data.resolve_model_data_config(model)["input_size"][-1]
    if image_size == own_size:
        return chosen
    try:
        if model.pretrained_cfg.get("fixed_input_size", False):
            chosen = {"img_size": image_size}
            model = _create(name, options | chosen)
        check_input_size(model, name, image_size)
    except UserError:
        raise
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        raise UserError(
            f"image size {image_size} does not fit {name} ({short_reason(error)}); its own size, {own_size}, does"
        ) from error
    return chosen


def _from_hub(name: str, options: dict[str, Any]) -> nn.Module:
    if not name.startswith(SOURCES):
        config = _config(name)
        if config is None:  # an old name, which builds the model of its new one
            source = _create(name, options).pretrained_cfg
        else:
            source = config.to_dict()
        if repo := source.get("hf_hub_id"):
            require_hub(repo, files=(*WEIGHTS, source.get("hf_hub_filename") or WEIGHTS[0]))
    try:
        return _create(name, options, pretrained=True)
    except OSError as error:  # the hub's and urllib's errors are all of this kind
        raise UserError(f"the weights of {name} cannot be downloaded ({short_reason(error)}); {WITHOUT_HUB}") from error


def _from_npz(name: str, options: dict[str, Any], file: str) -> nn.Module:
    """Load one of Google's files for ViT and BiT, through the model's own loader."""
    model = _create(name, options)
    if not hasattr(model, "load_pretrained"):
        raise UserError(f"{name} cannot be loaded from {file}: timm reads .npz for ViT and BiT only")
    try:
        model.load_pretrained(file)
        with np.load(file) as arrays:
            heads = [arrays[key].shape[-1] for key in arrays.files if key.endswith("head/bias")]
    except Exception as error:
        reason = f"no {error}" if isinstance(error, KeyError) else short_reason(error)
        raise UserError(f"{file} does not fit {name} ({reason}); name the backbone it was saved from") from error
    _warn_of_dropped_head(file, heads[0] if heads else 0, options["num_classes"])
    return model


def _from_file(name: str, options: dict[str, Any], file: str, seed: int) -> nn.Module:
    """Load a file of tensors by name, through timm's conversion of other people's names and of position embeddings."""
    try:
        state = timm.models.load_state_dict(file, weights_only=True)
    except Exception as error:  # pickle's, torch's, safetensors'
        raise UserError(f"{file} cannot be read as weights: {short_reason(error)}") from error
    expected = _create(name, options)
    classes = _classes(state, expected)
    # At the file's own number of classes timm loads strictly, so nothing that is missing stays random unseen.
    source = {"state_dict": state, "num_classes": classes, "source": "", "custom_load": False, "label_offset": 0}
    try:
        model = _create(name, options | {"num_classes": classes}, pretrained=True, pretrained_cfg_overlay=source)
    except Exception as error:  # what a conversion meets in a stranger's file is open
        raise UserError(f"{file} does not fit {name}: {_misfit(state, expected, error)}") from error
    del model.pretrained_cfg["state_dict"]  # else a second copy of the weights stays with the model
    _warn_of_dropped_head(file, classes, options["num_classes"])
    if classes != options["num_classes"]:
        torch.manual_seed(seed)
        model.reset_classifier(options["num_classes"])
    return model


def _classes(state: dict[str, Any], model: Any) -> int:
    """Return the number of classes of the head in the file; 0 without a head."""
    classifiers = model.pretrained_cfg.get("classifier") or ()
    for name in [classifiers] if isinstance(classifiers, str) else classifiers:
        for known in (name, name.removesuffix(".fc")):  # original Swin and ConvNeXt files say head for timm's head.fc
            weight = state.get(f"{known}.weight")
            if isinstance(weight, Tensor):
                return weight.shape[0]
    return 0


def _misfit(state: dict[str, Any], model: nn.Module, error: Exception) -> str:
    """Say how the tensors of a file differ from the model's, or what loading failed with where they do not."""
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    missing = len(wanted.keys() - state.keys())
    unexpected = len(state.keys() - wanted.keys())
    other = sum(getattr(state[name], "shape", None) != wanted[name] for name in wanted.keys() & state.keys())
    if not missing + unexpected + other:
        return short_reason(error)
    return (
        f"{missing} of its {len(wanted)} tensors are missing, {unexpected} are unexpected and {other} have another "
        f"shape; name the backbone that the file was saved from"
    )


def _warn_of_dropped_head(file: str, classes: int, wanted: int) -> None:
    if classes not in (0, wanted):
        _log.warning("%s: its head of %d classes is dropped; a new one for %d is trained", file, classes, wanted)
