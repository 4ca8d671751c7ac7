"""Commands at work side by side: a bar on a terminal, a log for each, and a clean stop for all."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from snella.console import print_line
from snella.machine import usable_cores
from snella.training.interrupt import ENDS_WITH_PARENT

POLL = 0.2  # seconds between two looks at the processes
TAIL = 4096  # bytes of a log that are searched for its last line


@dataclass(frozen=True)
class Job:
    """A command, and the file that its output goes to."""

    name: str
    command: tuple[str, ...]
    log: Path


def run_jobs(jobs: Sequence[Job], *, workers: int, console: Console) -> dict[Job, str]:
    """Run commands, `workers` at once, and return why some failed, in a line each; the others go on.

    Each has its share of the cores (OMP_NUM_THREADS, unless that is set). Where this is interrupted, all are asked to
    stop as by SIGTERM and waited for, before KeyboardInterrupt goes on; once more ends them at once.
    """
    waiting = deque(jobs)
    running: dict[Job, tuple[subprocess.Popen[bytes], TaskID, int]] = {}
    failed: dict[Job, str] = {}
    environment = _environment(workers)
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
    columns += (TimeElapsedColumn(),)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        runs = bar.add_task("runs", total=len(jobs), text="")
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    job = waiting.popleft()
                    old = job.log.stat().st_size if job.log.exists() else 0  # bytes that an earlier try wrote
                    running[job] = (_start(job, environment), bar.add_task(job.name, total=None, text=""), old)
                time.sleep(POLL)
                for job, (process, line, old) in list(running.items()):
                    bar.update(line, text=escape(_last_line(job.log, old)[:80]))
                    if process.poll() is None:
                        continue
                    del running[job]
                    bar.remove_task(line)
                    bar.advance(runs)
                    done = len(jobs) - len(waiting) - len(running)
                    if process.returncode:
                        failed[job] = _reason(job.log, old, process.returncode)
                        print_line(console, f"{done}/{len(jobs)}  {job.name} failed: {failed[job]} (log: {job.log})")
                    else:
                        print_line(console, f"{done}/{len(jobs)}  {job.name}")
        except BaseException:
            _stop([process for process, _, _ in running.values()])
            raise
    return failed


def _environment(workers: int) -> dict[str, str]:
    cores = usable_cores()
    share = {"OMP_NUM_THREADS": str(max(1, cores // workers))} if workers > 1 else {}
    return share | dict(os.environ) | {"PYTHONUNBUFFERED": "1", ENDS_WITH_PARENT: "1"}


def _start(job: Job, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "ab") as log:  # what an earlier try wrote stays
        return subprocess.Popen(
            job.command,
            stdin=subprocess.PIPE,  # that it ends tells the process that we have, even if killed
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal reaches us alone, and we ask once
        )


def _stop(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Ask all to stop and wait; a second Ctrl-C asks again, a third one kills."""
    processes = list(processes)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        try:
            for process in processes:
                process.send_signal(number)  # nothing happens where it has ended
            for process in processes:
                process.wait()
            return
        except KeyboardInterrupt:
            continue


def _lines(log: Path, old: int) -> list[str]:
    """Return the last lines of a log that are not empty, behind its `old` first bytes."""
    try:
        with open(log, "rb") as file:
            file.seek(max(old, file.seek(0, os.SEEK_END) - TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def _last_line(log: Path, old: int) -> str:
    return next(reversed(_lines(log, old)), "")


def _reason(log: Path, old: int, code: int) -> str:
    """Return why a command failed: its own last message, or how it ended."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    lines = _lines(log, old)
    messages = [line for line in lines if line.startswith("snella: ")] or lines
    return messages[-1].removeprefix("snella: ") if messages else f"exit code {code}"
