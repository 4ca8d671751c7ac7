"""`snella app` in a process of its own, in an empty folder with an empty home."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

STARTS = 300  # seconds in which the page has to be there


class Served:
    """A page that is served; `stop` ends it as Ctrl-C does. What it has said is in `said`."""

    def __init__(self, place: Path, *args: object) -> None:
        self.place = place
        for name in ("home", "tmp", "work"):
            (place / name).mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("GRADIO_", "XDG_"))}
        env = kept | {"HOME": str(place / "home"), "TMPDIR": str(place / "tmp"), "SNELLA_CACHE": str(place / "cache")}
        self._output = open(place / "said", "w+")  # noqa: SIM115 (closed by stop)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "snella", "app", *map(str, args), "--device", "cpu"],
            stdout=self._output, stderr=subprocess.STDOUT, cwd=place / "work", env=env,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip

    @property
    def said(self) -> str:
        return (self.place / "said").read_text()

    @property
    def address(self) -> str:
        """Wait for the page and return where it is."""
        deadline = time.monotonic() + STARTS
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(r"page at (http\S+)", self.said):
                return found[1]
            time.sleep(0.1)
        raise AssertionError(f"there is no page: {self.said}")

    def left(self) -> list[str]:
        """Return the files and folders that it has made, but for the caches that torch and matplotlib always make."""
        found = [path for name in ("home", "tmp", "work") for path in (self.place / name).rglob("*")]
        names = [str(path.relative_to(self.place)) for path in found]
        caches = re.compile(r"home/\.(cache|config)(/matplotlib.*)?|tmp/torchinductor_.*")
        return [name for name in names if not caches.fullmatch(name)]

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal, and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            self._output.close()
