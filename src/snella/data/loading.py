"""Batches whose content is a function of the seed, the epoch and the position alone.

examples[i] --transform, seeded by (seed, epoch, i)--> tensors --collate--> {"image": (b, 3, s, s), "label": (b,)}
"""

from __future__ import annotations

import contextlib
import math
import random
import signal
import warnings
from collections.abc import Iterator
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from snella.data.dataset import Example, Pictures, Transform
from snella.data.images import ImageFiles, UnreadableImage, image_size
from snella.data.threads import IN_FLIGHT, in_threads
from snella.distributed.part import ALONE, PART, Part, Share, part_of
from snella.errors import UserError

Key = tuple[int, int]  # epoch, index of an example
Batch = dict[str, Any]  # a tensor for each key, or a list of tensors where their shapes differ


class Examples(Protocol):
    """Anything that can be loaded: a dict for each index."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Example: ...


class ImageBatches:
    """Batches of transformed examples, epoch by epoch.

    Neither the order nor the augmentations depend on the number of workers, on batches taken before or on the global
    random state, so an epoch can be taken up again at any batch. An example that turns out to be unreadable is left
    out of its batch, kept in `unreadable` and warned of once.

    >>> batches = ImageBatches(data.splits["train"], transform, batch_size=8, shuffle=True, seed=0)
    >>> next(batches.epoch(0))["image"].shape
    torch.Size([8, 3, 224, 224])

    Args:
        workers: processes that load; 0 loads in this one.
        drop_last: leave out the last batch where it is smaller.
        share: of one of several processes. Shuffled batches are divided each by itself, so that all processes are at
            the same one, and each part says so (PART: `Part`); others are a block of the examples, from `start` on.
        led: give each part of a shuffled batch the row before it too, for what mixes neighbours.
    """

    def __init__(
        self,
        examples: Examples,
        transform: Transform,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
        workers: int = 0,
        drop_last: bool = False,
        share: Share = ALONE,
        led: bool = False,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; use 1 or more")
        if workers < 0:
            raise UserError(f"workers is {workers}; use 0 or more")
        self.unreadable: list[UnreadableImage] = []
        self._order = _Order(len(examples), batch_size, shuffle, seed, drop_last, share, led)
        self._loader = DataLoader(
            _Seeded(examples, transform, seed),
            batch_sampler=self._order,
            num_workers=workers,
            collate_fn=_collate,
            worker_init_fn=_ignore_interrupt,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # its own: the loader would draw from the global one at each epoch
        )

    def __len__(self) -> int:
        """Count the batches of an epoch; of a block, its own."""
        return self._order.batches

    @property
    def start(self) -> int | None:
        """Return the place of a block's first example; None where this is all of them, or a part of each batch."""
        return self._order.start

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the epoch's batches after the first `skip`. One epoch at a time.

        Raises:
            UserError: every image of a batch is unreadable; or what the examples raise.
        """
        self._order.epoch, self._order.skip = epoch, skip
        for number, (batch, unreadable) in enumerate(self._loader, start=skip):
            self._report(unreadable)
            if isinstance(batch, UserError):
                raise batch
            if batch is None:
                raise UserError(f"every image of a batch is unreadable, the first: {unreadable[0]}; check the files")
            part = self._order.part(number)
            if part is not None:
                if part.led and unreadable:
                    raise UserError(f"an image cannot be read any more: {unreadable[0]}; start again with --resume")
                batch[PART] = part
            yield batch

    def _report(self, unreadable: list[UnreadableImage]) -> None:
        known = {error.path for error in self.unreadable}
        for error in unreadable:
            if error.path not in known:
                self.unreadable.append(error)
                warnings.warn(f"left out of its batch: {error}", stacklevel=3)


class _Order:
    """The batch sampler: lists of (epoch, index). Set `epoch` and `skip` before an iteration."""

    def __init__(
        self, size: int, batch_size: int, shuffle: bool, seed: int, drop_last: bool, share: Share, led: bool
    ) -> None:
        self.size, self.batch_size, self.shuffle, self.seed = size, batch_size, shuffle, seed
        self.share, self.led = share, led
        self.start: int | None = None
        self.stop = size
        if share.count > 1 and not shuffle:
            self.start, self.stop = share.of(size)
        count = self.stop - (self.start or 0)
        self.batches = count // batch_size if drop_last else math.ceil(count / batch_size)
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        return self.batches - min(self.skip, self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        block = range(self.start or 0, self.stop)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.size) if self.shuffle else block
        for batch in range(self.skip, self.batches):
            indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            part = self.part(batch)
            if part is not None:
                before = [indices[part.start - 1]] if part.led else []
                indices = [*before, *indices[part.start : part.stop]]
            yield [(epoch, int(index)) for index in indices]

    def part(self, batch: int) -> Part | None:
        """Return which rows of a batch are here; None where all of it is."""
        if self.share.count == 1 or not self.shuffle:
            return None
        return part_of(self.share, min(self.batch_size, self.size - batch * self.batch_size), led=self.led)


class _Seeded(Dataset):
    """Transformed examples; the random draws of each depend on (seed, epoch, index)."""

    def __init__(self, examples: Examples, transform: Transform, seed: int) -> None:
        self.examples, self.transform, self.seed = examples, transform, seed

    def __getitem__(self, key: Key) -> Example | UnreadableImage | UserError:
        epoch, index = key
        try:
            example = self.examples[index]
        except (UnreadableImage, UserError) as error:  # raised in a worker it would come with that one's traceback
            return error
        with seeded((self.seed, epoch, index)):
            return self.transform(example)


@contextlib.contextmanager
def seeded(entropy: tuple[int, ...]) -> Iterator[None]:
    """Seed the CPU generators of Python, numpy and torch inside, and put them back as they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence(entropy).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.default_generator.manual_seed(int(words[2]))  # torch.manual_seed would seed the GPU's too
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def transformed(images: Pictures, transform: Transform, batch_size: int) -> Iterator[list[Example | UnreadableImage]]:
    """Yield lists of `batch_size` transformed examples in order, loaded in threads; what is unreadable says why."""

    def load(index: int) -> Example | UnreadableImage:
        path = images.paths[index]
        try:
            width, height = image_size(path) if isinstance(images.read, ImageFiles) else (0, 0)
            with IN_FLIGHT.holding(width * height):
                return transform(images[index])
        except UnreadableImage as error:
            return error

    loaded = in_threads(load, range(len(images)))
    while batch := list(islice(loaded, batch_size)):
        yield batch


def _collate(
    examples: list[Example | UnreadableImage | UserError],
) -> tuple[Batch | UserError | None, list[UnreadableImage]]:
    errors = [example for example in examples if isinstance(example, UserError)]
    if errors:
        return errors[0], []
    unreadable = [example for example in examples if isinstance(example, UnreadableImage)]
    readable = [example for example in examples if isinstance(example, dict)]
    if not readable:
        return None, unreadable
    return {key: _stacked([example[key] for example in readable]) for key in readable[0]}, unreadable


def _stacked(values: list[object]) -> object:
    shapes = {value.shape for value in values if isinstance(value, Tensor)}
    return values if len(shapes) > 1 else default_collate(values)


def _ignore_interrupt(worker: int) -> None:
    """Leave Ctrl-C to the main process.

    It reaches every process of the terminal; the main one decides, and workers print no traceback.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
