"""Diffusion models by diffusers: the network that is tuned, and the parts of its pipeline that stay as they are.

    name ─┬─ model_index.json ─ family ─┬─ build_network ─ UNet or transformer
          │                             └─ frozen_parts ── VAE, text encoders, scheduler
          └─ small_unet (bundled, untrained)

A pipeline is named by its hub name or its folder. `condition` is what a network is asked for: "text", "class" or
"none" (a UNet2DModel without classes).
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from snella.diffusion import small_unet
from snella.diffusion.class_embeddings import fit_classes
from snella.diffusion.families import FAMILIES, Condition, PipelineFamily
from snella.errors import UserError, short_reason
from snella.models.backbone import BackboneSpec

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

INDEX = "model_index.json"
CLASSES = "classes.json"  # beside it, where classes have names
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # parts that are never loaded


def check_diffusers() -> None:
    """Raise UserError where a package is missing."""
    for package in ("diffusers", "transformers"):
        if find_spec(package) is None:
            raise UserError(f"--task generate needs the package {package}; run: pip install 'snella[diffusers]'")


def check_pipeline_name(name: str) -> None:
    """Refuse a folder that is not a whole pipeline; a hub name is not looked up.

    Raises:
        UserError: no such folder, no model_index.json in it, an unknown pipeline, a part that is missing.
    """
    folder = Path(name).expanduser()
    if name == small_unet.NAME:
        return
    if not folder.exists():
        if name.count("/") == 1 and not name.startswith((".", "/", "~")):
            return  # as the hub names them
        raise UserError(
            f"--backbone {name} does not exist; give the folder of a diffusers pipeline, a hub name (OWNER/NAME) "
            f"or {small_unet.NAME}"
        )
    if not (folder / INDEX).is_file():
        raise UserError(
            f"{name} is not a diffusers pipeline: it has no {INDEX}; give a folder that save_pretrained wrote"
        )
    index = _index(name)
    family = family_of(index, name)
    for part, entry in index.items():
        if part.startswith("_") or not isinstance(entry, list) or entry[0] is None or part in UNUSED:
            continue
        place = folder / part
        if not place.is_dir() or not any(place.iterdir()):
            raise UserError(
                f"{name} is incomplete: {INDEX} names {part}, but there is no folder {place}; copy it there"
            )
        weights = part in (family.network, "vae") or part.startswith("text_encoder")
        if weights and not any(place.glob("*.safetensors")):
            raise UserError(
                f"{name} is incomplete: {place} holds no .safetensors file; save the pipeline with "
                "safe_serialization=True, or copy the file there"
            )


def _factor(vae_config: Mapping[str, Any]) -> int:
    return 2 ** (len(vae_config["block_out_channels"]) - 1)


def image_unit(name: str, network: Any) -> tuple[int, int]:
    """Return the pixels of an image's side for each of the latents', and what a side must be a multiple of."""
    from diffusers import AutoencoderKL

    index = {} if name == small_unet.NAME else _index(name)
    factor = 1
    if isinstance(index.get("vae"), list):
        config: Any = AutoencoderKL.load_config(_location(name), subfolder="vae")
        factor = _factor(config)
    halvings = len(network.config.get("block_out_channels", (1,))) - 1
    patch = network.config.get("patch_size", 1) * (2 if index.get("_class_name") == "FluxPipeline" else 1)
    return factor, factor * 2**halvings * patch


def _location(name: str) -> str:
    """Return a folder with its ~ written out, or a hub name as it is."""
    return os.path.expanduser(name)


def _index(name: str) -> dict[str, Any]:
    file = Path(name).expanduser() / INDEX
    try:
        return dict(json.loads((file if file.is_file() else _hub_index(name)).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        reason = short_reason(error)
        raise UserError(f"backbone {name}: its {INDEX} cannot be read ({reason}); check name and network") from None


@lru_cache(maxsize=8)
def _hub_index(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(name, INDEX))


def named_condition(name: str) -> str:
    """Return what a named pipeline's network is asked for: "text", "class" or "none"; no weights are read."""
    if name == small_unet.NAME:
        return "class"
    index = _index(name)
    family = family_of(index, name)
    if family.encode is not None:
        return "text"
    kind = _network_class(index, family)
    config: Any = kind.load_config(_location(name), subfolder=family.network)
    return _condition(kind.__name__, config)


def _network_class(index: Mapping[str, Any], family: PipelineFamily) -> Any:
    import diffusers

    return getattr(diffusers, index[family.network][1])


def family_of(index: Mapping[str, Any], name: str) -> PipelineFamily:
    """Return the family of a pipeline by its model_index.json; raise UserError where there is none."""
    pipeline = str(index.get("_class_name"))
    for family in FAMILIES:
        if pipeline in family.pipelines:
            return family
    known = ", ".join(pipeline for family in FAMILIES for pipeline in family.pipelines)
    raise UserError(f"{name} is a {pipeline}, which is not known here (known: {known})")


def build_network(spec: BackboneSpec) -> nn.Module:
    """Build the UNet or transformer of a pipeline, in fp32, with an embedding for each class at hand.

    Without `spec.pretrained` its weights are drawn; torch's generator is seeded first. Where the number of classes is
    another one than the pre-trained network's, each class starts at the mean of those that it knows. A network that
    knows none stays as it is.

    Raises:
        UserError: what `check_pipeline_name` finds; weights that cannot be read or downloaded, or are not all there.
    """
    check_pipeline_name(spec.name)
    torch.manual_seed(spec.seed)
    if spec.name == small_unet.NAME:
        if spec.pretrained:
            raise UserError(f"{small_unet.NAME} has no pre-trained weights; train it with --no-pretrained")
        return small_unet.small_unet(max(spec.num_classes, 1))
    index = _index(spec.name)
    family = family_of(index, spec.name)
    part, kind = family.network, _network_class(index, family)
    try:
        if spec.pretrained:
            network = kind.from_pretrained(_location(spec.name), subfolder=part, use_safetensors=True)
        else:
            network = kind.from_config(kind.load_config(_location(spec.name), subfolder=part))
    except (OSError, ValueError, RuntimeError) as error:
        reason = short_reason(error)
        raise UserError(f"backbone {spec.name}: its {part} cannot be loaded ({reason})") from None
    _check_whole(network, part, spec.name)
    if spec.num_classes and condition_of(network) == "class":
        fit_classes(network, spec.num_classes)
    return network


def _check_whole(part: nn.Module, kind: str, name: str) -> None:
    """Raise UserError where a tensor has no values: diffusers leaves what a file lacks so."""
    lacking = next((key for key, value in part.state_dict().items() if value.is_meta), None)
    if lacking is not None:
        raise UserError(f"backbone {name}: the weights of its {kind} lack {lacking}; get the file again")


def condition_of(network: Any) -> str:  # a Module, whose `config` only diffusers knows
    """Return what a network is asked for: "text", "class" or "none"."""
    return _condition(type(network).__name__, network.config)


def _condition(kind: str, config: Mapping[str, Any]) -> str:
    if kind == "UNet2DModel":
        plain = config.get("num_class_embeds") and config.get("class_embed_type") is None
        return "class" if plain else "none"
    return "class" if kind == "DiTTransformer2DModel" else "text"


@dataclass
class Frozen:
    """The parts of a pipeline that are not tuned, and how its network is asked.

    Args:
        pipe: the pipeline without its network, on the CPU.
        family: of its make.
    """

    pipe: DiffusionPipeline
    family: PipelineFamily

    @property
    def vae(self) -> Any:
        """The autoencoder, or None where the network works on pixels."""
        return self.pipe.components.get("vae")

    @property
    def encoders(self) -> list[nn.Module]:
        return [part for part in self.pipe.components.values() if isinstance(part, nn.Module) and part is not self.vae]

    @property
    def factor(self) -> int:
        """Pixels of an image's side for each of its latents'; 1 without a VAE."""
        return _factor(self.vae.config) if self.vae is not None else 1

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """Return mean and log-variance of the latents of images (b, 3, s, s): (b, 2c, s/factor, s/factor), not scaled.

        They are computed in fp32 always: SDXL's VAE overflows in fp16, and what is cached must not depend on the run's
        precision.
        """
        with torch.autocast(images.device.type, enabled=False):
            return self.vae.encode(images.float()).latent_dist.parameters

    def latents(self, moments: Tensor, *, sample: bool) -> Tensor:
        """Return scaled latents (b, c, h, w) of moments: drawn, or their mode."""
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        distribution = DiagonalGaussianDistribution(moments)
        config = self.vae.config
        z = distribution.sample() if sample else distribution.mode()
        return (z - (config.get("shift_factor") or 0.0)) * config.scaling_factor

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        """Return text embeddings, named as the pipeline takes them, each (b, ...); the encoders are on `device`.

        They come in fp32 whatever the encoders compute in: transformers loads those in the type they were saved in.
        """
        assert self.family.encode is not None
        with torch.autocast(device.type, enabled=False):
            embeds = self.family.encode(self.pipe, list(prompts), device)
        return {name: value.float() if value.is_floating_point() else value for name, value in embeds.items()}

    def unread_text(self, prompt: str) -> str:
        """Return the end of a prompt that the text encoders do not read since it is too long; "" if all of it fits."""
        kept = []
        asked = inspect.signature(self.pipe.encode_prompt).parameters if self.family.encode is not None else {}
        t5_most = asked["max_sequence_length"].default if "max_sequence_length" in asked else 0  # the others ask none
        for name, tokenizer in self.pipe.components.items():
            if not name.startswith("tokenizer") or tokenizer is None:
                continue
            ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
            most = t5_most if type(tokenizer).__name__.startswith("T5") else tokenizer.model_max_length
            kept.append(tokenizer.decode(ids[most - 1 : -1], skip_special_tokens=True) if len(ids) > most else "")
        return min(kept, key=len, default="")  # one encoder that reads it whole is enough

    @property
    def text_key(self) -> dict[str, Any]:
        """All that embeddings depend on besides weights and prompt."""
        parts = {name: part for name, part in self.pipe.components.items() if name.startswith("tokenizer") and part}
        tokenizers = {name: part.get_vocab() for name, part in parts.items()}
        return {"pipeline": type(self.pipe).__name__, "config": dict(self.pipe.config), "tokenizers": tokenizers}

    def predict(self, network: nn.Module, x: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Return the network's output (b, c, h, w), without the variance that some networks learn beside it."""
        return self.family.predict(network, x, timesteps, condition)[:, : x.shape[1]]

    def to(self, device: torch.device | str, *, vae: bool = True, encoders: bool = True) -> None:
        """Move the parts to a device."""
        for part in (*(self.encoders if encoders else ()), *((self.vae,) if vae and self.vae is not None else ())):
            part.to(device)


def frozen_parts(name: str) -> Frozen:
    """Load a pipeline without its network and its safety checker, in evaluation mode, nothing to train.

    Raises:
        UserError: a part that cannot be read or downloaded, or a VAE whose weights are not all there.
    """
    if name == small_unet.NAME:
        return Frozen(small_unet.small_pipeline(), FAMILIES[-1])
    from diffusers import DiffusionPipeline

    index = _index(name)
    family = family_of(index, name)
    absent: dict[str, Any] = {family.network: None} | {part: None for part in UNUSED if part in index}
    _silence_libraries()
    try:
        pipe = DiffusionPipeline.from_pretrained(_location(name), use_safetensors=True, **absent)
    except (OSError, ValueError, RuntimeError, ImportError) as error:  # ImportError: a tokenizer's package is missing
        reason = short_reason(error)
        raise UserError(f"backbone {name}: its pipeline cannot be loaded ({reason})") from None
    pipe.set_progress_bar_config(disable=True)
    frozen = Frozen(pipe, family)
    if frozen.vae is not None:
        _check_whole(frozen.vae, "vae", name)
    for part in (*frozen.encoders, frozen.vae):
        if part is not None:
            part.requires_grad_(False).eval()
    return frozen


def _silence_libraries() -> None:
    """Switch off the libraries' bar for each small file, and their warnings of what is said elsewhere.

    That is the safety checker (`has_safety_checker`) and long prompts (`Frozen.unread_text`). A download has the hub's
    bars.
    """
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    for logging in (of_diffusers, of_transformers):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def has_safety_checker(name: str) -> bool:
    """Return whether the named pipeline comes with a safety checker, which is not loaded here."""
    entry = None if name == small_unet.NAME else _index(name).get("safety_checker")
    return isinstance(entry, list) and entry[0] is not None
