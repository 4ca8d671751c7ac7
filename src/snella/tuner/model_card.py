"""What a saved adapter says of itself: how it is loaded, what it was made with, and how much of its update it keeps."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open

from snella.files import writing

CARD = "README.md"
START, END = "<!-- snella -->", "<!-- /snella -->"
NEAR = 0.005  # of a model's entries: what a share may be beside its target before it is told
CHECKPOINT = re.compile(r"checkpoint-\d+")  # folders of trainings that go on, as transformers and accelerate name them


class Kept(NamedTuple):
    """Entries that an adapter's update may have, of all that its matrices have, and the share that was asked for."""

    kept: int
    size: int
    target: float

    @property
    def is_near(self) -> bool:
        return abs(self.kept / self.size - self.target) <= NEAR

    def __str__(self) -> str:
        return f"keeps {self.kept / self.size:.1%} of its update's entries, and {self.target:.1%} was asked for"


def describe(
    folder: Path, target: Callable[[str], float], versions: Mapping[str, str] | None, *, selects: bool
) -> None:
    """Say in the folder's model card what its adapter is, and warn where it keeps another share than was asked for.

    Args:
        folder: of a saved adapter.
        target: gives the share of a layer's update, by name, that its config asks to be zero.
        versions: library and version that it was made with; None before it was in a model.
        selects: whether its gate selects entries at all.
    """
    lines = [
        "## Loading this SNELLA adapter",
        "`pip install snella`, and `import snella` before PEFT loads it; else PEFT says `KeyError: 'SNELLA'`.",
        "```python\nimport peft, snella\n\nmodel = peft.PeftModel.from_pretrained(base_model, adapter_folder)\n```",
    ]
    if versions:
        lines.append("Made with " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".")
    if selects and (kept := saved_share(folder, target)):
        lines.append(f"The adapter {kept}.")
        if not kept.is_near and not CHECKPOINT.fullmatch(folder.name):
            warnings.warn(missed(kept), stacklevel=4)
    _write(folder / CARD, "\n\n".join(lines))


def missed(kept: Kept) -> str:
    """Return what to say of an adapter that is not at its target."""
    return (
        f"the adapter {kept}: budgets fall by update_and_allocate (in a Trainer: AllocationCallback) until "
        "total_step; train to the end, or call model.base_model.cut_to_target() and evaluate again"
    )


def saved_share(folder: Path, target: Callable[[str], float]) -> Kept | None:
    """Return what the adapter saved in a folder keeps, None where there is none."""
    file = folder / SAFETENSORS_WEIGHTS_NAME
    if not file.is_file():
        return None
    kept = size = 0
    wanted = 0.0
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  (it is not a dict)
            if name.endswith("snella_kept"):
                A, B = (
                    tensors.get_slice(name.replace("snella_kept", f"snella_{factor}")).get_shape() for factor in "AB"
                )
                kept += int(tensors.get_tensor(name).sum())
                entries = A[0] * A[-2] * B[-2]  # (S, H, n, r/H) and (S, H, m/S, r/H)
                size += entries
                wanted += (1 - target(name.removesuffix(".snella_kept"))) * entries
    return Kept(kept, size, wanted / size) if size else None


def _write(card: Path, text: str) -> None:
    old = card.read_text(encoding="utf-8") if card.exists() else ""
    before, _, rest = old.partition(START)
    after = rest.partition(END)[2]
    with writing(card) as path:
        path.write_text(f"{before.rstrip()}\n\n{START}\n{text}\n{END}\n{after.lstrip()}".lstrip(), encoding="utf-8")
