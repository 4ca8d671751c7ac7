"""What a training run is: one typed definition for flags, recipes (YAML), types, defaults and help.

    recipe (YAML) ─ defaults ─┐
                              ├─ TrainConfig ─ validate ─ train
    flags ──────── override ──┘

A config has a section for each part of a run, which receives it whole. Flags and keys are flat: `config.loop.lr` is
--lr and `lr:`. This module imports nothing heavy: `snella train --help` reads it, and a wrong value is refused before
torch loads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from snella.config.data import DataConfig
from snella.config.fields import Setting, at_least, between, setting, settings_of
from snella.config.loop import LoopConfig
from snella.config.method import MethodConfig
from snella.config.model import ModelConfig
from snella.config.tasks import TASKS, ClassifyConfig, GenerateConfig, MultilabelConfig, RegressConfig, SegmentConfig

Tested = Literal["best", "both", "none"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Fine-tune a pre-trained vision backbone on images."""

    task: str = setting("classify", choices=TASKS)
    """What is learnt: classify gives a class to each image, multilabel any number of labels, regress numbers, segment
    gives a class to each pixel, generate makes images."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    classify: ClassifyConfig = field(default_factory=ClassifyConfig)
    multilabel: MultilabelConfig = field(default_factory=MultilabelConfig)
    regress: RegressConfig = field(default_factory=RegressConfig)
    segment: SegmentConfig = field(default_factory=SegmentConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    test: Tested = setting("best", free=True)
    """Which epochs are tested: best (the best on val), both (that and the last one), or none.
    --resume with another value tests what was not tested, without training again."""
    seed: int = setting(0, between(0, 2**32 - 1))
    """Seed of everything that is drawn: new weights, splits, order, augmentation."""
    device: str = setting("auto", free=True)
    """auto (a GPU if there is one), cpu, cuda, cuda:N or mps."""
    precision: Precision = setting("fp32")
    """Arithmetic of the forward pass. fp32 is exact on CPUs; on recent GPUs its matrix products round their factors to
    TF32, of 10 bits, for several times the speed. bf16 is faster yet there, and takes less memory. auto: bf16 on a GPU
    that has it, else fp32; a run that is resumed keeps its own."""
    devices: int = setting(1, at_least(1), start=True)
    """Processes on this machine that share each step, as torchrun --nproc-per-node starts them: one for each GPU, or on
    the CPU each with its share of the cores. The batch size stays that of the step. 1: this process alone, or those
    that torchrun has started."""
    memory: str | None = setting(None, free=True)
    """Bytes that a training step may take, such as 6GB, or auto: what is free on the device, less a tenth. Then the
    first of these that fits is done, from the fastest to the smallest, whatever --rematerialize and
    --gradient-checkpointing say: nothing again, --rematerialize inputs, mlp, some blocks checkpointed, all. None: as
    those flags say."""
    smoke: bool = setting(False)
    """Shrink any recipe to a minute: 8 images of each class (to segment and to generate, 8) in each split, 2 epochs, at
    most 112 pixels (to generate, the network's size). Shows that it runs, no more."""
    out: str | None = setting(None, start=True)
    """Folder for the results. None: runs/DATA-METHOD-sSEED."""
    resume: bool = setting(False, start=True)
    """Go on from the newest checkpoint of the run folder; from the beginning if it has none."""
    overwrite: bool = setting(False, start=True)
    """Replace an existing run folder, once data and model are ready."""
    accept_data: bool = setting(False, start=True)
    """With --resume: go on although the images or labels are not those that the run was started with."""
    estimate: bool = setting(False, start=True)
    """Print the memory that a training step needs, and train nothing; no run folder is written."""
    push: str | None = setting(None, start=True)
    """Upload the finished run to the Hugging Face hub as this, OWNER/NAME, as snella push does."""
    private: bool = setting(False, start=True)
    """With --push: make the repository private, where it is made now."""

    @classmethod
    def of(cls, **values: Any) -> TrainConfig:
        """Return the config of these settings by flat name, and defaults for the others.

        >>> TrainConfig.of(data="photos", method="lora", lr=1e-3).loop.lr
        0.001
        """
        return DEFAULTS.changed(**values)

    def changed(self, **values: Any) -> TrainConfig:
        """Return the config with other values of these settings, by flat name.

        Raises:
            TypeError: there is no such setting.
        """
        known = settings()
        if unknown := sorted(values.keys() - known.keys()):
            raise TypeError(f"no setting is called {unknown[0]}")
        sections: dict[str | None, dict[str, Any]] = {}
        for name, value in values.items():
            sections.setdefault(known[name].section, {})[known[name].attribute] = value
        changes = sections.pop(None, {})
        for section, inner in sections.items():
            assert section is not None
            changes[section] = replace(getattr(self, section), **inner)
        return replace(self, **changes)

    def flat(self) -> dict[str, Any]:
        """Return all settings by flat name."""
        return {name: self.value(name) for name in settings()}

    def value(self, name: str) -> Any:
        """Return the value of a setting by its flat name."""
        known = settings()[name]
        return getattr(self if known.section is None else getattr(self, known.section), known.attribute)


DEFAULTS = TrainConfig()


def settings() -> Mapping[str, Setting]:
    """Return all settings by flat name, in the order of help and of config.yaml."""
    return settings_of(TrainConfig)


def recipe_keys() -> tuple[str, ...]:
    """Return what a recipe may set: all but how a run is started."""
    return tuple(name for name, known in settings().items() if not known.reading.start)


SMOKE_PER_CLASS = 8  # images of each class and split
SMOKE_IMAGE = 112  # pixels; whole patches of both 14 and 16


def shrunk(config: TrainConfig) -> TrainConfig:
    """Return what `--smoke` makes of a config; the images per class are limited where the data is read."""
    if config.task == "generate":  # at the size that the network makes
        most = {"samples": 2, "sample_steps": 4}
        most |= {"prior_images": 4} if config.generate.prior_prompt is not None else {}
        config = config.changed(**{name: min(config.value(name), limit) for name, limit in most.items()})
    else:
        config = config.changed(image_size=min(config.model.image_size or SMOKE_IMAGE, SMOKE_IMAGE))
    return config.changed(
        epochs=2 if config.loop.epochs == "auto" else min(config.loop.epochs, 2),
        batch_size=min(config.data.batch_size, 8) if isinstance(config.data.batch_size, int) else 8,
        init_warmup=0,
        final_warmup=0,
        allocate_every=None,
        checkpoint_every=0,
    )


def run_folder(config: TrainConfig) -> Path:
    """Return the run folder: `out`, or runs/DATA-METHOD-sSEED, with the fold or the number of folds where there are."""
    if config.out:
        return Path(config.out)
    folds, fold = config.data.folds, config.data.fold
    of = "" if folds is None else f"-{folds}-folds" if fold is None else f"-fold-{fold}-of-{folds}"
    return Path("runs") / f"{source_name(config.data.source or '')}-{config.method.name}-s{config.seed}{of}"


def source_name(source: str) -> str:
    """Return what data or a recipe is called in the name of a folder of results."""
    name = Path(source).stem if Path(source).is_file() else Path(source).resolve().name
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "data"
