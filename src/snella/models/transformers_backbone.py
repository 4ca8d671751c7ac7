"""Models from transformers, by hub name or from a local folder: image classifiers, or another `Kind`."""

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
from PIL import Image
from PIL.Image import Resampling
from torch import nn

from snella.data.transforms.images import Preprocessing
from snella.errors import UserError, short_reason
from snella.models.hub import check_input_size, require_hub

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

Channels = tuple[float, float, float]

REMEDY = "name a local folder, hf:FOLDER, or another backbone"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kind:
    """A kind of model that transformers builds from a configuration.

    Args:
        auto: name of its class for such models.
        what: such a model, in words, with its article.
        head: regular expression of the tensors that need not be in a file, since they are trained anew.
    """

    auto: str
    what: str
    head: str

    @property
    def library_class(self) -> type[_BaseAutoModelClass]:
        """The class of transformers of that name."""
        import transformers

        return getattr(transformers, self.auto)


CLASSIFIER = Kind("AutoModelForImageClassification", "an image classifier", r".*classifier.*")


def check_name(name: str) -> None:
    """Refuse a name that is neither a folder with a model nor possible on the hub.

    Raises:
        UserError: transformers is missing; no such folder; no such kind of name.
    """
    if find_spec("transformers") is None:
        raise UserError(f"backbone hf:{name} needs transformers; install it with: pip install 'snella[transformers]'")
    if os.path.isdir(name):
        if not os.path.isfile(os.path.join(name, "config.json")):
            raise UserError(f"{name} is not a folder with a transformers model: it has no config.json")
    elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise UserError(f"hf:{name} is neither a folder nor a name on the hub (owner/name); check the path")


def build(
    name: str,
    *,
    pretrained: bool,
    image_size: int | None,
    num_classes: int,
    drop_path: float,
    seed: int,
    kind: Kind = CLASSIFIER,
) -> PreTrainedModel:
    """Build the model of that kind in float32 with `num_classes` labels.

    A head of another number of classes is dropped. A model that only takes its own image size is made again at the
    asked one, its position embedding interpolated as the model itself would.

    Raises:
        UserError: weights that cannot be had or are not those of such a model's backbone; a size or a drop-path that
            the model cannot take.
    """
    if not os.path.isdir(name):
        require_hub(name, remedy=REMEDY)
    with quiet_transformers():
        config = _config(name, num_classes, drop_path)
        channels = getattr(_part(config, "num_channels"), "num_channels", 3)
        if channels != 3:
            raise UserError(f"hf:{name} takes images of {channels} channels, and they have three here; {REMEDY}")
        if image_size is not None:
            _check_size(config, name, image_size, kind)
        torch.manual_seed(seed)
        if not pretrained:
            return _from_config(_at_size(config, image_size), name, kind)
        model = _load(config, name, kind)
        if image_size is not None and not _takes(model, image_size):
            model = _resized(model, name, image_size)
        return model


def preprocessing_of(name: str, model: nn.Module) -> Preprocessing:
    """Return the preprocessing of the model's image processor; ImageNet's, with a warning, where it has none.

    The size is the model's own, else the processor's, else 224. How images become square is not the processor's to say
    (its crop_pct, do_center_crop), but what a value becomes is, whatever its settings.

    Raises:
        UserError: a processor that changes values otherwise than by a factor and a term for each channel.
    """
    from transformers import AutoImageProcessor

    size = getattr(model.config, "image_size", None)
    size = size if isinstance(size, int | None) else size[0]
    try:
        with quiet_transformers():
            processor: Any = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):  # its normalisation is not known then
            raise UserError(f"hf:{name} cannot be loaded ({short_reason(error)}); {REMEDY}") from error
        _log.warning("hf:%s has no preprocessor_config.json; images are normalised with ImageNet's mean and std", name)
        return Preprocessing(size or 224)
    crops = getattr(processor, "do_center_crop", True) and getattr(processor, "crop_size", None)
    sides: Any = crops or getattr(processor, "size", None) or {}
    mean, std = _normalisation(processor)
    resample = getattr(processor, "resample", None)
    found = Preprocessing(
        image_size=size or sides.get("height") or sides.get("shortest_edge") or 224,
        mean=mean,
        std=std,
        interpolation="bicubic" if resample is None else Resampling(int(resample)).name.lower(),
        bgr=bool(getattr(processor, "do_flip_channel_order", None)),
    )
    _check_values(name, processor, found)
    return found


def _normalisation(processor: Any) -> tuple[Channels, Channels]:
    """Return mean and std for values in 0..1 that give what the processor's settings give.

    It computes y = v * factor - offset of a value v in 0..255, (y - mean) / std, and with EfficientNet's include_top
    that / std once more.
    """
    factor = 255 * (getattr(processor, "rescale_factor", 1 / 255) if getattr(processor, "do_rescale", True) else 1)
    factor = 1.0 if abs(factor - 1) < 1e-9 else factor
    offset = 1.0 if getattr(processor, "rescale_offset", False) else 0.0
    normalises = getattr(processor, "do_normalize", True)  # else mean and std count for nothing
    mean = _channels(getattr(processor, "image_mean", None), 0.0) if normalises else (0.0, 0.0, 0.0)
    own_std = _channels(getattr(processor, "image_std", None), 1.0)
    std = own_std if normalises else (1.0, 1.0, 1.0)
    again = own_std if getattr(processor, "include_top", False) else (1.0, 1.0, 1.0)
    r, g, b = (((m + offset) / factor, s * t / factor) for m, s, t in zip(mean, std, again, strict=True))
    return (r[0], g[0], b[0]), (r[1], g[1], b[1])


def _channels(values: Any, default: float) -> Channels:
    """Return a setting for each of three channels, given as one number or as three; the default where it is not."""
    if values is None or isinstance(values, int | float):
        values = [default if values is None else values]
    red, green, blue = values if len(values) == 3 else [values[0]] * 3
    return red, green, blue


def _check_values(name: str, processor: Any, found: Preprocessing) -> None:
    """Let the processor prepare two images of one colour, and compare. Raises UserError where it gives other values."""
    for color in ((200, 30, 90), (15, 240, 120)):
        try:
            given: Any = processor(images=Image.new("RGB", (64, 64), color), return_tensors="pt")["pixel_values"]
        except Exception as error:  # whatever a processor needs besides an image
            _log.warning("hf:%s: its image processor cannot be tried (%s)", name, short_reason(error))
            return
        own = [(c / 255 - m) / s for c, m, s in zip(color, found.mean, found.std, strict=True)]
        if found.bgr:
            own.reverse()
        centre = given.float()[..., given.shape[-2] // 2, given.shape[-1] // 2].flatten()[
            :3
        ]  # beside it may be padding
        if given.shape[-3] != 3 or not torch.allclose(centre, torch.tensor(own), 1e-3, 1e-3):
            raise UserError(
                f"hf:{name}: its image processor ({type(processor).__name__}) prepares colours in a way that snella "
                "does not know; use another backbone, or mend its preprocessor_config.json"
            )


def _config(name: str, num_classes: int, drop_path: float) -> PretrainedConfig:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)  # else it asks, and runs code on a yes
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"hf:{name} cannot be loaded ({short_reason(error)}); {REMEDY}") from error
    config.num_labels = num_classes
    if hasattr(config, "use_auxiliary_head"):
        config.use_auxiliary_head = False  # it serves a loss that only the library computes
    part = _part(config, "drop_path_rate")
    own = getattr(part, "drop_path_rate", None)
    wanted = [drop_path] * len(own) if isinstance(own, list) else drop_path  # CvT has one a stage
    if part is not None and own != wanted:
        try:
            part.drop_path_rate = wanted  # 0 too: Swin's and BEiT's own is 0.1
        except Exception as error:  # LeViT's is a whole number, and transformers checks the type
            raise UserError(f"backbone hf:{name} cannot have --drop-path {drop_path}; leave it out") from error
    elif part is None and drop_path:
        raise UserError(f"backbone hf:{name} has no drop-path; leave --drop-path at 0")
    return config


def _part(config: PretrainedConfig, setting: str) -> PretrainedConfig | None:
    """Return the configuration with this setting: the model's, or the inner backbone's; None if neither has it."""
    parts: list[PretrainedConfig | None] = [config, getattr(config, "backbone_config", None)]
    return next((part for part in parts if hasattr(part, setting)), None)


def _at_size(config: PretrainedConfig, image_size: int | None) -> PretrainedConfig:
    config = copy.deepcopy(config)
    part = _part(config, "image_size")
    if image_size is not None and part is not None:
        part.image_size = image_size
    return config


def _from_config(config: PretrainedConfig, name: str, kind: Kind) -> PreTrainedModel:
    try:
        return kind.library_class.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except ValueError as error:
        raise _refusal(error, config, name, kind) from error


def _refusal(error: Exception, config: PretrainedConfig, name: str, kind: Kind) -> UserError:
    if "Unrecognized configuration" in str(error):
        return UserError(f"hf:{name} ({config.model_type}) is not {kind.what}; {REMEDY}")
    return UserError(f"hf:{name} cannot be loaded ({short_reason(error)}); {REMEDY}")


def _check_size(config: PretrainedConfig, name: str, image_size: int, kind: Kind) -> None:
    own_size = getattr(_part(config, "image_size"), "image_size", None)
    try:
        check_input_size(_from_config(_at_size(config, image_size), name, kind), f"hf:{name}", image_size)
    except (RuntimeError, AssertionError, IndexError) as error:
        remedy = f"; its own size, {own_size}, does" if own_size else ""
        raise UserError(f"image size {image_size} does not fit hf:{name} ({short_reason(error)}){remedy}") from error


def _load(config: PretrainedConfig, name: str, kind: Kind) -> PreTrainedModel:
    try:
        model, report = kind.library_class.from_pretrained(
            name,
            config=config,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            dtype=torch.float32,
            trust_remote_code=False,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise _refusal(error, config, name, kind) from error
    head = re.compile(kind.head)
    missing = [key for key in report["missing_keys"] if not head.fullmatch(key)]
    other = [key for key, *_ in report["mismatched_keys"] if not head.fullmatch(key)]
    if missing or other:  # transformers would leave these random
        raise UserError(
            f"hf:{name} does not hold the weights of {type(model).__name__}: {len(missing)} are missing, "
            f"{len(report['unexpected_keys'])} unexpected, {len(other)} of another shape; {REMEDY}"
        )
    if report["mismatched_keys"]:
        _log.warning("hf:%s: its head is dropped; a new one for %d classes is trained", name, config.num_labels)
    elif report["missing_keys"]:
        _log.warning("hf:%s has no such head; a new one for %d classes is trained", name, config.num_labels)
    return model


def _takes(model: PreTrainedModel, image_size: int) -> bool:
    try:
        check_input_size(model, type(model).__name__, image_size)
    except (ValueError, RuntimeError):  # what the models raise on another size than their own
        return False
    return True


def _resized(model: PreTrainedModel, name: str, image_size: int) -> PreTrainedModel:
    """Return the same model for another image size, with the position embeddings interpolated once and for all."""
    resized = type(model)(_at_size(model.config, image_size))
    state, shapes = model.state_dict(), {key: tensor.shape for key, tensor in resized.state_dict().items()}
    for path, module in model.named_modules():
        key = f"{path}.position_embeddings"
        interpolate: Any = getattr(module, "interpolate_pos_encoding", None)
        if key in state and interpolate is not None:
            with torch.no_grad():
                state[key] = interpolate(torch.zeros(shapes[key]), image_size, image_size)
    try:
        resized.load_state_dict(state)
    except RuntimeError as error:  # position biases of another kind
        raise UserError(f"hf:{name} takes its own image size only, {model.config.image_size}; use that") from error
    return resized.eval()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' bars and its tables of what it did not load; our own line or error says that."""
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
