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
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; use 1 or more")
        if workers < 0:
            raise UserError(f"workers is {workers}; use 0 or more")
        self.unreadable: list[UnreadableImage] = []
        self._order = _Order(len(examples), batch_size, shuffle, seed, drop_last)
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
        """Count the batches of an epoch."""
        return self._order.batches

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the epoch's batches after the first `skip`. One epoch at a time.

        Raises:
            UserError: every image of a batch is unreadable; or what the examples raise.
        """
        self._order.epoch, self._order.skip = epoch, skip
        for batch, unreadable in self._loader:
            self._report(unreadable)
            if isinstance(batch, UserError):
                raise batch
            if batch is None:
                raise UserError(f"every image of a batch is unreadable, the first: {unreadable[0]}; check the files")
            yield batch

    def _report(self, unreadable: list[UnreadableImage]) -> None:
        known = {error.path for error in self.unreadable}
        for error in unreadable:
            if error.path not in known:
                self.unreadable.append(error)
                warnings.warn(f"left out of its batch: {error}", stacklevel=3)


class _Order:
    """The batch sampler: lists of (epoch, index). Set `epoch` and `skip` before an iteration."""

    def __init__(self, size: int, batch_size: int, shuffle: bool, seed: int, drop_last: bool) -> None:
        self.size, self.batch_size, self.shuffle, self.seed = size, batch_size, shuffle, seed
        self.batches = size // batch_size if drop_last else math.ceil(size / batch_size)
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        return self.batches - min(self.skip, self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        order = np.random.default_rng([self.seed, epoch]).permutation(self.size) if self.shuffle else range(self.size)
        for batch in range(self.skip, self.batches):
            indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(epoch, int(index)) for index in indices]


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
