"""What every test shares: hypothesis without randomness, a seed, caches of their own and a small heap to collect."""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from support.figures import drawn_once
from support.golden import DEVICE
from support.pages import written_once
from support.vits import tiny_vit
from support.warm import warm_python

if DEVICE != "cpu":  # for tests that make all their tensors themselves; golden values are there already
    torch.set_default_device(DEVICE)
    torch.backends.cudnn.allow_tf32 = False  # a convolution would be 1e-3 off

CACHE = tempfile.TemporaryDirectory(prefix="snella-tests-")  # of this process, gone with it
os.environ["SNELLA_CACHE"] = os.path.join(CACHE.name, "snella")
os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = os.path.join(CACHE.name, "hypothesis")

TRAIN = ("runs", "hostile", "cli", "compare", "config", "tasks", "app")  # folders of tests that train

settings.register_profile("snella", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("snella")


def pytest_unconfigure() -> None:
    CACHE.cleanup()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """A shell starts background jobs with SIGINT ignored; the tests of Ctrl-C need Python's own handler."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def python() -> Iterator[str]:
    """The path of a Python whose processes start with the libraries imported, but not this package."""
    with warm_python() as path:
        yield path


@pytest.fixture
def warm_runs(python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is started by `sys.executable` starts with the libraries imported."""
    monkeypatch.setattr(sys, "executable", python)


@pytest.fixture(autouse=True, scope="module")
def _frozen_heap() -> None:
    """Leave what is there by now out of garbage collections.

    Every training makes a full one to count its memory, which takes a second or more for the millions of objects that
    the libraries and the tests before have made.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _figures_drawn_once(request: pytest.FixtureRequest) -> Iterator[None]:
    """Draw each kind of figure once a process, in the tests that train whole runs."""
    with drawn_once() if request.path.parent.name in TRAIN else nullcontext():
        yield


@pytest.fixture(autouse=True, scope="module")
def _pages_written_once(request: pytest.FixtureRequest) -> Iterator[None]:
    """Write the page of a run once a process, in the tests that train whole runs."""
    with written_once() if request.path.parent.name in TRAIN else nullcontext():
        yield


@pytest.fixture
def vit() -> nn.Module:
    return tiny_vit()  # two blocks, fused qkv


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
