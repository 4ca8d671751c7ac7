"""A training that dies, or finds the disk full, before its N-th change of a file; then it is resumed and compared.

    crash.py PLACE kill|full all|FIRST,SECOND,... FLAGS...

runs `snella train FLAGS --out PLACE/whole` once, and for each N a training that ends there and its resume. For each it
prints a line of JSON: how the first and the second ended, and whether the result is that of the whole run, to the bit.
Each is a fork of this process, which imports and computes nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from support.runs import same

KILLED = 9
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "os.link", "os.symlink")
TAKES_ROOM = ("open", "os.mkdir")


def watch(folder: Path, mode: str, last: int, counter: Path) -> None:
    """Count the changes of files in a folder from now on; end this process, or have no room, from the last one on."""
    count = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if not (writes or event in CHANGES) or not isinstance(args[0], str | os.PathLike):
            return
        path = os.fspath(args[0])
        if not str(path).startswith(str(folder)):
            return
        count += 1
        if mode == "count":
            with open(counter, "w") as file:
                file.write(str(count))
        elif count >= last and mode == "kill":
            os._exit(KILLED)
        elif count >= last and event in TAKES_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    sys.addaudithook(hook)


def ended(flags: Sequence[str], out: Path, mode: str = "", last: int = 0, said: Path | None = None) -> int:
    """Return how a training ended that ran in a fork."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    code = 1
    with contextlib.suppress(BaseException):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if said else nowhere, 2)
        from snella.cli.main import main

        if mode:
            watch(out, mode, last, out.with_name("count"))
        code = main(["train", *flags, "--out", str(out)])
    os._exit(code)


def same_result(run: Path, whole: Path) -> bool:
    """Return whether two runs have the same adapter to the bit, the same metrics and the same rows of their records."""
    tensors = [load_file(next((folder / "adapter").glob("*.safetensors"))) for folder in (run, whole)]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (run, whole)]
    metrics = [{split: found.get(split) for split in ("val", "test")} for found in summaries]
    rows = [
        [
            {key: value for key, value in json.loads(line).items() if key != "images_per_second"}
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (run, whole)
    ]
    hidden = [path.name for path in run.iterdir() if path.name.startswith(".")]
    return same(*tensors) and metrics[0] == metrics[1] and rows[0] == rows[1] and not hidden


def trial(place: Path, mode: str, last: int, flags: Sequence[str]) -> dict[str, Any]:
    """Return how a training with a crash went, and its resume."""
    run, said = place / "run", place / "said"
    shutil.rmtree(run, ignore_errors=True)
    first = ended(flags, run, mode, last, said)
    lines = [line for line in said.read_text().splitlines() if line.startswith("snella: ") or "Traceback" in line]
    second = ended([*flags, "--resume"], run)
    is_same = second == 0 and same_result(run, place / "whole")
    return {"change": last, "first": first, "said": lines, "second": second, "same": is_same}


def main(place: Path, mode: str, chosen: str, *flags: str) -> None:
    """Try the chosen changes, or all, and print a line for each."""
    assert ended(flags, place / "whole", "count") == 0
    changes = int((place / "count").read_text())
    numbers = range(1, changes + 1) if chosen == "all" else [min(int(n), changes) for n in chosen.split(",")]
    for number in numbers:
        print(json.dumps(trial(place, mode, number, flags)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
