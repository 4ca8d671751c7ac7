from __future__ import annotations

import os
import signal
import sys
import threading
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from snella.compare.jobs import Job, run_jobs


def python(folder: Path, name: str, statements: str) -> Job:
    return Job(name, (sys.executable, "-c", statements), folder / "logs" / f"{name}.log")


def run(*jobs: Job, workers: int = 1) -> tuple[dict[str, str], str]:
    out = StringIO()
    failed = run_jobs(jobs, workers=workers, console=Console(file=out, width=200))
    return {job.name: reason for job, reason in failed.items()}, out.getvalue()


def test_a_failure_is_its_last_message_and_does_not_stop_the_rest(tmp_path):
    bad = python(tmp_path, "bad", "import sys; print('at work'); sys.exit('snella: no such thing; take another')")
    good = python(tmp_path, "good", "print('fine')")
    failed, said = run(bad, good)
    assert failed == {"bad": "no such thing; take another"}
    assert f"1/2  bad failed: no such thing; take another (log: {bad.log})" in said
    assert "2/2  good" in said
    assert good.log.read_text() == "fine\n"


@pytest.mark.parametrize(
    ("statements", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL"),
        ("raise SystemExit(3)", "exit code 3"),
        ("[][0]", "IndexError: list index out of range"),
    ],
)
def test_a_failure_without_a_message_is_named(statements, reason, tmp_path):
    assert run(python(tmp_path, "x", statements))[0] == {"x": reason}


def test_what_an_earlier_try_said_is_no_reason(tmp_path):
    first = python(tmp_path, "x", "import sys; sys.exit('snella: stopped')")
    assert run(first)[0] == {"x": "stopped"}
    assert run(python(tmp_path, "x", "[][0]"))[0] == {"x": "IndexError: list index out of range"}
    assert first.log.read_text().startswith("snella: stopped\nTraceback")


def test_several_run_at_once_and_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("snella.compare.jobs.usable_cores", lambda: 6)
    meet = (  # each waits for the other
        "import os, pathlib, time; here = pathlib.Path({here!r}); here.touch(); end = time.time() + 20\n"
        "while not pathlib.Path({there!r}).exists(): assert time.time() < end; time.sleep(0.02)\n"
        "print(os.environ['OMP_NUM_THREADS'])"
    )
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    jobs = [python(tmp_path, "a", meet.format(here=a, there=b)), python(tmp_path, "b", meet.format(here=b, there=a))]
    assert run(*jobs, workers=2)[0] == {}
    assert [job.log.read_text() for job in jobs] == ["3\n", "3\n"]


def test_ctrl_c_asks_each_once_and_waits_for_it(tmp_path):
    asked = tmp_path / "asked"
    patient = (
        "import pathlib, signal, sys, time\n"
        f"def stop(*_): time.sleep(0.5); open({str(asked)!r}, 'a').write('once '); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    job = python(tmp_path, "patient", patient)

    def interrupt() -> None:
        while not job.log.exists() or "ready" not in job.log.read_text():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    begun = time.time()
    with pytest.raises(KeyboardInterrupt):
        run(job, python(tmp_path, "never", "print('begun')"))
    assert asked.read_text() == "once "
    assert time.time() - begun < 30
    assert not (tmp_path / "logs" / "never.log").exists()
