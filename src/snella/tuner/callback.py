"""Allocation inside a transformers `Trainer`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from snella.tuner.model import SnellaModel

STATE_FILE = "allocator.safetensors"


class AllocationCallback(TrainerCallback):
    """Calls `update_and_allocate` after every optimiser step of a `Trainer` whose model has a SNELLA adapter.

    A `total_step` of None in the adapter's config becomes the trainer's number of steps. The running averages are
    saved in each checkpoint folder and taken up again when training resumes from it.

    Example: `Trainer(model, args, ..., callbacks=[snella.AllocationCallback()])`
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        tuner = _tuner(kwargs["model"])
        for name in tuner.active_adapters:
            if tuner.peft_config[name].total_step is None:
                tuner.peft_config[name].total_step = state.max_steps
        saved = _state_file(args, state)
        if saved.exists():
            tuner.load_allocator_state_dict(load_file(saved))
        elif state.global_step:
            warnings.warn(f"no {saved}: the averages of importance start anew", stacklevel=2)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        _tuner(kwargs["model"]).update_and_allocate(state.global_step + 1)  # the trainer counts after this event

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            save_file(_tuner(kwargs["model"]).allocator_state_dict(), _state_file(args, state))


def _tuner(model: Any) -> SnellaModel:
    for module in model.modules():
        if isinstance(module, SnellaModel):
            return module
    raise ValueError(f"{type(model).__name__} has no SNELLA adapter: wrap it with peft.get_peft_model first")


def _state_file(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / STATE_FILE
