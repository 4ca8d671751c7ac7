"""`snella train --devices N`: N processes on this machine, by the engine of torchrun."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Sequence

from snella.machine import usable_cores


def start_processes(count: int, args: Sequence[str]) -> int:
    """Run `snella ARGS` as `count` processes and return the exit code: of the first that failed, 0 if none did.

    On the CPU each has its share of the cores, unless OMP_NUM_THREADS says how many.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # a failed process has said its line
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // count)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "snella", *args)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as stop:
        return 128 + stop.sigval
    return 0
