"""What the program that starts several processes (torchrun) tells each of them; nothing here loads torch.

WORLD_SIZE   processes in all          LOCAL_WORLD_SIZE   on this machine
RANK         this one's number         LOCAL_RANK         its number on this machine
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import psutil

from snella.errors import UserError, named


def started_processes() -> int:
    """Return how many processes were started together; 1 where nobody says. Raises UserError for what is no number."""
    given = os.environ.get("WORLD_SIZE", "1")
    if not re.fullmatch(r"[0-9]{1,9}", given):
        raise UserError(f"WORLD_SIZE is {named(given)}, and should be a number of processes; unset it")
    return int(given)


def is_one_of_several() -> bool:
    """Return whether this process was started as one of several."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1")


def is_first_started() -> bool:
    """Return whether this process is the one that writes and prints: number 0, or alone."""
    return not is_one_of_several() or os.environ.get("RANK", "0") == "0"


def local_rank() -> int:
    """Return this process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def processes_here() -> int:
    """Return how many of the processes are on this machine."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) if is_one_of_several() else 1


def is_restarted() -> bool:
    """Return whether torchrun has started these processes again, after some of them had ended."""
    return is_one_of_several() and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")


def check_alone(command: str) -> None:
    """Refuse to run as one of several processes what does not divide its work. Raises UserError."""
    if started_processes() > 1:
        raise UserError(f"{command} runs in one process, and {started_processes()} were started; leave out torchrun")


def claimed_since_start(path: Path) -> bool:
    """Return whether a file was written since the program that started this process was itself."""
    return path.is_file() and path.stat().st_mtime >= psutil.Process(os.getppid()).create_time()


def asked_of_accelerate() -> int:
    """Return how many processes `accelerate launch` was asked for where it has started one, as on the CPU; else 1.

    It does not pass the number on, so its own command line is read.
    """
    if "ACCELERATE_DYNAMO_BACKEND" not in os.environ or "WORLD_SIZE" in os.environ:
        return 1
    try:
        asked = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    except OSError:
        return 1
    found = re.search(r"--num[_-]processes[= ]([0-9]{1,9})", asked)
    return int(found[1]) if found else 1
