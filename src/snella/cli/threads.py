"""How torch's threads wait for each other, decided before torch is loaded.

A step is thousands of small loops, at the end of which each thread waits for the others. OpenMP's threads wait by
spinning, which is best on an idle machine; where another process has one of the cores, a thread that spins keeps the
one that it waits for from running. On two cores with a busy process beside, a training step takes 2.9 times as long as
without, and 1.7 times where threads sleep instead, which costs an idle machine up to a tenth. No result depends on it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from snella.machine import usable_cores

LOOKS, PAUSE = 5, 0.01  # the number of looks at what runs beside, and the seconds between them
CHOSEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def wait_asleep_if_busy() -> None:
    """Have the threads of this process, and of those that it starts, sleep while they wait if the cores are taken.

    Environment variables that say how to wait stay as they are. It has to come before torch is loaded.
    """
    if not any(name in os.environ for name in CHOSEN) and is_busy():
        os.environ["OMP_WAIT_POLICY"] = "passive"


def is_busy() -> bool:
    """Return whether other processes run on cores that this one's threads will want; False where that is not known."""
    beside = []
    for look in range(LOOKS):
        time.sleep(PAUSE if look else 0)
        running = _running()
        if running is None:
            return False
        beside.append(running - 1)  # without this one
    cores = os.cpu_count() or 1
    usable = usable_cores()
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(usable, int(given)) if given.isdecimal() and int(given) else usable
    return threads > 1 and sorted(beside)[LOOKS // 2] + threads > cores


def _running() -> int | None:
    """Return how many threads of the machine run or could run now; None where the system does not say (not Linux)."""
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return None
