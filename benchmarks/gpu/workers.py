"""Trainings in worker processes, several on one device: each process trains one run after the other.

The libraries are imported once a process, and nothing of the command line is: a bare machine may lack its parser.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from snella.config.schema import TrainConfig

Done = Callable[[TrainConfig, str | None], None]  # is told of a run that ended, and why it failed, if it did
POLL = 1.0  # seconds


@dataclass
class _Worker:
    """A process and what it trains at the moment."""

    process: BaseProcess
    pipe: Connection
    config: TrainConfig | None = None


def train_all(configs: Iterator[TrainConfig | None], done: Done, *, workers: int, deadline: float) -> bool:
    """Train what `configs` gives, each in its run folder, until it ends or until `deadline` (of `time.monotonic`).

    Args:
        configs: asked whenever a process is free; None: nothing as long as others are under way.
        done: called after each run, before `configs` is asked again.

    Returns:
        Whether all were trained; what is under way at the deadline is killed.
    """
    pool: list[_Worker] = []
    more, ended = True, False
    try:
        while time.monotonic() < deadline:
            while more and (len(pool) < workers or any(worker.config is None for worker in pool)):
                config = next(configs, ...)
                more = config is not ...
                if not isinstance(config, TrainConfig):
                    break
                idle = next((worker for worker in pool if worker.config is None), None)
                if idle is None:
                    pool.append(idle := _new_worker())
                idle.config = config
                idle.pipe.send(config)
            if not more and not any(worker.config for worker in pool):
                ended = True
                break
            for pipe in wait([worker.pipe for worker in pool], timeout=POLL):
                worker = next(worker for worker in pool if worker.pipe is pipe)
                config, worker.config = worker.config, None
                reason = _received(worker)
                if not worker.process.is_alive():
                    pool.remove(worker)
                if config is not None:
                    done(config, reason)
    finally:
        for worker in pool:
            worker.process.kill()
            worker.process.join()
    return ended


def _new_worker() -> _Worker:
    context = get_context("spawn")  # a forked process cannot use a CUDA device that its parent has used
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _received(worker: _Worker) -> str | None:
    try:
        return worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join()
        return f"its process ended with exit code {worker.process.exitcode}"


def work(pipe: Any) -> None:
    """Train what comes through the pipe and send back why it failed, None where it did not, until the pipe closes."""
    while True:
        try:
            config = pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send(train_logged(config))


def train_logged(config: TrainConfig) -> str | None:
    """Train a run, with what it prints in a .log beside its folder; return why it failed, None where it did not."""
    import torch
    from rich.console import Console

    from snella.errors import short_reason
    from snella.runs.train import train

    folder = Path(config.out or "")
    log = folder.with_name(f"{folder.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    reason = None
    with open(log, "a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            train(config, Console(file=file, width=120))
        except Exception as error:
            reason = f"{type(error).__name__}: {short_reason(error)}"
    gc.collect()  # what the run held, before another process asks for memory
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return reason
