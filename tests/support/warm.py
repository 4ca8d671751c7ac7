"""A Python whose processes start with the large libraries imported, which takes ten seconds in a new one.

A server imports them, and never this package, and each process is a fork of it, in a session of its own. Run as a
program this is the server: warm.py FOLDER listens in FOLDER/socket until its standard input is closed. FOLDER/python is
what tests start in place of `sys.executable`: it hands arguments, folder, environment and streams to the server, passes
signals on and ends as the process ends.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import random
import runpy
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import NoReturn

LIBRARIES = ("numpy", "torch", "torchvision", "timm", "transformers", "peft", "accelerate", "safetensors.torch")
LIBRARIES += (
    "torchvision.transforms.v2",
    "timm.optim",
    "timm.scheduler",
    "segmentation_models_pytorch",
    "tyro",
    "rich.progress",
)
LENGTH = struct.Struct("!q")  # before a request; then the process's id and how it ended
LOOK = 0.01  # seconds between two looks at a process
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def warm_python() -> Iterator[str]:
    """Start a server, and give the path of the Python whose processes are its forks."""
    with tempfile.TemporaryDirectory(prefix="snella-") as folder:  # of a short name, as that of a socket has to be
        yield from _started(Path(folder))


def _started(folder: Path) -> Iterator[str]:
    python = folder / "python"
    here = (sys.executable, "-IS", __file__, "--ask", str(folder / "socket"))
    python.write_text(f'#!/bin/sh\nexec {shlex.join(here)} "$@"\n')
    python.chmod(0o755)
    command = [sys.executable, __file__, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        if server.stdout.readline() != b"ready\n":
            raise RuntimeError("the server of warm processes did not start")
        yield str(python)
        server.stdin.close()


def ask(path: str, args: list[str]) -> int:
    """Have the server run Python with these arguments, and return how that ended, as `os.waitstatus_to_exitcode`."""
    waiting: list[int] = []
    for number in PASSED_ON:
        signal.signal(number, lambda number, _: waiting.append(number))
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        request = json.dumps({"args": args, "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
        socket.send_fds(server, [LENGTH.pack(len(request))], [0, 1, 2])
        server.sendall(request)
        (process,) = LENGTH.unpack(_read(server, LENGTH.size))

        def pass_on(number: int, _: object) -> None:
            os.kill(process, number)

        for number in PASSED_ON:
            signal.signal(number, pass_on)
        for number in waiting:
            os.kill(process, number)
        (code,) = LENGTH.unpack(_read(server, LENGTH.size))
    return code


def end(code: int) -> NoReturn:
    """End this process as another one ended."""
    if code < 0:
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def serve(folder: Path) -> list[str]:
    """Fork a process for each request until the standard input is closed; return its arguments in each."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen()
        print("ready", flush=True)
        forks = 0
        while True:
            readable, _, _ = select.select([listener, sys.stdin], [], [])
            while forks and os.waitpid(-1, os.WNOHANG)[0]:
                forks -= 1
            if sys.stdin in readable:
                os._exit(0)
            connection, _ = listener.accept()
            if not os.fork():
                break
            connection.close()
            forks += 1
    header, streams, _, _ = socket.recv_fds(connection, LENGTH.size, 3)
    request = json.loads(_read(connection, *LENGTH.unpack(header)))
    process = os.fork()
    if process:
        _wait(process, connection)
    connection.close()
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.executable = str(folder / "python")
    random.seed()  # not as in every other fork
    if "PYTHONUNBUFFERED" in os.environ:
        sys.stdout.reconfigure(write_through=True)  # pyright: ignore[reportAttributeAccessIssue]
    return request["args"]


def _wait(process: int, connection: socket.socket) -> None:
    """Tell the process's id and how it ends; where nobody listens any more it is killed."""
    connection.sendall(LENGTH.pack(process))
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            connection.sendall(LENGTH.pack(os.waitstatus_to_exitcode(status)))
            os._exit(0)
        if select.select([connection], [], [], LOOK)[0]:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            os._exit(0)


def _read(connection: socket.socket, count: int) -> bytes:
    """Return as many bytes from a connection."""
    content = b""
    while len(content) < count:
        more = connection.recv(count - len(content))
        if not more:
            raise ConnectionError("the other side has ended")
        content += more
    return content


def run(args: list[str]) -> None:
    """Do what `python ARGS` does, where these are a script, -c CODE or -m MODULE and what follows it."""
    first, *rest = args[1:] if args[0] == "-u" else args  # as torchrun starts them
    sys.path[:0] = [
        path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path
    ]
    if first == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *rest[1:]]
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    elif first == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(first).parent))
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


def run_to_the_end(args: list[str]) -> NoReturn:
    """Run `python ARGS` and end as it does, but for taking the libraries apart, which takes seconds."""
    code = 0
    try:
        run(args)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException as error:
        traceback.print_exc()
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    end(code)


def warm_up() -> None:
    """Import what takes long, and make sure that this package is not among it."""
    sys.path.pop(0)  # this folder
    for name in LIBRARIES:
        import_module(name)
    assert not {"snella", "diffusers"} & sys.modules.keys(), "a check that these are not needed would say nothing"
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # collections in the forks leave the pages of the libraries shared


if __name__ == "__main__":
    if sys.argv[1] == "--ask":
        end(ask(sys.argv[2], sys.argv[3:]))
    warm_up()
    run_to_the_end(serve(Path(sys.argv[1])))
