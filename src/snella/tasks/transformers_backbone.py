"""Backbones from transformers: image classifiers and segmenters, by hub name or from a local folder."""

from __future__ import annotations

import copy
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Resampling
from torch import nn

from snella.data.transforms import Preprocessing
from snella.errors import UserError
from snella.tasks.pretrained import check_input_size, one_line, require_hub

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Kind:
    """What a model of transformers is for."""

    auto: str  # transformers' class that finds the model
    noun: str
    heads: tuple[str, ...]  # parts whose tensors may be missing from a file: they are made anew


CLASSIFIER = Kind("AutoModelForImageClassification", "image classifier", ("classifier",))
SEGMENTER = Kind("AutoModelForSemanticSegmentation", "semantic segmenter", ("classifier", "head", "neck", "fpn"))
REMEDY = "name a local folder, hf:FOLDER, or another backbone"

_log = logging.getLogger(__name__)


def check_name(name: str) -> None:
    """Refuse what is neither a folder with a model nor a possible name on the hub.

    Raises:
        UserError: transformers is missing; no such folder; no such kind of name.
    """
    if find_spec("transformers") is None:
        raise UserError(f"backbone hf:{name} needs transformers; install it with: pip install 'snella[transformers]'")
    if os.path.isdir(name):
        if not os.path.isfile(os.path.join(name, "config.json")):
            raise UserError(f"{name} is no folder with a transformers model: it has no config.json")
    elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise UserError(f"hf:{name} is neither a folder nor a name on the hub (owner/name); check the path")


def build(
    name: str,
    *,
    kind: Kind = CLASSIFIER,
    pretrained: bool,
    image_size: int | None,
    num_classes: int,
    drop_path: float,
    seed: int,
) -> nn.Module:
    """The model of that kind in float32 with `num_classes` labels.

    A head of another number of classes is dropped. A model that only takes its own image size is made again at the
    asked one, its position embedding interpolated as the model itself would.

    Raises:
        UserError: weights that cannot be had or are not those of such a model's backbone; a size or a drop-path that
            the model cannot take.
    """
    if not os.path.isdir(name):
        require_hub(name, remedy=REMEDY)
    with _quiet():
        config = _config(name, num_classes, drop_path)
        if image_size is not None:
            _check_size(config, name, image_size, kind)
        torch.manual_seed(seed)
        if not pretrained:
            return _from_config(_at_size(config, image_size), name, kind)
        model = _load(config, name, kind)
        if image_size is not None and not _takes(model, image_size):
            model = _resized(model, image_size)
        return model


def preprocessing_of(name: str, model: nn.Module) -> Preprocessing:
    """That of the model's image processor; ImageNet's normalisation, with a warning, where it has none."""
    from transformers import AutoImageProcessor

    size = getattr(model.config, "image_size", None)
    size = size[0] if isinstance(size, (list, tuple)) else size
    try:
        with _quiet():
            processor: Any = AutoImageProcessor.from_pretrained(name)
        if size is None:  # a model that takes any size
            size = dict(getattr(processor, "size", None) or {}).get("height")
        size = size or 224
    except (OSError, ValueError):
        size = size or 224
        _log.warning("hf:%s has no preprocessor_config.json; images are normalised with ImageNet's mean and std", name)
        return Preprocessing(size)
    return Preprocessing(
        image_size=size,
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
        interpolation=Resampling(int(processor.resample)).name.lower(),
    )


def _config(name: str, num_classes: int, drop_path: float) -> PretrainedConfig:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"hf:{name} cannot be loaded ({one_line(error)}); {REMEDY}") from error
    config.num_labels = num_classes
    if getattr(config, "use_auxiliary_head", False):
        config.use_auxiliary_head = False  # it serves the model's own loss alone
    if drop_path and not hasattr(config, "drop_path_rate"):
        raise UserError(f"backbone hf:{name} has no drop-path; leave --drop-path at 0")
    if hasattr(config, "drop_path_rate"):
        config.drop_path_rate = drop_path  # 0 too: Swin's and BEiT's own is 0.1
    return config


def _at_size(config: PretrainedConfig, image_size: int | None) -> PretrainedConfig:
    config = copy.deepcopy(config)
    if image_size is not None and hasattr(config, "image_size"):
        config.image_size = image_size
    return config


def _from_config(config: PretrainedConfig, name: str, kind: Kind) -> PreTrainedModel:
    try:
        return _auto(kind).from_config(config, dtype=torch.float32)
    except ValueError as error:
        raise UserError(f"hf:{name} ({config.model_type}) is no {kind.noun}; {REMEDY}") from error


def _auto(kind: Kind) -> Any:
    import transformers

    return getattr(transformers, kind.auto)


def _check_size(config: PretrainedConfig, name: str, image_size: int, kind: Kind) -> None:
    own_size = getattr(config, "image_size", None)
    try:
        check_input_size(_from_config(_at_size(config, image_size), name, kind), f"hf:{name}", image_size)
    except (RuntimeError, AssertionError, IndexError) as error:
        remedy = f"; its own size, {own_size}, does" if own_size else ""
        raise UserError(f"image size {image_size} does not fit hf:{name} ({one_line(error)}){remedy}") from error


def _load(config: PretrainedConfig, name: str, kind: Kind) -> PreTrainedModel:
    try:
        model, found = _auto(kind).from_pretrained(
            name, config=config, ignore_mismatched_sizes=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"hf:{name} cannot be loaded ({one_line(error)}); {REMEDY}") from error
    missing = [key for key in found["missing_keys"] if not _in_head(key, kind)]
    other = [key for key, *_ in found["mismatched_keys"] if not _in_head(key, kind)]
    if missing or other:  # transformers would leave these random
        raise UserError(
            f"hf:{name} does not hold the weights of {type(model).__name__}: {len(missing)} are missing, "
            f"{len(found['unexpected_keys'])} unexpected, {len(other)} of another shape; {REMEDY}"
        )
    if found["mismatched_keys"]:
        _log.warning("hf:%s: its head is dropped; a new one for %d classes is trained", name, config.num_labels)
    return model


def _in_head(key: str, kind: Kind) -> bool:
    return any(head in key.split(".")[0] for head in kind.heads)


def _takes(model: PreTrainedModel, image_size: int) -> bool:
    try:
        check_input_size(model, type(model).__name__, image_size)
    except ValueError:  # what the models raise on another size than their own
        return False
    return True


def _resized(model: PreTrainedModel, image_size: int) -> PreTrainedModel:
    """The same model for another image size, with the position embeddings interpolated once and for all."""
    resized = type(model)(_at_size(model.config, image_size))
    state, shapes = model.state_dict(), {name: tensor.shape for name, tensor in resized.state_dict().items()}
    for name, module in model.named_modules():
        key = f"{name}.position_embeddings"
        interpolate: Any = getattr(module, "interpolate_pos_encoding", None)
        if key in state and interpolate is not None:
            with torch.no_grad():
                state[key] = interpolate(torch.zeros(shapes[key]), image_size, image_size)
    resized.load_state_dict(state)
    return resized.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers' tables of what it did not load are replaced by our own line or error."""
    from transformers.utils import logging as library

    verbosity, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        if bars:
            library.enable_progress_bar()
