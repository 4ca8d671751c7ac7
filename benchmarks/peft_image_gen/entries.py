"""SNELLA's entries for PEFT's method comparisons, as their folders have them.

    python -m benchmarks.peft_image_gen.entries PEFT/method_comparison

The settings are the tuner's defaults, at the rank and on the layers of PEFT's own LoRA beside them. Rates are those at
which the rates of all steps sum to what `snella train` takes at most (METHODS["snella"].most_travel, of a cosine).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.utils import CONFIG_NAME

from snella import SnellaConfig
from snella.files import write_json

HERE = Path(__file__).parent / "method_comparison"  # laid out as PEFT's folder of this name
RANK = 32


@dataclass(frozen=True)
class Entry:
    """An experiment of one of PEFT's comparisons, with the configuration of LoRA's beside it."""

    comparison: str  # its folder
    experiment: str  # below experiments/snella/
    snella: SnellaConfig
    lora: LoraConfig
    training: Mapping[str, Any] = field(default_factory=dict)  # what differs from the comparison's own

    @property
    def place(self) -> Path:
        """Return the entry's folder, below `method_comparison`."""
        return Path(self.comparison, "experiments", "snella", self.experiment)

    def write(self, root: Path) -> Path:
        """Write the entry's files below a folder `method_comparison`; returns where."""
        folder = root / self.place
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG_NAME, {name: _ordered(value) for name, value in self.snella.to_dict().items()})
        if self.training:
            write_json(folder / "training_params.json", dict(self.training))
        return folder


def image_entry() -> Entry:
    """Return the entry for images: 750 steps at a constant rate, for which PEFT's default, 1e-4, is the sum's."""
    model = "black-forest-labs/FLUX.2-klein-base-4B"
    attention = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
    targets = [*attention, "to_qkv_mlp_proj", "linear_in", "linear_out"]
    return Entry(
        "image-gen",
        f"flux2-klein-rank{RANK}",
        _snella(model, targets, total_step=750),
        LoraConfig(r=RANK, lora_alpha=32, target_modules=targets),
    )


def language_entry() -> Entry:
    """Return the entry for text: 5000 steps on a cosine; the layers are PEFT's default for this model, as LoRA's."""
    model = "meta-llama/Llama-3.2-3B"
    return Entry(
        "MetaMathQA",
        f"llama-3.2-3B-rank{RANK}",
        _snella(model, None, total_step=5000, task_type="CAUSAL_LM"),
        LoraConfig(r=RANK, lora_alpha=64, task_type="CAUSAL_LM"),
        {"optimizer_kwargs": {"lr": 3e-5, "weight_decay": 0.1}},
    )


def _ordered(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value


def _snella(model: str, targets: list[str] | None, **settings: Any) -> SnellaConfig:
    return SnellaConfig(
        r=RANK,
        target_modules=targets,
        modules_to_save=[],  # no head, as the others' entries
        base_model_name_or_path=model,
        **settings,
    )


ENTRIES = {"image": image_entry, "language": language_entry}


def main(arguments: Sequence[str]) -> int:
    """Write the entries and print where; returns the exit code."""
    root = Path(arguments[0]) if arguments else HERE
    if not root.is_dir():
        print(f"error: {root} is not a folder; name PEFT's method_comparison", file=sys.stderr)
        return 2
    for make in ENTRIES.values():
        print(make().write(root))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
