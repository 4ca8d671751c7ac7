"""Several processes that train together, on the CPU; as a program, jobs one after another in such a process.

several.py JOBS.json trains each job, {"flag": value, ...} by a setting's flat name, and leaves its run in "out".
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch.distributed import TCPStore

STORES: list[TCPStore] = []
TIMEOUT = 240  # seconds, of a machine that others use


class Ended(NamedTuple):
    """How a process has ended."""

    code: int
    out: str
    err: str


def environments(count: int, **more: str) -> list[dict[str, str]]:
    """Return the environment of each of `count` processes, as torchrun makes them on one machine.

    As torchrun does, this process keeps the store by which they find each other; it stays until the end.
    """
    STORES.append(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
    port = str(STORES[-1].port)
    return [
        {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            **{name: str(count) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")},
            **{name: str(rank) for name in ("RANK", "LOCAL_RANK")},
            **more,
        }
        for rank in range(count)
    ]


def start(
    python: str, count: int, *args: str, own: Sequence[Sequence[str]] = (), **more: str
) -> list[subprocess.Popen[str]]:
    """Start `count` processes with the same arguments, and with each one's `own` behind them."""
    return [
        subprocess.Popen(
            [python, *args, *(own[rank] if own else ())],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, environment in enumerate(environments(count, **more))
    ]


def ended(processes: Sequence[subprocess.Popen[str]], timeout: float = TIMEOUT) -> list[Ended]:
    """Wait for the processes, and return how they have ended; none is left."""
    try:
        told = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [Ended(process.returncode, *said) for process, said in zip(processes, told, strict=True)]


def train_jobs(python: str, count: int, folder: Path, jobs: Mapping[str, Mapping[str, Any]]) -> dict[str, Path]:
    """Train jobs in `count` processes, one after another; return the run folders by the jobs' names."""
    runs = {name: folder / f"{name}-{count}" for name in jobs}
    file = folder / f"jobs-{count}.json"
    file.write_text(json.dumps([{**job, "out": str(runs[name])} for name, job in jobs.items()]))
    for process in ended(start(python, count, __file__, str(file))):
        assert process.code == 0, process.err
    return runs


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl without what depends on time."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def allocations(run: Path) -> list[dict[str, Any]]:
    """Return the rows of allocation.jsonl."""
    file = run / "allocation.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def largest_difference(run: Path, other: Path) -> float:
    """Return the largest difference of a loss or metric between two runs, whose rows are the same but for that."""
    found = 0.0
    for row, its in zip(metrics(run), metrics(other), strict=True):
        assert row.keys() == its.keys()
        for name, value in row.items():
            if name in ("kind", "epoch", "step"):
                assert value == its[name]
            else:
                found = max(found, abs(value - its[name]))
    return found


def main(file: str) -> None:
    import torch
    import torch.distributed as dist
    from rich.console import Console

    from snella.config.schema import TrainConfig
    from snella.runs.train import train

    torch.set_num_threads(1)
    if os.environ["WORLD_SIZE"] != "1":
        dist.init_process_group("gloo")
    for job in json.loads(Path(file).read_text()):
        train(TrainConfig.of(**{"device": "cpu", **job}), Console(quiet=True))


if __name__ == "__main__":
    main(sys.argv[1])
