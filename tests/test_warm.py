"""A process that is a fork of a warm one starts and ends as one of `sys.executable` does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "code",
    [
        "import sys; print(sys.argv, __name__, sys.stdin.read()); print('beside', file=sys.stderr)",
        "import os; print(os.getcwd(), os.environ['GIVEN'], os.environ.get('HOME')); raise SystemExit(3)",
        "raise SystemExit('no such thing')",
        "import atexit; atexit.register(print, 'at the end'); raise SystemExit",
        "import threading, time; threading.Thread(target=lambda: time.sleep(0.1) or print('after')).start()",
        "[][0]",
        "raise KeyboardInterrupt",
        "import os; os.kill(os.getpid(), 9)",
        "import os; os._exit(5)",
    ],
)
def test_it_says_and_ends_the_same(code: str, python: str, tmp_path: Path) -> None:
    ways = []
    for path in (python, sys.executable):
        command = [path, "-c", code, "one", "--two"]
        environment = {"PATH": os.environ["PATH"], "GIVEN": "x"}
        run = subprocess.run(
            command, cwd=tmp_path, env=environment, input="typed", capture_output=True, text=True, timeout=60
        )
        ways.append((run.returncode, run.stdout, run.stderr.splitlines()[-1:]))
    assert ways[0] == ways[1]


def test_modules_and_scripts_run(python: str, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("import sys; print(sys.argv[1:], __name__)")
    for first in (["-m", "beside"], ["beside.py"]):
        shown = subprocess.run([python, *first, "x"], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert shown.stdout == "['x'] __main__\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_it(number: signal.Signals, python: str) -> None:
    code = "import time; print('ready', flush=True); time.sleep(60)"
    pipe = subprocess.PIPE
    with subprocess.Popen([python, "-c", code], stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(6):  # whoever waits presses Ctrl-C again: Python drops one that comes while it frees an object
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
                break
        assert process.poll() == -number


def test_it_ends_with_who_started_it(python: str) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with subprocess.Popen([python, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        fork = int(process.stdout.readline())
        process.kill()
    end = time.monotonic() + 30
    while is_there(fork):
        assert time.monotonic() < end
        time.sleep(0.01)


def is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_has_the_libraries_but_not_this_package(python: str) -> None:
    code = "import sys; print([name in sys.modules for name in ('torch', 'timm', 'peft', 'snella', 'diffusers')])"
    shown = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[True, True, True, False, False]\n"
