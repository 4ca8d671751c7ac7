"""Allocation inside a transformers `Trainer`."""

from __future__ import annotations

import hashlib
import sys
import warnings
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from snella.tuner.model import SnellaModel
from snella.tuner.model_card import missed, saved_share

STATE_FILE = "allocator.safetensors"
MARK = "adapter"  # in its metadata: of which weights these are the averages


class AllocationCallback(TrainerCallback):
    """A callback that calls `update_and_allocate` after every optimiser step.

    It is for a transformers `Trainer` whose model has a SNELLA adapter.

    Where the adapter's config leaves `total_step` open it is the trainer's number of steps. The running averages are
    saved in each checkpoint folder and taken up again when training resumes from it.

    With `best_at_target` what `load_best_model_at_end` loads is the best of the evaluations at `target_sparsity`, where
    there was one: choose `final_warmup` so that there are several.

    Example: `Trainer(model, args, ..., callbacks=[snella.AllocationCallback()])`
    """

    def __init__(self, *, best_at_target: bool = True) -> None:
        self.best_at_target = best_at_target

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        tuner = _tuner(kwargs["model"])
        for name in tuner.active_adapters:
            total = tuner.peft_config[name].total_step
            if total not in (None, state.max_steps):
                warnings.warn(
                    f"budgets follow total_step={total} of the adapter's config, and training takes {state.max_steps} "
                    f"steps; set it to None for those",
                    stacklevel=2,
                )
        if not state.global_step:
            return
        named = (_path_given_to_train(), args.resume_from_checkpoint, _checkpoint_folder(args, state))
        places = list(dict.fromkeys(Path(place) for place in named if isinstance(place, str | Path)))
        for file in (place / STATE_FILE for place in places):
            if file.exists() and _saved_digest(file) == _weights_digest(tuner):
                tuner.load_allocator_state_dict(load_file(file))
                return
        warnings.warn(
            f"the averages of importance start anew: no {STATE_FILE} of this checkpoint in "
            f"{' or '.join(map(str, places))}; name it in the training arguments, resume_from_checkpoint",
            stacklevel=2,
        )

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # the trainer counts after this event
        _tuner(kwargs["model"]).update_and_allocate(state.global_step + 1, state.max_steps)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Have `load_best_model_at_end` choose among the evaluations at the sparsity that was asked for."""
        tuner = _tuner(kwargs["model"])
        kept = tuner.kept_share()
        if not (self.best_at_target and state.best_model_checkpoint and kept and kept.is_near):
            return
        best = saved_share(Path(state.best_model_checkpoint), tuner.peft_config[tuner.active_adapters[0]].target)
        if best and not best.is_near:
            state.best_metric = state.best_model_checkpoint = None
            if hasattr(state, "best_global_step"):
                state.best_global_step = None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        kept = _tuner(kwargs["model"]).kept_share()
        if kept and not kept.is_near:
            warnings.warn(missed(kept), stacklevel=2)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            tuner = _tuner(kwargs["model"])
            save_file(
                tuner.allocator_state_dict(),
                _checkpoint_folder(args, state) / STATE_FILE,
                {MARK: _weights_digest(tuner)},
            )


def _tuner(model: Any) -> SnellaModel:
    for module in model.modules():
        if isinstance(module, SnellaModel):
            return module
    raise ValueError(f"{type(model).__name__} has no SNELLA adapter: wrap it with peft.get_peft_model first")


def _checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def _path_given_to_train() -> str | None:
    """Return what `Trainer.train` resumes from; it tells callbacks nothing of it, so that its frame is asked."""
    frame = sys._getframe()
    while frame := frame.f_back:
        if isinstance(path := frame.f_locals.get("resume_from_checkpoint"), str):
            return path
    return None


def _weights_digest(tuner: SnellaModel) -> str:
    """Return a digest that differs for different adapter weights, whichever device they are on."""
    digest = hashlib.sha256()
    ends = tuple(f".{name}" for name in tuner.active_adapters)
    for name, parameter in tuner.named_parameters():
        if tuner.prefix in name and name.endswith(ends):
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _saved_digest(file: Path) -> str | None:
    with safe_open(file, framework="pt") as opened:
        return (opened.metadata() or {}).get(MARK)
