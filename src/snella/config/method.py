"""The methods of tuning, a row each, and their settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from snella.config.fields import above, at_least, between, finite, from_below, inside, setting

Kernel = Literal["mixk", "pwl"]
Gate = Literal["published", "soft", "hard", "none"]
Rematerialize = Literal["none", "inputs", "mlp"]


@dataclass(frozen=True)
class Method:
    """One method: its summary in a line, and what builds it or which parameters it trains."""

    summary: str
    usual_rate: float  # a short run's best learning rate, more often than not
    build: str | Callable[..., Any] | None = None  # makes its PEFT configuration; "module:function" is imported late
    trains: Callable[[str], bool] | None = None  # for a parameter's name; the head trains besides
    after_step: str | Callable[..., Any] | None = None  # makes its part of a step, where a budget moves
    batch_norm_rate: float | None = None  # the usual rate where the backbone has batch norms; None: the same
    most_travel: float | None = None  # usual rate times steps, at most; None: as many as there are

    @property
    def middle_rate(self) -> float:
        """Return the geometric mean of the usual rates of both kinds of backbones, to begin a search with."""
        return math.sqrt(self.usual_rate * (self.batch_norm_rate or self.usual_rate))


# The update of snella and snell is a square, which grows as the square of rate and steps: at 1e-3 it is a sixteenth of
# the weights after 90 steps of 8 images of tiles, which is as much as LoRA's at the end, and runs away soon after.
SQUARED_TRAVEL = 0.15
_PEFT, _BUDGETS = "snella.methods.peft_configs", "snella.methods.budgets"
# A new method is a row here and the function that it names. The rates are about the geometric means of the best on val
# in docs/methods.md: of two tasks on a ViT, and of two on a network with batch norms.
METHODS: dict[str, Method] = {
    "snella": Method(
        "kernelised sparse update whose budget moves to the layers that matter",
        5e-4,
        f"{_PEFT}:snella",
        after_step=f"{_BUDGETS}:SnellaAllocation",
        most_travel=SQUARED_TRAVEL,
    ),
    "snell": Method(
        "kernelised sparse update, equally sparse everywhere",
        5e-4,
        f"{_PEFT}:snell",
        after_step=f"{_BUDGETS}:snell_travel",
        most_travel=SQUARED_TRAVEL,
    ),
    "lora": Method("low-rank update", 3e-4, f"{_PEFT}:lora", batch_norm_rate=2e-3),
    "dora": Method(
        "low-rank update of a weight's direction, and its magnitude", 3e-4, f"{_PEFT}:dora", batch_norm_rate=2e-3
    ),
    "adalora": Method(
        "low-rank update whose ranks move to the layers that matter",
        2e-3,
        f"{_PEFT}:adalora",
        after_step=f"{_BUDGETS}:AdaLoraAllocation",
    ),
    "shira": Method("sparse update at places drawn once; linear layers only", 5e-4, f"{_PEFT}:shira"),
    "oft": Method("rotation of a layer's input; no spatial convolutions", 2e-3, f"{_PEFT}:oft", batch_norm_rate=3e-4),
    "bitfit": Method("the biases and the head", 5e-3, trains=lambda name: name.endswith("bias")),
    "linear": Method("the head alone", 1e-2, trains=lambda name: False),
    "full": Method("everything", 3e-5, trains=lambda name: True, batch_norm_rate=2e-3),
}

# Settings that some methods alone read: runs of the others are the same whatever these say.
SPARSE = ("snella", "snell")
ALLOCATING = ("snella", "adalora")
WITH_DROPOUT = ("snella", "snell", "lora", "dora", "adalora")


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """How the backbone is tuned; a method reads the settings that it knows."""

    name: str = setting("snella", flag_name="method", choices=METHODS)
    """How the backbone is tuned. snella and snell are this package's; bitfit trains biases, linear the head.
    shira (linear layers alone) and oft (no ConvNeXt, no ResNet) do not suit every backbone."""
    r: int = setting(32, at_least(1))
    """Rank of the update's two factors. 32 as published; lora, dora, adalora and shira use it too."""
    heads: int = setting(2, at_least(1), methods=SPARSE)
    """Parts that r is split into, for snella and snell; divides r. 2 as published."""
    kernel: Kernel = setting("mixk", methods=("snella",))
    """How the factors make an update, for snella: mixk (SNELLA) or pwl (SNELL; always used by snell)."""
    gate: Gate = setting("published", methods=SPARSE)
    """What becomes of the entries that win the budget, for snella and snell.
    published is what the published code does; soft is the SNELL paper's equation 5; none keeps all."""
    scale: float | None = setting(None, above(0), methods=SPARSE)
    """Constant before the distances, the same for all layers, for snella and snell. 0.1 as published: the learning rate
    has to suit the layers' sizes then, and the update learns far slower than the head. None: see relative_scale."""
    relative_scale: float = setting(8.0, inside(0, 1e6), methods=SPARSE)
    """The constant of a layer over the root of its frozen weight's rms, so that updates are in proportion to weights,
    for snella and snell. With gates hard and none the constant is a tenth of this over the rms.
    Smaller is safer in trainings of less than a hundred steps."""
    start_scale: float = setting(0.1, above(0), methods=SPARSE)
    """What the constant is at the start, for snella and snell: the factors begin smaller instead. 0.1 as published."""
    max_travel: float | None = setting(None, above(0), methods=SPARSE)
    """How far all steps together may take a layer's update, in units of its frozen weight's rms, for snella and snell:
    a step that goes further than its share is shortened, so that no rate runs away; with 1 to 3 try 3e-3. None, as
    published: as far as the steps go."""
    init_alpha: float = setting(0.0, finite(), methods=("snella",))
    """Weight of mixk's softmax kernel at the start, for snella; it is learnt. 1 as published."""
    init_sparsity: float = setting(0.0, between(0, 1), methods=("snella",))
    """Share of the update that is zero at the start, 0 to 1. 0 as published for FGVC."""
    target_sparsity: float = setting(0.7, between(0, 1), methods=SPARSE)
    """Share of the update that is zero at the end, 0 to 1. 0.7 is the middle of the published values."""
    init_warmup: int = setting(0, at_least(0), methods=ALLOCATING)
    """Steps before budgets first change. 0 as published."""
    final_warmup: int = setting(0, at_least(0), methods=ALLOCATING)
    """Steps at the end during which the budget stays at its target. 0 as published; for adalora that is a tenth."""
    allocate_every: int | None = setting(None, at_least(1), methods=ALLOCATING)
    """Steps between two divisions of the budget. None: once an epoch, as published."""
    target_modules: tuple[str, ...] | None = setting(None)
    """Names of the layers to tune, as in PEFT: ends of names, one regular expression, or all-linear.
    None: what suits the backbone's family."""
    update_dropout: float = setting(0.0, from_below(0, 1), methods=WITH_DROPOUT)
    """Dropout on the input of the update, 0 to 1; needs a second product while training, so off by default."""
    update_drop_path: float = setting(0.0, from_below(0, 1), methods=SPARSE)
    """Share of samples that do without the update while training, 0 to 1. The published recipes set 0.1."""
    sample_tokens: float | None = setting(None, inside(0, 1), methods=SPARSE)
    """Share of the tokens of which a linear layer's update gets its gradient, for snella and snell: half of them
    the largest, the others drawn so that the mean is right. With 0.25 a step takes little longer than LoRA's.
    Layers with convolutions, and compiled blocks, take all. None: all."""
    rematerialize: Rematerialize = setting("inputs", free=True)
    """What is computed a second time to save memory, for snella and snell; gradients stay the same to the bit.
    inputs: outputs of normalisations and activations. mlp: also an MLP's first product, for about a tenth more time."""
