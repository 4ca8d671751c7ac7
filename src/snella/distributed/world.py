"""The processes of a training: joined in a group, they exchange values and end together.

All of them call the functions here in the same order. Where one is alone each returns what it was given.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from snella.distributed.environment import local_rank, processes_here, started_processes
from snella.distributed.part import Share
from snella.errors import UserError, listed

T = TypeVar("T")

TIMEOUT = timedelta(hours=1)  # for what one does while others wait: pictures, a first download
_JOINED = itertools.count()  # groups of this process, one after another
LOST = "another process of this training has ended"
# in torch's words for it
_LOST = (
    "onnection closed",
    "onnection reset",
    "ocket closed",
    "ocket Timeout",
    "roken pipe",
    "ncclRemoteError",
)


class ProcessLost(Exception):  # noqa: N818 (named as the other ends)
    """Another process of the training has ended before its time, or does not answer any more."""


def count() -> int:
    """Return how many processes there are in the group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Return whether this process is the one that writes and prints."""
    return count() == 1 or dist.get_rank() == 0


def share() -> Share:
    """Return this process's share of all work."""
    return Share() if count() == 1 else Share(dist.get_rank(), dist.get_world_size())


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Join the processes that were started together, for as long as the body runs; alone nothing happens.

    A group that is there already, of a program of the user's own, is used and stays.

    Raises:
        UserError: a device that several processes cannot share.
        ProcessLost: some did not come, or another one has ended.
    """
    if started_processes() == 1 and count() == 1:
        yield
        return
    with _peers():
        if count() > 1:
            yield
            return
        backend = "gloo"
        if own_device(device).startswith("cuda"):
            torch.cuda.set_device(local_rank())
            backend = "cpu:gloo,cuda:nccl"
        store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
        # torchrun's store outlives the processes: those that it starts again must not find where the first ones were
        attempt = f"snella/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_JOINED)}"
        store = dist.PrefixStore(attempt, store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        try:
            yield
        finally:
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()


def own_device(device: str) -> str:
    """Return this process's device of what --device says: each has a GPU of its own.

    Raises:
        UserError: they would have to share one.
    """
    if started_processes() == 1:
        return device
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device} is one, and {started_processes()} processes were started; use auto or cpu")
    if device == "cpu" or not torch.cuda.is_available():
        return "cpu" if device == "auto" else device
    if processes_here() > torch.cuda.device_count():
        raise UserError(
            f"{processes_here()} processes on a machine with {torch.cuda.device_count()} GPUs; start one for each, "
            "or use --device cpu"
        )
    return f"cuda:{local_rank()}"


@contextmanager
def _peers() -> Iterator[None]:
    """Turn what torch says of a connection that is gone into ProcessLost."""
    try:
        yield
    except (RuntimeError, ConnectionError) as error:  # torch's errors of processes are RuntimeErrors
        if not isinstance(error, ConnectionError) and not any(word in str(error) for word in _LOST):
            raise
        if threading.current_thread() is threading.main_thread():  # torchrun now ends the others, this one too
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
        raise ProcessLost(LOST) from error


def summed(x: Tensor) -> Tensor:
    """Return the sum of all processes' x, in its place; the same bits in each."""
    if count() > 1:
        dist.all_reduce(x)
    return x


def gathered(value: T) -> list[T]:
    """Return the value of each process, in their order. Tensors in it are on the CPU."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value)
    return found


def from_first(work: Callable[[], T]) -> T:
    """Do something in the first process, and return its result, or raise its UserError, in all of them."""
    if count() == 1:
        return work()
    box: list[Any] = [None, None]
    if is_first():
        try:
            box[0] = work()
        except UserError as error:
            box[1] = str(error)
    dist.broadcast_object_list(box)
    if box[1] is not None:
        raise UserError(box[1])
    return box[0]


def same_tensors(tensors: Sequence[Tensor]) -> None:
    """Let tensors have the first process's values."""
    for tensor in tensors if count() > 1 else ():
        held = tensor.detach().contiguous()
        dist.broadcast(held.view(-1).view(torch.uint8), 0)
        if held.data_ptr() != tensor.data_ptr():
            tensor.detach().copy_(held)


def check_same(what: str, values: Any, remedy: str) -> None:
    """Refuse to go on where some process has other values than the first. Raises UserError in all of them."""
    found = gathered(values)
    others = [str(number) for number, known in enumerate(found) if known != found[0]]
    if others:
        process = f"process {others[0]} has" if len(others) == 1 else f"processes {listed(others)} have"
        raise UserError(f"{process} other {what} than process 0; {remedy}")


def is_first_to_say() -> bool:
    """Return whether nobody of the processes has said yet why they end; asked once by each that wants to say it.

    They ask the store that torchrun keeps, which outlives each of them. Where there is none, each says it.
    """
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    try:
        with socket.create_connection((host, int(port)), timeout=2):  # torch would print pages where it fails
            pass
        store = dist.TCPStore(host, int(port), is_master=False, timeout=timedelta(seconds=5))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return store.add(f"snella/said/{attempt}", 1) == 1
    except (RuntimeError, OSError, ValueError):
        return True


@contextmanager
def in_turn() -> Iterator[None]:
    """Let the first process of each machine do the body before the others: what it leaves in a cache, they find."""
    if count() > 1 and local_rank():
        gathered(None)
    yield
    if count() > 1 and not local_rank():
        gathered(None)
