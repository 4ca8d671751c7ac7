"""What takes minutes: torchrun itself, two agents, more processes, and kills at random times."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from distributed.test_runs import BASE, ROUNDING, flags, said, wait_for_step
from snella.config.method import METHODS
from support import masked_runs, several
from support.generation_runs import write_class_folders
from support.runs import adapter, same, write_images
from support.tiny_pipelines import write_unet

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("SNELLA_KILLS", "20"))
TORCHRUN = ("-m", "torch.distributed.run")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("cluster") / "images")


def environment() -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    return {**own, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}


def run(python: str, *args: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, *args], env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )


def lines(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("snella:")]


@pytest.fixture(scope="module")
def alone(python: str, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    assert run(python, *flags(out, images, "--epochs", "3")).returncode == 0
    return out


@pytest.mark.parametrize("way", ["torchrun", "devices", "accelerate"])
def test_the_ways_to_start_two_processes(way: str, python: str, images: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = flags(out, images, "--epochs", "3")
    if way == "torchrun":  # with -- in front, as it would take --r for a flag of its own
        command = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", "-m", "snella", "--", *command[2:]]
    elif way == "devices":
        command = [*command, "--devices", "2"]
    else:
        command = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", *command]
    done = run(python, *command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("results in") == 1  # one process says it
    assert several.largest_difference(alone, out) < ROUNDING
    assert several.allocations(alone) == several.allocations(out)


def test_a_killed_process_is_started_again_by_torchrun(images: Path, alone: Path, tmp_path: Path) -> None:
    """By a Python that is not warm: a restart is told from an older run by when the processes' parent began."""
    out = tmp_path / "run"
    own = flags(out, images, "--epochs", "3", "--checkpoint-every", "1")
    several_here = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    started = subprocess.Popen(
        [sys.executable, *TORCHRUN, *several_here, "-m", "snella", "--", *own[2:]],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_step(out, 2)
    kill_one(out)
    _, err = started.communicate(timeout=600)
    assert started.returncode == 0, err
    assert several.largest_difference(alone, out) < ROUNDING


def kill_one(out: Path) -> None:
    """Kill one of the processes that train to a folder."""
    found = [p for p in psutil.process_iter(["pid"]) if trains(p, out)]
    assert found
    random.choice(found).kill()


def trains(process: psutil.Process, out: Path) -> bool:
    """Return whether a process is one of torchrun's that train to a folder; a warm one asks, and ends its fork."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return str(out) in words and "torch.distributed.run" not in words and "--devices" not in words


def test_two_agents_on_one_machine(python: str, images: Path, alone: Path, tmp_path: Path) -> None:
    """As on two nodes: they find each other, and where a process of one is killed all end."""
    out, port = tmp_path / "run", several.environments(1)[0]["MASTER_PORT"]
    several.STORES.pop()  # the port is free again

    def agents(*more: str) -> list[subprocess.Popen[str]]:
        shared = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "7"]
        place = ["--rdzv-endpoint", f"127.0.0.1:{port}"]
        own = flags(out, images, "--epochs", "3", "--checkpoint-every", "1", *more)[2:]
        return [
            subprocess.Popen(
                [python, *TORCHRUN, *shared, *place, "-m", "snella", "--", *own],
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]

    started = agents()
    wait_for_step(out, 2)
    kill_one(out)
    at = time.monotonic()
    ends = several.ended(started)
    assert time.monotonic() - at < 60
    assert all(end.code for end in ends)
    assert sum(len(lines(end.err)) for end in ends) == 1
    ends = several.ended(agents("--resume"))
    assert [end.code for end in ends] == [0, 0], ends
    assert several.largest_difference(alone, out) < ROUNDING


def test_kills_at_random_times(python: str, images: Path, tmp_path: Path) -> None:
    """Whoever is killed and whenever: the others end with a line, and the run goes on to the same end."""
    out, straight = tmp_path / "run", tmp_path / "straight"
    few = ["--epochs", "30", "--checkpoint-every", "1"]
    rng = random.Random(0)
    for number in range(KILLS):
        processes = several.start(python, 2, *flags(out, images, *few, *(["--resume"] if number else [])))
        steps = max((int(path.name[5:]) for path in (out / "checkpoints").glob("step-*")), default=0)
        wait_for_step(out, steps + 1)
        time.sleep(rng.random())
        victim = rng.randrange(2)
        processes[victim].send_signal(signal.SIGKILL)
        codes, said_lines = said(processes, timeout=60)
        assert codes[victim] == -signal.SIGKILL
        assert len(said_lines) == 1, said_lines
    assert said(several.start(python, 2, *flags(out, images, *few, "--resume"))) == ([0, 0], [])
    assert said(several.start(python, 2, *flags(straight, images, *few))) == ([0, 0], [])
    assert several.allocations(out) == several.allocations(straight)
    assert same(adapter(out), adapter(straight))  # to the bit: as many processes as before


def test_four_processes_all_tasks_and_methods(python: str, images: Path, tmp_path: Path) -> None:
    classify = {**BASE, "data": str(images), "batch_size": 7, "epochs": 2}
    masks = {**BASE, "data": str(masked_runs.write_pairs(tmp_path / "pairs")), "task": "segment", "batch_size": 5}
    samples = {"samples": 1, "sample_steps": 2, "sample_every": 0, "val_fraction": 0.2, "test_fraction": 0.2}
    made = {"data": str(write_class_folders(tmp_path / "classes")), "backbone": str(write_unet(tmp_path / "unet", 2))}
    jobs = {
        **{method: {**classify, "method": method} for method in METHODS},
        "averaged": {**classify, "average": 0.4, "early_stopping": 1, "clip_grad": 0.5},
        "segment": {**masks, "epochs": 1, "loss": "dice"},
        "generate": {**samples, **made, "task": "generate", "image_size": 16, "r": 4, "epochs": 1, "batch_size": 3},
    }
    jobs["full"]["lr"] = 1e-4
    found = {count: several.train_jobs(python, count, tmp_path, jobs) for count in (1, 4)}
    for name in jobs:
        assert several.largest_difference(found[1][name], found[4][name]) < ROUNDING, name
        assert several.allocations(found[1][name]) == several.allocations(found[4][name]), name
