"""Segmenters: a pre-trained backbone with a decoder that makes a map of classes.

backbone ─┬─ plain ViT ............... plain: two convolutions; dpt
          ├─ several scales .......... unet, fpn, upernet, segformer (segmentation-models-pytorch)
          └─ hf:NAME ................. a segmenter of transformers, with the decoder that it has
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snella.data.transforms import Preprocessing
from snella.errors import UserError
from snella.tasks import bundled, timm_backbone, transformers_backbone
from snella.tasks.backbone import HF, BackboneSpec, build_backbone, check_backbone_name, logits_of, preprocessing_of
from snella.tasks.pretrained import one_line
from snella.tasks.transformers_backbone import SEGMENTER

# decoder -> class of segmentation-models-pytorch
SMP = {"unet": "Unet", "fpn": "FPN", "upernet": "UPerNet", "segformer": "Segformer", "dpt": "DPT"}
FOR_VITS = ("plain", "dpt")  # the others need features of several scales
PLAIN_WIDTH = 256  # channels between the plain decoder's two convolutions
PLAIN_PARTS = 4  # a patch's side in the plain decoder's logits: finer than 1, since tokens know more than one class


@dataclass(frozen=True)
class SegmenterSpec:
    """What is needed to build the same segmenter again; saved with the adapter.

    Args:
        backbone: its `num_classes` is the number of classes K of a pixel.
        decoder: None: plain for plain ViTs, unet for other backbones; transformers' models have their own.
        adapt_decoder: the decoder's layers are tuned as the backbone's are; only the last one is trained fully.
    """

    backbone: BackboneSpec
    decoder: str | None = None
    adapt_decoder: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SegmenterSpec:
        """The inverse of `dataclasses.asdict`."""
        return cls(**{**values, "backbone": BackboneSpec(**values["backbone"])})


class Segmenter(nn.Module):
    """Images (b, 3, h, w) -> logits (b, K, h, w).

    Args:
        net: the model; its logits may be coarser than its input.
        heads: names of its modules that are trained fully.
        multiple: the sides that it takes; images are padded to them and the logits cut back.
        pretrained_cfg: timm's configuration of the backbone's weights.
    """

    def __init__(
        self,
        net: nn.Module,
        heads: tuple[str, ...],
        *,
        multiple: int = 1,
        pretrained_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.pretrained_cfg = pretrained_cfg
        self.multiple = multiple
        self._heads = heads

    def get_classifier(self) -> tuple[nn.Module, ...]:
        """The modules that are trained fully, under the name that timm's classifiers have for theirs."""
        return tuple(self.net.get_submodule(name) for name in self._heads)

    def forward(self, images: Tensor) -> Tensor:
        h, w = images.shape[-2:]
        padded = F.pad(images, (0, -w % self.multiple, 0, -h % self.multiple))
        logits = logits_of(self.net(padded))
        if logits.shape[-2:] != padded.shape[-2:]:
            logits = F.interpolate(logits, size=padded.shape[-2:], mode="bilinear", align_corners=False)
        return logits[..., :h, :w]


class PlainDecoder(nn.Sequential):
    """Two convolutions on patch tokens: (b, d, gh, gw) -> (b, K, 4 gh, 4 gw).

    The first one makes 256 channels, batch-normed; of these the second one says the classes of 4 x 4 parts of a patch.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(
            nn.Conv2d(width, PLAIN_WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm2d(PLAIN_WIDTH),
            nn.GELU(),
            nn.Conv2d(PLAIN_WIDTH, num_classes * PLAIN_PARTS**2, 1),
            nn.PixelShuffle(PLAIN_PARTS),
        )


class PlainSegmenter(nn.Module):
    """A plain ViT of timm and `PlainDecoder` on its last tokens: (b, 3, h, w) -> (b, K, 4 h / patch, 4 w / patch)."""

    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.decoder = PlainDecoder(self.backbone.num_features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        (tokens,) = self.backbone.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
        return self.decoder(tokens)


def check_segmenter(spec: SegmenterSpec) -> None:
    """Refuse what cannot be built; builds no weights and downloads nothing.

    Raises:
        UserError: as `check_backbone_name`; a decoder that does not go with the backbone; a missing package.
    """
    check_backbone_name(spec.backbone)
    name = spec.backbone.name
    if name.startswith(HF):
        if spec.decoder is not None:
            raise UserError(f"--decoder {spec.decoder} does not go with {name}: it has a decoder of its own")
        return
    architecture = bundled.ARCHITECTURE if name == bundled.FOCUS else name
    if not architecture.startswith(timm_backbone.SOURCES):  # those are known only once their files are read
        with torch.device("meta"):
            decoder = _decoder(spec, timm.create_model(architecture))
        if decoder != "plain" and find_spec("segmentation_models_pytorch") is None:
            raise UserError(f"decoder {decoder} needs segmentation-models-pytorch; run: pip install 'snella[segment]'")


def build_segmenter(spec: SegmenterSpec) -> Segmenter:
    """Build the segmenter: images (b, 3, s, s) -> logits (b, K, s, s).

    What is drawn comes from the seed: the decoder, and everything where no weights are loaded.

    Raises:
        UserError: as `check_segmenter`; weights that cannot be had or do not fit; a size that the model cannot take.
    """
    check_segmenter(spec)
    if spec.backbone.name.startswith(HF):
        model = _from_transformers(spec)
    else:
        backbone: Any = build_backbone(spec.backbone)
        decoder = _decoder(spec, backbone)
        torch.manual_seed(spec.backbone.seed)  # so that the decoder does not depend on what the backbone has drawn
        if decoder == "plain":
            backbone.reset_classifier(0)
            net = PlainSegmenter(backbone, spec.backbone.num_classes)
            heads = ("decoder.3",) if spec.adapt_decoder else ("decoder",)
            model = Segmenter(net, heads, pretrained_cfg=backbone.pretrained_cfg)
        else:
            model = _from_smp(spec, decoder, backbone)
    return model


def preprocessing_of_segmenter(spec: SegmenterSpec, model: Any) -> Preprocessing:
    """The preprocessing of the backbone's pre-training, at the size asked for."""
    return preprocessing_of(spec.backbone, model.net if spec.backbone.name.startswith(HF) else model)


def is_plain_vit(backbone: Any) -> bool:
    """Whether a timm model has features of one scale, as plain ViTs do."""
    scales = {info["reduction"] for info in backbone.feature_info}
    return hasattr(backbone, "patch_embed") and len(scales) == 1


def _decoder(spec: SegmenterSpec, backbone: Any) -> str:
    """The decoder to build, or why the one asked for does not go with the backbone."""
    name, plain = spec.backbone.name, is_plain_vit(backbone)
    fitting = FOR_VITS if plain else tuple(decoder for decoder in SMP if decoder not in FOR_VITS)
    decoder = spec.decoder or fitting[0]
    if decoder not in fitting:
        scales = "one scale" if plain else "several scales"
        raise UserError(
            f"decoder {decoder} does not go with {name}, whose features have {scales}; use {', '.join(fitting)}"
        )
    return decoder


def _from_smp(spec: SegmenterSpec, decoder: str, backbone: Any) -> Segmenter:
    """A model of segmentation-models-pytorch whose encoder has the backbone's tensors."""
    import segmentation_models_pytorch as smp

    name, size = spec.backbone.name, spec.backbone.image_size
    options: dict[str, Any] = {"drop_path_rate": spec.backbone.drop_path} if spec.backbone.drop_path else {}
    fixed = backbone.pretrained_cfg.get("fixed_input_size", False)
    if fixed:
        options["img_size"] = _input_size(backbone)
    if decoder == "dpt":
        backbone.reset_classifier(0)
        options |= {"num_classes": 0, "decoder_readout": "cat" if backbone.num_prefix_tokens else "ignore"}
    try:
        net = getattr(smp, SMP[decoder])(
            f"tu-{backbone.pretrained_cfg['architecture']}",
            encoder_weights=None,
            classes=spec.backbone.num_classes,
            **options,
        )
        _carry_over(backbone, net.encoder.model)
        heads = ("segmentation_head",) if spec.adapt_decoder else ("decoder", "segmentation_head")
        multiple = 1 if fixed else net.encoder.output_stride
        model = Segmenter(net, heads, multiple=multiple, pretrained_cfg=backbone.pretrained_cfg)
        side = size or _input_size(backbone)
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, side, side))
    except (ValueError, RuntimeError, TypeError, AssertionError, KeyError) as error:
        raise UserError(
            f"{name} at image size {size or 'None'} cannot have decoder {decoder} ({one_line(error)})"
        ) from error
    return model.train()


def _input_size(backbone: Any) -> int:
    size = getattr(getattr(backbone, "patch_embed", None), "img_size", None)
    return size[0] if size else backbone.pretrained_cfg["input_size"][-1]


def _carry_over(backbone: nn.Module, encoder: nn.Module) -> None:
    """Give the encoder, the backbone as timm makes it for its features alone, the backbone's tensors.

    timm keeps the names, puts the model inside another one, or joins the parts of a list: stages.0 to stages_0.
    """
    source = backbone.state_dict()
    state = {}
    for name, tensor in encoder.state_dict().items():
        places = (name, name.removeprefix("model."), re.sub(r"^([a-z_]+)_(\d+)\.", r"\1.\2.", name))
        found = next((source[place] for place in places if place in source), None)
        if found is None or found.shape != tensor.shape:
            raise ValueError(f"its features need a tensor {name} that the backbone does not have")
        state[name] = found
    encoder.load_state_dict(state)


def _from_transformers(spec: SegmenterSpec) -> Segmenter:
    b = spec.backbone
    net: Any = transformers_backbone.build(
        b.name.removeprefix(HF),
        kind=SEGMENTER,
        pretrained=b.pretrained,
        image_size=b.image_size,
        num_classes=b.num_classes,
        drop_path=b.drop_path,
        seed=b.seed,
    )
    encoder = {net.base_model_prefix, "backbone"}
    heads = tuple(
        name for name, part in net.named_children() if name not in encoder and any(True for _ in part.parameters())
    )
    if spec.adapt_decoder:
        last = [
            name for name, part in net.named_modules() if name.startswith(heads) and _outputs(part) == b.num_classes
        ]
        heads = (last[-1],)
    return Segmenter(net, heads)


def _outputs(layer: nn.Module) -> int | None:
    return layer.out_channels if isinstance(layer, nn.Conv2d) else getattr(layer, "out_features", None)
