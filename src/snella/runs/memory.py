"""What fits the memory: the fastest way to make a training step, and the largest batch.

Nothing that is chosen here but the batch size changes a result: what is made a second time comes out the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from rich.console import Console

from snella.config.fields import read_bytes
from snella.config.method import SPARSE, Rematerialize
from snella.config.schema import TrainConfig
from snella.console import Terminal, print_line, working
from snella.data.dataset import ImageData
from snella.errors import UserError
from snella.machine import free_memory
from snella.models.checkpointing import blocks_of, checkpoint_blocks
from snella.report.tables import decimal_bytes
from snella.runs.prepare import Prepared, images_an_epoch, make_batches, prepare, with_batch
from snella.training.estimate import Estimate, estimate

SPARE = 0.1  # of what is free: for workspace and gaps of the allocator, which nothing counts
LEVELS: tuple[Rematerialize, ...] = ("none", "inputs", "mlp")  # from the fastest to the smallest


def fitted(config: TrainConfig, data: ImageData[Any], accelerator: Accelerator, console: Console) -> Prepared:
    """Return what `prepare` does, with `--memory` and `--batch-size auto` settled and said.

    Raises:
        UserError: as `prepare`, or nothing fits.
    """
    config = with_batch(config, data, console)
    if config.memory is None and config.data.batch_size != "auto":
        return prepare(config, data, accelerator.device, console)
    with working(console, "looking for what fits the memory"):
        found = _Search(config, data, accelerator)
        if config.data.batch_size == "auto":
            config = config.changed(batch_size=found.largest_batch())
        choice = found.fastest(config.data.images_per_batch) if config.memory is not None else None
    if choice is None:
        print_line(
            console, f"batch size: {config.data.batch_size}, the largest power of two that fits {found.limit_text}"
        )
        return prepare(config, data, accelerator.device, console)
    config = config.changed(rematerialize=choice.level, gradient_checkpointing=False)
    ready = prepare(config, data, accelerator.device, console)
    if choice.blocks:
        checkpoint_blocks(ready.model, choice.blocks if choice.blocks < choice.all_blocks else None)
    print_line(
        console,
        f"memory: {decimal_bytes(choice.bytes)} of {found.limit_text} for batches of {config.data.batch_size}, "
        f"{choice.words(config.method.name in SPARSE)}",
    )
    return ready


@dataclass(frozen=True)
class _Choice:
    """A way to make a training step, and its bytes."""

    level: Rematerialize
    blocks: int  # checkpointed, the first ones
    all_blocks: int
    bytes: int

    def words(self, sparse: bool) -> str:
        made = "nothing made again" if self.level == "none" else f"--rematerialize {self.level}"
        blocks = f"{self.blocks} of {self.all_blocks} blocks checkpointed" if self.blocks else ""
        return ", ".join(filter(None, (made if sparse else "", blocks))) or "nothing made again"


class _Search:
    """Measures ways to make a training step on trial models, one at a time."""

    def __init__(self, config: TrainConfig, data: ImageData[Any], accelerator: Accelerator) -> None:
        self._config, self._data, self._accelerator = config, data, accelerator
        self._free = free_memory()  # before a trial takes some of it
        self._trial: Prepared | None = None
        self.limit = 0 if config.memory in (None, "auto") else read_bytes(config.memory)

    @property
    def limit_text(self) -> str:
        given = self._config.memory not in (None, "auto")
        return decimal_bytes(self.limit) if given else f"{decimal_bytes(self.limit)} that are free"

    def largest_batch(self) -> int:
        """Return the largest power of two that fits with the settings as they are."""
        config = self._config.changed(batch_size=1)
        found = self._measure(config)
        again = self._block_bytes(config) if config.model.gradient_checkpointing else 0
        images = (self.limit - found.constant) // (found.per_image + again)
        if images < 1:
            if self._config.memory is None:
                least = decimal_bytes(found.constant + found.per_image + again)
                raise UserError(f"one image needs {least}, more than {self.limit_text}; try --memory auto with it")
            return 1
        return 2 ** (min(images, len(self._data.splits["train"])).bit_length() - 1)

    def fastest(self, batch_size: int) -> _Choice:
        """Return the fastest way whose step fits. Raises UserError where none does."""
        config = self._config.changed(batch_size=batch_size, gradient_checkpointing=False)
        levels = LEVELS if config.method.name in SPARSE else LEVELS[:1]
        block, least = 0, 0
        for level in levels:
            found = self._measure(config.changed(rematerialize=level))
            least = found.total
            if least <= self.limit:
                return _Choice(level, 0, 0, least)
            if level == "none":  # as a checkpointed block runs in the backward pass
                block = batch_size * self._block_bytes(config)
        blocks = len(blocks_of(self._model))

        def size(count: int) -> int:
            checkpoint_blocks(self._model, count if count < blocks else None)
            return self._estimate().total + block

        low, high = 0, blocks  # `low` does not fit
        if blocks and (least := size(blocks)) <= self.limit:
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if size(middle) <= self.limit else (middle, high)
            return _Choice(levels[-1], high, blocks, size(high))
        remedy = "a smaller --batch-size (with --accumulate), a smaller --image-size or a smaller backbone"
        needed = f"a step of {batch_size} images takes {decimal_bytes(least)} at the least"
        raise UserError(f"{needed}, more than {self.limit_text}; try {remedy}")

    @property
    def _model(self) -> Any:
        assert self._trial is not None
        return self._trial.model

    def _measure(self, config: TrainConfig) -> Estimate:
        """Build a trial model by these settings and estimate its step."""
        self._trial = None  # not two at once
        few = config.changed(estimate=True, workers=0)
        self._trial = prepare(few, self._data, self._accelerator.device, Terminal(quiet=True))
        found = self._estimate()
        if not self.limit:
            free = self._free + found.weights if found.free is None else found.free
            self.limit = round((1 - SPARE) * free)
        return found

    def _estimate(self) -> Estimate:
        assert self._trial is not None
        return estimated(self._trial, self._data, self._accelerator)

    def _block_bytes(self, config: TrainConfig) -> int:
        """Return what the first block makes again for an image in its backward pass. The trial is as `config` says."""
        checkpoint_blocks(self._model, 0)
        without = self._estimate().per_image
        checkpoint_blocks(self._model, 1)
        one = self._estimate().per_image
        checkpoint_blocks(self._model, None if config.model.gradient_checkpointing else 0)
        return max(0, without - one)


def estimated(ready: Prepared, data: ImageData[Any], accelerator: Accelerator) -> Estimate:
    """Return what a training step of the run needs; `data` is all of it, of which `ready` may have a part."""
    config = ready.config

    def make_batch(images: int) -> dict[str, Any]:
        small = config.changed(batch_size=images, workers=0, cache_images="off")
        return next(make_batches(small, ready.examples, ready.preprocessing)["train"].epoch(1))

    return estimate(
        ready.model,
        ready.learner,
        make_batch,
        accelerator,
        batch_size=min(config.data.images_per_batch, images_an_epoch(config, data)),
        optimizer=config.loop.optimizer,
        averaged=config.loop.ema is not None or config.loop.average > 0,
        seed=config.seed,
    )
