"""`snella app`: the page, served from this machine until it is stopped."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from snella.app.answers import open_runs
from snella.console import Terminal, print_line
from snella.errors import UserError, printable, short_reason
from snella.runs.devices import check_device, make_accelerator
from snella.runs.folder import read_about

INSTALL = 'pip install "snella[app]"'
HERE = "127.0.0.1"
LOCAL = (HERE, "localhost", "::1")
MB = 2**20  # as Gradio says it


def serve(
    runs: Sequence[str],
    *,
    host: str = HERE,
    port: int | None = None,
    max_upload: int = 20,
    device: str = "auto",
    console: Console | None = None,
) -> None:
    """Serve a page to try runs on, until Ctrl-C or a signal ends it (KeyboardInterrupt).

    What it needs of the disk is in a temporary folder, which is gone afterwards. No link to it is made elsewhere, and
    nothing is told to anybody.

    Args:
        runs: folders of finished runs; several are shown side by side.
        host: address to listen at; other machines reach the page where it is not this machine's own.
        port: None: the first free one from 7860 on.
        max_upload: largest file, MB.

    Raises:
        UserError: a package is missing, no finished run, runs that do not go together, an address that cannot be had.
    """
    console = console or Terminal()
    if find_spec("gradio") is None:
        raise UserError(f"snella app needs the package gradio; run: {INSTALL}")
    if max_upload < 1:
        raise UserError(f"--max-upload {max_upload} is below 1 MB")
    if port is not None and not 1 <= port < 2**16:
        raise UserError(f"--port {port} is none; use 1024 to 65535")
    for run in runs:
        read_about(Path(run))
    check_device(device, "fp32")
    opened = open_runs([Path(run) for run in runs], make_accelerator(device, "fp32").device)
    with _own_place() as place, redirect_stderr(_Terse(sys.stderr)):
        from snella.app.page import build  # what Gradio reads of the environment it reads when it is imported

        place.mkdir(mode=0o700)
        tempfile.tempdir = str(place)  # of uploads that break off, too
        page = build(opened)
        try:
            _launch(page, host, port, max_upload)
            print_line(console, f"page at {_address(page, host)} (Ctrl-C ends it)")
            if host not in LOCAL:
                print_line(console, f"whoever reaches this machine at {host} can use it; --host {HERE} keeps it here")
            while True:
                time.sleep(60)
        finally:
            page.close(verbose=False)


def _launch(page: Any, host: str, port: int | None, max_upload: int) -> None:
    """Start the server in a thread of its own. Raises UserError where it cannot have the address."""
    try:
        page.queue(max_size=32).launch(
            server_name=host, server_port=port, max_file_size=max_upload * MB, share=False, prevent_thread_lock=True,
            quiet=True, inbrowser=False, show_error=False, ssr_mode=False, mcp_server=False, footer_links=[],
        )  # fmt: skip
    except OSError:
        which = f"--port {port} is taken or not allowed; choose another, or leave it out" if port else "no port is free"
        raise UserError(f"{which}, or --host {host} is no address of this machine") from None
    except ValueError as error:  # it has asked for its own page, and a proxy or nobody has answered
        raise UserError(f"the page at {host} cannot be reached from here ({short_reason(error)})") from None


def _address(page: Any, host: str) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{page.server_port}"


class _Terse(io.TextIOBase):
    """A stream on which a traceback is its last line: Gradio prints one for whatever is sent to it by hand."""

    CHAINED = ("During handling of the above", "The above exception was")

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._rest, self._inside = stream, "", False

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.startswith("Traceback (most recent call last)"):
                self._inside = True
            elif not line.strip() or line.startswith(self.CHAINED) or (self._inside and line[0].isspace()):
                continue
            else:
                self._stream.write(f"{'snella: the page: ' if self._inside else ''}{printable(line)}\n")
                self._inside = False
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


@contextmanager
def _own_place() -> Iterator[Path]:
    """Give the path of a temporary folder, to be made, that is the page's own, and take it away afterwards.

    What the environment says to Gradio is this page's inside. It is put back, as is the place of temporary files.
    """
    before, before_files = dict(os.environ), tempfile.tempdir
    place = Path(tempfile.gettempdir()) / f"snella-app-{uuid.uuid4().hex}"
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_RUN_HISTORY": "False",
        "GRADIO_TEMP_DIR": str(place),
        "GRADIO_EXAMPLES_CACHE": str(place),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "no_proxy": ",".join([*filter(None, [before.get("no_proxy") or before.get("NO_PROXY")]), *LOCAL]),
    }
    try:
        yield place
    finally:
        tempfile.tempdir = before_files
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(place, ignore_errors=True)
