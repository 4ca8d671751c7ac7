"""Adapters that one environment makes and another loads: run by the interpreters of both.

cd tests
python4 -m support.crossing FOLDER models make      tiny models of random weights; adapters, and what they give
python5 -m support.crossing FOLDER make check       other adapters; what those of version 4 give here
python4 -m support.crossing FOLDER check            what those of version 5 give there
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from snella import SnellaConfig

MAJOR = transformers.__version__.partition(".")[0]
OUTPUTS = "outputs.safetensors"
_WIDE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
_SQUARE = {"image_size": 32, "patch_size": 8}
_SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
_SEGFORMER = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "sr_ratios": [2, 1],
    "hidden_sizes": [8, 16],
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "num_attention_heads": [1, 2],
    "mlp_ratios": [2, 2],
    "decoder_hidden_size": 16,
}
# family -> class of the model, class of its config, its shapes
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", "ViTConfig", _WIDE | _SQUARE),
    "deit": ("DeiTForImageClassification", "DeiTConfig", _WIDE | _SQUARE),
    "beit": ("BeitForImageClassification", "BeitConfig", _WIDE | _SQUARE | {"use_relative_position_bias": True}),
    "dinov2": (
        "Dinov2ForImageClassification",
        "Dinov2Config",
        {name: value for name, value in _WIDE.items() if name != "intermediate_size"} | _SQUARE,
    ),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", _WIDE | _SQUARE),
    "swin": ("SwinForImageClassification", "SwinConfig", _SWIN),
    "swinv2": ("Swinv2ForImageClassification", "Swinv2Config", _SWIN),
    "segformer": ("SegformerForSemanticSegmentation", "SegformerConfig", _SEGFORMER),
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", _WIDE | _SQUARE),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", _WIDE | _SQUARE),
}
# What target_modules is: the family's layers, or all linear ones, whose names the adapter's config then has
TARGETS = {"default": None, "all": "all-linear"}


def outputs(model: nn.Module) -> Tensor:
    """What a model gives for two images of noise."""
    pictures = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        given = model.eval()(pixel_values=pictures)
    return given.logits if "logits" in given else given.last_hidden_state


def write_model(family: str, folder: Path) -> None:
    """Write the model of a family, with transformers 4: version 5 reads that, and 4 not all that 5 writes."""
    model_class, config_class, shapes = FAMILIES[family]
    transformers.set_seed(5)
    model: Any = getattr(transformers, model_class)(getattr(transformers, config_class)(**shapes))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)  # positions and biases too, which begin at zero
    model.save_pretrained(folder / "models" / family)


def read_model(family: str, folder: Path) -> Any:
    """The model that `write_model` wrote."""
    return getattr(transformers, FAMILIES[family][0]).from_pretrained(folder / "models" / family)


def make(family: str, folder: Path) -> None:
    """Write a family's adapters, with what the model gives without one and with each."""
    place = folder / MAJOR / family
    given = {"base": outputs(read_model(family, folder))}
    for name, targets in TARGETS.items():
        config = SnellaConfig(r=4, gate="hard", init_sparsity=0.7, target_modules=targets)
        tuned = peft.get_peft_model(read_model(family, folder), config)
        for key, parameter in sorted(tuned.named_parameters()):
            if "snella_" in key:
                nn.init.normal_(parameter, std=2.0)
        tuned.save_pretrained(str(place / name))
        given[name] = outputs(tuned)
    save_file({name: tensor.contiguous() for name, tensor in given.items()}, place / OUTPUTS)


def check(family: str, folder: Path) -> dict[str, float]:
    """The largest difference of each output here from what it was where it was made; `moved`: by an adapter there."""
    place = folder / ("4" if MAJOR == "5" else "5") / family
    given = load_file(place / OUTPUTS)
    found = {"base": outputs(read_model(family, folder))}
    for name in TARGETS:
        found[name] = outputs(peft.PeftModel.from_pretrained(read_model(family, folder), str(place / name)))
    differences = {name: (tensor - given[name]).abs().max().item() for name, tensor in found.items()}
    return differences | {"moved": min((given["base"] - given[name]).abs().max().item() for name in TARGETS)}


WORK: dict[str, Callable[[str, Path], Any]] = {"models": write_model, "make": make, "check": check}


def main(folder: Path, commands: Sequence[str]) -> None:
    """Do each command for each family; what is found, or why it fails, is in FOLDER/COMMAND-MAJOR.json."""
    warnings.filterwarnings("ignore", message="target_modules of another version")
    for command in commands:
        found = {}
        for family in FAMILIES:
            try:
                found[family] = WORK[command](family, folder)
            except Exception as error:  # the others are still told
                found[family] = f"{type(error).__name__}: {error}"
        (folder / f"{command}-{MAJOR}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
