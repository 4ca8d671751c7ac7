"""Segmentation models of segmentation-models-pytorch (smp) around an encoder from timm.

    timm model with its weights ── tensors, name by name ──> encoder.model ─┐
    smp.Unet, FPN, UPerNet, Segformer, DPT ("tu-NAME", no weights) ─────────┴─ net

smp would download weights by itself, so it is asked for none: the timm model is built elsewhere, and each tensor of the
encoder must have one in there.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm.models
import torch
from torch import nn

from snella.errors import UserError, short_reason

CLASSES = {"unet": "Unet", "fpn": "FPN", "upernet": "UPerNet", "segformer": "Segformer", "dpt": "DPT"}
STRIDE = 32  # pixels a side of what becomes one position of the coarsest features
UNET_WIDTHS = (256, 128, 64, 32, 16)  # channels, smp's own for five scales
DPT_WIDTHS = (256, 512, 1024, 1024)  # and for four blocks
INSTALL = "pip install 'snella[segment]'"


def check_package(decoder: str) -> None:
    """Raise UserError, with the command that installs it, where smp is missing."""
    if find_spec("segmentation_models_pytorch") is None:
        raise UserError(f"decoder {decoder} needs segmentation-models-pytorch; install it with: {INSTALL}")


def build(
    decoder: str, name: str, timm_model: Any, *, num_classes: int, image_size: int | None, drop_path: float, seed: int
) -> Any:
    """Build the smp model with `timm_model` as its encoder; the rest is drawn from the seed.

    Args:
        decoder: one of `CLASSES`.
        name: the timm name that the model was built by.
        timm_model: with its weights; left as it is.
        num_classes: K.
        image_size: side of the input, pixels, for an encoder that is made for one size; None for one that takes any.
        drop_path: as the model was built with.
        seed: of the decoder.

    Raises:
        UserError: the model has no features that the decoder can use, or not all of its tensors.
    """
    import segmentation_models_pytorch as smp

    encoder_name, options = _encoder(name, timm_model)
    if drop_path:
        options["drop_path_rate"] = drop_path
    if image_size is not None:
        options["img_size"] = image_size
    options |= _dpt_options(timm_model) if decoder == "dpt" else _pyramid_options(decoder, name, timm_model)
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="timm|torch.nn.init")
            net = getattr(smp, CLASSES[decoder])(
                encoder_name=f"tu-{encoder_name}", encoder_weights=None, classes=num_classes, **options
            )
    except (ValueError, AssertionError, IndexError, RuntimeError, AttributeError, TypeError) as error:
        raise UserError(
            f"decoder {decoder} cannot use {name} ({short_reason(error)}); choose another backbone"
        ) from error
    if decoder == "dpt" and not loads_with_smp(net):
        _mend_dpt(net, options, seed)
    _carry_over(timm_model, net.encoder.model, name)
    net.encoder.model.pretrained_cfg = timm_model.pretrained_cfg
    return net


def fixed_size(decoder: str, name: str, outline: Any, image_size: int | None) -> int | None:
    """Return the side of the input, pixels, of an encoder that is made for one size; None for one that takes any.

    Args:
        outline: the timm model, weights or not.
        image_size: the one asked for; None: that of the pre-training.

    Raises:
        UserError: a size that the decoder cannot use, with ones that it can.
    """
    config, dpt, made_for = outline.pretrained_cfg, decoder == "dpt", _arguments(name).get("img_size")
    if not (dpt or config.get("fixed_input_size") or made_for):
        return None
    own = made_for or config["input_size"]
    size, multiple = image_size or (own if isinstance(own, int) else own[-1]), STRIDE
    if dpt:  # halves the grid of patches until one stands for 32 pixels
        patch = outline.patch_embed.patch_size[0]
        multiple = patch * max(1, STRIDE // _power(patch))
    if rest := size % multiple:
        below, above = size - rest, size - rest + multiple
        raise UserError(
            f"image size {size} is not a multiple of {multiple}, which {name} with {decoder} needs; "
            f"try {f'{below} or {above}' if below else above}"
        )
    return size


def loads_with_smp(net: Any) -> bool:
    """Return whether smp builds the model from its configuration: not a DPT on patches of 14 pixels, or the like."""
    stride = net.encoder.output_stride
    return stride == _power(stride)


def save(net: Any, folder: Path) -> None:
    """Write smp's own format: config.json, model.safetensors and a README.md."""
    net.save_pretrained(folder)


def load(folder: Path) -> nn.Module:
    """Load what `save` wrote."""
    import segmentation_models_pytorch as smp

    with contextlib.redirect_stdout(io.StringIO()):  # the hub's client prints where it loads from
        return smp.from_pretrained(str(folder))


def _encoder(name: str, timm_model: Any) -> tuple[str, dict[str, Any]]:
    """Return the name that timm's registry has for the model, and the other arguments that it was made with."""
    if timm.models.is_model(name):
        return name, {}
    set_here = ("in_chans", "num_classes", "features_only", "out_indices", "pretrained", "img_size", "drop_path_rate")
    arguments = {key: value for key, value in _arguments(name).items() if key not in set_here}
    return timm_model.pretrained_cfg["architecture"], arguments


def _arguments(name: str) -> dict[str, Any]:
    """Return the arguments that a model in timm's hub format was made with; none for one of the registry."""
    if name.startswith("hf-hub:"):
        return timm.models.load_model_config_from_hf(name.removeprefix("hf-hub:"))[2] or {}
    if name.startswith("local-dir:"):
        file = os.path.join(name.removeprefix("local-dir:"), "config.json")
        with open(file, encoding="utf-8") as stream:
            return json.load(stream).get("model_args") or {}
    return {}


def _pyramid_options(decoder: str, name: str, timm_model: Any) -> dict[str, Any]:
    """Return how many of the encoder's scales are used: five, or as many as there are."""
    info = timm_model.feature_info
    scales = [entry["reduction"] for entry in (info if isinstance(info, list) else info.get_dicts())]
    # smp counts a scale of 1/2 that is not there, and does not count one of 1/1
    depth = min(5, len(scales) + {4: 1, 1: -1}.get(scales[0], 0))
    if depth < (5 if decoder == "fpn" else 3):
        raise UserError(
            f"{name} has features of {', '.join(f'1/{scale}' for scale in scales)} of the image's size, too few for "
            f"{decoder}; choose another backbone"
        )
    return {"encoder_depth": depth} | ({"decoder_channels": UNET_WIDTHS[:depth]} if decoder == "unet" else {})


def _dpt_options(timm_model: Any) -> dict[str, Any]:
    depth = min(4, len(timm_model.blocks))
    return {
        "encoder_depth": depth,
        "decoder_intermediate_channels": DPT_WIDTHS[:depth],
        "decoder_readout": "cat" if timm_model.num_prefix_tokens else "ignore",
        "num_classes": 0,
    }


def _mend_dpt(net: Any, options: dict[str, Any], seed: int) -> None:
    """Treat patches of 14 pixels as ones of 16; smp's own factors do not fit together there."""
    from segmentation_models_pytorch.base.initialization import initialize_decoder
    from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder

    torch.manual_seed(seed)
    net.decoder = DPTDecoder(
        encoder_out_channels=net.encoder.out_channels,
        encoder_output_strides=[_power(stride) for stride in net.encoder.output_strides],
        encoder_has_prefix_tokens=net.encoder.has_prefix_tokens,
        readout=options["decoder_readout"],
        intermediate_channels=options["decoder_intermediate_channels"],
    )
    initialize_decoder(net.decoder)


def _power(pixels: int) -> int:
    """Return the nearest power of two."""
    return 2 ** round(math.log2(pixels))


@torch.no_grad()
def _carry_over(timm_model: nn.Module, encoder: nn.Module, name: str) -> None:
    """Give every tensor of the encoder its value in the timm model; raise UserError where one has none, or two."""
    state, taken = timm_model.state_dict(), {}
    for key, tensor in encoder.state_dict().items():
        found = [source for source in dict.fromkeys(_sources(key)) if source in state]
        if len(found) != 1 or state[found[0]].shape != tensor.shape:
            raise UserError(
                f"{key} of the encoder was found {len(found)} times in {name} with its shape, {tuple(tensor.shape)}; "
                f"choose another backbone"
            )
        taken[key] = found[0]
    if len(set(taken.values())) != len(taken):
        raise UserError(f"the tensors of {name} do not fit its encoder one to one; choose another backbone")
    encoder.load_state_dict({key: state[source] for key, source in taken.items()})


def _sources(key: str) -> Iterator[str]:
    """Yield what a tensor of timm's feature extractors may be called in the whole model.

    The same; without a wrapper's name before it (`model.`, `body.`); or `stages.0` for `stages_0`.
    """
    yield key
    first, _, rest = key.partition(".")
    if first in ("model", "body"):
        yield rest
    for index, character in enumerate(first):
        if character == "_":
            yield f"{first[:index]}.{first[index + 1 :]}.{rest}"
