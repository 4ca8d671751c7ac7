"""Correctness on a device: the tests of the operations and the parity tests, each file in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PARITY = "tests/tuner/test_parity.py"  # the only ones that make all their tensors on SNELLA_TEST_DEVICE
GRACE = 10.0  # seconds in which an interrupted test run writes what it has
POLL = 0.2  # seconds


@dataclass
class _Running:
    """A file of tests under way."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    report: Path


def test_files() -> list[str]:
    """Return the files of tests that matter on a device, the longest first."""
    files = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "tests" / "ops").glob("test_*.py"))]
    return [PARITY, *sorted(files, key=lambda name: "triton" not in name)]


def check_correctness(
    device: str,
    seconds: float,
    say: Callable[[str], None],
    *,
    files: Sequence[str] | None = None,
    options: Sequence[str] = (),
    workers: int = 1,
) -> dict[str, Any]:
    """Run the tests, `workers` files at once, and return per file the counts, what failed and the seconds.

    When the time is up those under way are interrupted, and those that wait are named.
    """
    end = time.monotonic() + seconds
    waiting, running = list(test_files() if files is None else files), list[_Running]()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            if time.monotonic() > end:
                for job in running:
                    _interrupt(job.process)
                    results[job.name] = {**_result(job), "interrupted": True}
                break
            while waiting and len(running) < workers:
                running.append(_start(waiting.pop(0), device, options, Path(folder)))
                say(f"testing {running[-1].name}")
            time.sleep(POLL)
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                results[job.name] = _result(job)
    return {"files": results, "not_begun": waiting, "passed": not waiting and all(map(_passed, results.values()))}


def _start(name: str, device: str, options: Sequence[str], folder: Path) -> _Running:
    log, report = (folder / f"{name.replace('/', '-')}.{kind}" for kind in ("log", "xml"))
    command = [sys.executable, "-m", "pytest", name, "-m", "not slow", "-p", "no:cacheprovider", *options]
    command += [f"--junitxml={report}"]
    places = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    if name == PARITY:
        environment["SNELLA_TEST_DEVICE"] = device
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
    return _Running(name, process, log, report)


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
        return
    process.kill()
    process.wait()


def _result(job: _Running) -> dict[str, Any]:
    """Return what a finished process found: from its report, and where there is none the end of what it printed."""
    found: dict[str, Any] = {"exit_code": job.process.returncode}
    try:
        return found | read_report(job.report)
    except (OSError, ET.ParseError):
        return found | {"printed": job.log.read_text(errors="replace")[-2000:]}


def read_report(path: Path) -> dict[str, Any]:
    """Return counts, seconds, and the names and first lines of what failed or was skipped, of a JUnit file."""
    suites = list(ET.parse(path).getroot().iter("testsuite"))
    counts = {
        key: sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "failures", "errors", "skipped")
    }
    failed, skipped = {}, {}
    for case in (case for suite in suites for case in suite.iter("testcase")):
        for kind, table in (("failure", failed), ("error", failed), ("skipped", skipped)):
            for part in case.iter(kind):
                table[f"{case.get('name')}"] = (part.get("message") or "").partition("\n")[0][:300]
    seconds = sum(float(suite.get("time", 0)) for suite in suites)
    return {**counts, "seconds": seconds, "failed": failed, "skip_reasons": sorted(set(skipped.values()))}


def _passed(result: dict[str, Any]) -> bool:
    return result["exit_code"] == 0 and not result.get("failed", True)
