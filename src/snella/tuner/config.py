"""The adapter's configuration, as `adapter_config.json` holds it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any, Literal

from peft import PeftConfig, PeftType
from peft.utils.other import get_pattern_key

from snella.delta import GATES, KERNELS
from snella.errors import UserError
from snella.tuner.model_card import describe

PEFT_TYPE = "SNELLA"


class UniqueNames(list[str]):
    """A list that takes no name twice: PEFT's models for tasks add the names of heads that are there already."""

    def extend(self, names: Iterable[str]) -> None:
        super().extend(name for name in dict.fromkeys(names) if name not in self)


@dataclass
class SnellaConfig(PeftConfig):
    """Configuration of a SNELLA adapter (arXiv 2510.24037), a `peft.PeftConfig`.

    Example:
        >>> import peft, timm
        >>> model = timm.create_model("test_vit", num_classes=5)
        >>> tuned = peft.get_peft_model(model, SnellaConfig(r=8, target_sparsity=0.9, total_step=1000))

    The published updates have one constant for all layers, and take a learning rate far above the head's. Here they are
    in proportion to the weights that they change (`relative_scale`), so that one learning rate, about LoRA's, suits
    all layers of all backbones, and the head. `SnellaConfig.published()` has the constants as published.

    Raises:
        UserError: a value outside its range; the message names the field.
    """

    r: int = field(default=32, metadata={"help": "Rank: columns of both factors, over all heads."})
    heads: int = field(default=2, metadata={"help": "Parts the rank is split into; their distances alternate in sign."})
    scale: float | None = field(
        default=None,
        metadata={"help": "Constant c before the distances, the same for all layers; None: as relative_scale has it."},
    )
    relative_scale: float = field(
        default=8.0,
        metadata={
            "help": "c over the root of the frozen weight's rms, so that updates are in proportion to weights. Where "
            "the gate does not square, c is a tenth of this over the rms, and mixk's scalars count in units of c."
        },
    )
    start_scale: float = field(
        default=0.1,
        metadata={
            "help": "What c is in effect at the start: A and B begin smaller by start_scale / c (with a relative scale "
            "by that of the squaring gates' c, whatever the gate)."
        },
    )
    start: Literal["drawn", "zero"] = field(
        default="drawn",
        metadata={
            "help": "`zero`: the update less what it is at the start, where an entry is kept, so that a new adapter "
            "changes nothing, to the bit. The start is drawn again from a saved seed. Slower, and keeps more."
        },
    )
    init_alpha: float = field(default=0.0, metadata={"help": "Weight of `mixk`'s softmax kernel at the start."})
    max_travel: float | None = field(
        default=None,
        metadata={
            "help": "How far all steps together may take a layer's update, in units of its frozen weight's rms: a step "
            "that goes further than its share is shortened (`snella.travel`). Needs total_step. None: no limit."
        },
    )
    kernel: Literal["mixk", "pwl"] = field(default="mixk", metadata={"help": "`mixk` (SNELLA) or `pwl` (SNELL)."})
    gate: Literal["published", "soft", "hard", "none"] = field(
        default="published", metadata={"help": "How kept entries of the kernel matrix become the update."}
    )
    init_sparsity: float = field(default=0.0, metadata={"help": "Share of the update that is zero at the start."})
    target_sparsity: float = field(default=0.7, metadata={"help": "Share of the update that is zero at the end."})
    init_warmup: int = field(
        default=0, metadata={"help": "Steps before the first allocation; budgets stay as they are."}
    )
    final_warmup: int = field(default=0, metadata={"help": "Steps at the end with the budget at its target."})
    allocate_every: int | None = field(
        default=1, metadata={"help": "Steps between two allocations; None: none, budgets stay as they are."}
    )
    total_step: int | None = field(
        default=None,
        metadata={"help": "Optimiser steps of the whole training; None: budgets and steps stay as they are."},
    )
    beta1: float = field(default=0.85, metadata={"help": "Decay of the importance average."})
    beta2: float = field(default=0.85, metadata={"help": "Decay of the importance deviation's average."})
    target_modules: list[str] | set[str] | str | None = field(
        default=None,
        metadata={"help": "As in PEFT: names, a regular expression, or `all-linear`; None: the family's."},
    )
    exclude_modules: list[str] | set[str] | str | None = field(default=None, metadata={"help": "As in PEFT."})
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Numbers of the blocks to adapt, whatever target_modules is; None: all."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "What stands before those numbers in a name; None: any part of it."}
    )
    rank_pattern: dict[str, int] = field(
        default_factory=dict, metadata={"help": "Ends of names, or regular expressions of them -> their rank."}
    )
    sparsity_pattern: dict[str, float] = field(
        default_factory=dict,
        metadata={
            "help": "Ends of names, or regular expressions of them -> their own target_sparsity: those layers compete "
            "among themselves, for a budget of their own."
        },
    )
    bias: Literal["none", "all", "snella_only"] = field(
        default="none", metadata={"help": "As in PEFT: which biases train too, and are saved."}
    )
    fused_splits: dict[str, int] = field(
        default_factory=lambda: {"qkv": 3},
        metadata={"help": "Last part of a module's name -> matrices fused in it along the out axis."},
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained fully; None: the model's head; []: none."}
    )
    update_dropout: float = field(
        default=0.0,
        metadata={"help": "Dropout on the input of the update (a second product while training)."},
    )
    update_drop_path: float = field(
        default=0.0,
        metadata={"help": "Share of samples that a matrix's update is left out for while training."},
    )
    rematerialize: bool | Literal["mlp"] = field(
        default=True,
        metadata={
            "help": "Make inputs again that a normalisation or activation gave, instead of keeping them; "
            "`mlp` also makes the first MLP product again. Gradients stay the same to the bit."
        },
    )

    sample_tokens: float | None = field(
        default=None,
        metadata={
            "help": "Share of the tokens of which a linear layer's update gets its gradient while training, above 0 "
            "and below 1: the largest, and some drawn of the others so that the mean is right. None: all."
        },
    )

    versions: dict[str, str] | None = field(
        default=None, metadata={"help": "Versions of the libraries that the adapter was made with; filled in."}
    )
    requires: str = field(
        default="pip install snella, and import snella before PEFT loads this adapter",
        metadata={"help": "For who reads the file: PEFT knows the method once snella is imported."},
    )
    target_parameters: InitVar[list[str] | None] = None  # LoRA's, which is refused by name

    @classmethod
    def published(cls, **settings: Any) -> SnellaConfig:
        """Return a config with the published constants of update and start, and the settings given."""
        constants: dict[str, Any] = {"scale": 0.1, "init_alpha": 1.0}
        return cls(**constants | settings)

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Save as PEFT does, and describe the adapter that lies there in its model card."""
        super().save_pretrained(save_directory, **kwargs)
        describe(Path(save_directory), self.target, self.versions, selects=self.gate != "none")

    def rank(self, name: str) -> int:
        """Return the rank of a layer."""
        return self.rank_pattern.get(get_pattern_key(list(self.rank_pattern), name), self.r)

    def target(self, name: str) -> float:
        """Return the share of a layer's update that is zero at the end: the layer's own, or that of all."""
        return self.sparsity_pattern.get(get_pattern_key(list(self.sparsity_pattern), name), self.target_sparsity)

    def __post_init__(self, target_parameters: list[str] | None) -> None:
        super().__post_init__()
        if target_parameters:
            raise UserError(
                f"target_parameters={target_parameters!r}: an update is a part of a layer's product, and parameters "
                "that no layer holds (experts in one 3-D tensor) have none; name layers in target_modules"
            )
        self.peft_type = PeftType(PEFT_TYPE)  # a member since `snella.tuner` registered it
        for name in ("target_modules", "exclude_modules"):
            if isinstance(value := getattr(self, name), list):
                setattr(self, name, set(value))
        if isinstance(self.modules_to_save, list | tuple):
            self.modules_to_save = UniqueNames(self.modules_to_save)
        _check_numbers(self)
        _check_choice("kernel", self.kernel, KERNELS)
        _check_choice("gate", self.gate, GATES)
        _check_choice("bias", self.bias, ("none", "all", "snella_only"))
        _check_choice("start", self.start, ("drawn", "zero"))
        _check_choice("rematerialize", self.rematerialize, (False, True, "mlp"))


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name}={value!r} is unknown; choose from {', '.join(map(str, choices))}")


def _check_numbers(config: SnellaConfig) -> None:
    if config.r < 1 or config.heads < 1 or config.r % config.heads:
        raise UserError(
            f"r={config.r} is not a positive multiple of heads={config.heads}; "
            f"try r={max(config.heads, 1) * max(round(config.r / max(config.heads, 1)), 1)}"
        )
    for name, rank in config.rank_pattern.items():
        if rank < 1 or rank % config.heads:
            raise UserError(f"rank_pattern[{name!r}]={rank} is not a positive multiple of heads={config.heads}")
    for name, share in config.sparsity_pattern.items():
        if not 0 <= share <= 1:
            raise UserError(f"sparsity_pattern[{name!r}]={share} is outside [0, 1]")
    if config.layers_pattern and config.layers_to_transform is None:
        raise UserError(
            f"layers_pattern={config.layers_pattern!r} says where numbers stand: give layers_to_transform too"
        )
    for name in ("scale", "relative_scale", "start_scale", "max_travel"):
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name}={value} is not a number above 0")
    for name in ("init_sparsity", "target_sparsity"):
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"{name}={getattr(config, name)} is outside [0, 1]")
    for name in ("beta1", "beta2", "update_dropout", "update_drop_path"):
        if not 0 <= getattr(config, name) < 1:
            raise UserError(f"{name}={getattr(config, name)} is outside [0, 1)")
    if config.sample_tokens is not None and not 0 < config.sample_tokens < 1:
        raise UserError(f"sample_tokens={config.sample_tokens} is outside (0, 1); None takes all")
    for name, least in (("init_warmup", 0), ("final_warmup", 0), ("allocate_every", 1), ("total_step", 1)):
        value = getattr(config, name)
        if value is not None and value < least:
            raise UserError(f"{name}={value} is less than {least}")
    for name, splits in config.fused_splits.items():
        if "." in name:
            raise UserError(f"fused_splits[{name!r}] is not the last part of a name; write {name.rpartition('.')[2]!r}")
        if splits < 1:
            raise UserError(f"fused_splits[{name!r}]={splits} is less than 1")
