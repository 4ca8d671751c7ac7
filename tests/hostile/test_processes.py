"""What the machine does to a command: signals at any moment, limits, odd surroundings. A line and an exit code each."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from snella.cli.main import COMMANDS, main
from snella.compare import search
from snella.config.schema import TrainConfig
from snella.data import images as image_files
from snella.data.images import open_image
from snella.errors import UserError
from snella.files import writing
from snella.runs.folder import alone_in, claim
from support.runs import train, write_images


def line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    return said[0]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded", "x"), "x: the disk quota is used up; free some space"),
        (
            OSError(errno.EFBIG, "File too large", "x"),
            "x: the file is larger than allowed here; raise the limit (ulimit",
        ),
        (OSError(errno.EMFILE, "Too many open files"), "too many open files; raise the limit (ulimit -n 4096)"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory; close other programs"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "was ended from outside"),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "lower --workers"),
        (RuntimeError("received 0 items of ancdata"), "too many open files; raise the limit"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
            "out of memory",
        ),
    ],
)
def test_limits_are_told_with_their_remedy(
    error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: list[str]) -> int:
        raise error

    monkeypatch.setitem(COMMANDS, "data", fail)
    assert main(["data", "x"]) == 2
    assert expected in line(capsys)


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.EFBIG, "raise the limit"), (errno.EMFILE, "ulimit -n"), (errno.EDQUOT, "make room or make it writable")],
)
def test_what_cannot_be_written_is_told_with_its_remedy(number: int, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=expected), writing(tmp_path / "a"):
        raise OSError(number, os.strerror(number))


def test_an_image_is_not_left_out_because_too_many_files_are_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    path = write_images(tmp_path / "images", classes=1, count=1) / "c0" / "0.png"
    monkeypatch.setattr(image_files.Image, "open", no_more)
    with pytest.raises(OSError, match="Too many open files"):
        open_image(path)


def test_output_that_lacks_characters_or_is_closed_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_images(tmp_path / "imágenes…", classes=2, count=6)
    latin = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", latin)
    monkeypatch.setenv("MPLBACKEND", "no such thing")
    assert train(data, tmp_path / "run", "--epochs", "1") == 0
    latin.flush()
    assert "im\xe1genes?".encode("latin-1") in latin.buffer.getvalue()  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["evaluate", str(tmp_path / "run")]) == 0


# the command line without the package's own imports, which take seconds, as `snella_cli` has it
WITHOUT_TORCH = (
    "import signal, sys; from importlib.util import find_spec, module_from_spec;"
    "sys.modules['snella'] = module_from_spec(find_spec('snella'));"
    "signal.signal(signal.SIGINT, signal.default_int_handler); signal.signal(signal.SIGHUP, signal.SIG_DFL);"
)


@pytest.mark.skipif(os.name != "posix", reason="signals of other systems")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_while_a_module_is_loaded_ends_at_once(name: str, code: int, tmp_path: Path) -> None:
    """An exception in the middle of a library's import would leave it half-made: it then aborts or recurses."""
    (tmp_path / "stopped_here.py").write_text(
        f"import os, signal\nos.kill(os.getpid(), signal.{name})\nwhile True: pass\n"
    )
    program = (
        f"{WITHOUT_TORCH} from snella.cli.main import COMMANDS, main;"
        "COMMANDS['data'] = lambda args: __import__('stopped_here'); sys.exit(main(['data', 'a b']))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == code
    assert ended.stderr == "snella: stopped; this starts again: snella data 'a b'\n"


@pytest.mark.skipif(os.name != "posix", reason="signals of other systems")
def test_a_run_of_a_comparison_ends_when_the_comparison_is_gone() -> None:
    program = (
        f"{WITHOUT_TORCH} import os, time; os.environ['SNELLA_ENDS_WITH_PARENT'] = '1';"
        "from snella.cli.exit import end_with_parent; end_with_parent(); print('ready', flush=True); time.sleep(100)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    assert child.poll() is None
    child.stdin.close()  # as the system does it for a process that is killed
    assert child.wait(timeout=60) == -signal.SIGTERM
    child.stdout.close()


def test_a_comparison_waits_for_a_run_that_is_still_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one that was killed the runs need a moment to end; without them another rate would be chosen."""
    looks: list[float] = []
    monkeypatch.setattr(search.time, "sleep", looks.append)
    folder, said = tmp_path / "run", io.StringIO()
    claim(folder, TrainConfig.of(data="x", out=str(folder)))
    search._wait_for(folder, Console(file=said))
    assert (looks, said.getvalue()) == ([], "")
    with alone_in(folder, "training"), pytest.raises(UserError, match="a training is still at work in"):
        search._wait_for(folder, Console(file=said))
    assert len(looks) == search.WAIT
    assert said.getvalue().startswith("waiting for a training that is at work in")
