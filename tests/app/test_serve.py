"""`snella app` as a command: what it refuses, where it listens, how it ends, and that it leaves nothing behind."""

from __future__ import annotations

import json
import signal
import socket
import time
import urllib.error
import urllib.request
import uuid
from importlib.util import find_spec
from pathlib import Path

import pytest

from snella.app import serve
from snella.cli.main import main
from support.served import Served

needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason='no gradio: pip install "snella[app]"')


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    capsys.readouterr()
    assert main(["app", *map(str, args)]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    return said


def test_without_the_package_a_line_says_how_to_get_it(run, monkeypatch, capsys):
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    assert refused(capsys, run) == 'snella: snella app needs the package gradio; run: pip install "snella[app]"\n'


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), "no run folder: snella app RUN"),
        (("nowhere",), "run folder nowhere does not exist"),
        (("nowhere", "--max-upload", "0"), "--max-upload 0 is below 1 MB"),
        (("nowhere", "--port", "70000"), "--port 70000"),
        (("nowhere", "--share"), "unknown flag --share"),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_line(flags, expected, monkeypatch, capsys):
    monkeypatch.setattr(serve, "find_spec", lambda name: True)
    assert expected in refused(capsys, *flags)


@needs_gradio
def test_a_port_that_is_taken_is_named(run, capsys):
    with socket.socket() as taken:
        taken.bind((serve.HERE, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"--port {port} is taken" in refused(capsys, run, "--port", port, "--device", "cpu")


@pytest.fixture(scope="module")
def served(run: Path, tmp_path_factory: pytest.TempPathFactory):
    page = Served(tmp_path_factory.mktemp("served"), run, "--max-upload", 1)
    yield page
    page.stop()


def uploaded(address: str, content: bytes) -> list[str]:
    """Upload a file as a browser does, and return the paths that the page gives it."""
    border = uuid.uuid4().hex
    head = f'--{border}\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{border}--\r\n".encode()
    asked = urllib.request.Request(f"{address}/gradio_api/upload", body)
    asked.add_header("Content-Type", f"multipart/form-data; boundary={border}")
    with urllib.request.urlopen(asked) as answer:
        return json.load(answer)


@needs_gradio
def test_it_listens_here_alone_and_makes_no_link(served):
    port = int(served.address.rpartition(":")[2])
    with urllib.request.urlopen(served.address) as answer:
        page = answer.read().decode()
    assert "gradio.live" not in served.said
    assert 'content="snella"' in page
    listening = {
        line.split()[1]
        for file in ("/proc/net/tcp", "/proc/net/tcp6")
        if Path(file).exists()
        for line in Path(file).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{port:04X}")
    }
    assert listening <= {f"0100007F:{port:04X}"}


@needs_gradio
def test_a_file_above_the_limit_is_not_taken(served):
    (path,) = uploaded(served.address, b"0" * 900_000)
    assert Path(path).is_relative_to(served.place / "tmp")
    with pytest.raises(urllib.error.HTTPError, match="413"):
        uploaded(served.address, b"0" * 1_100_000)


@needs_gradio
@pytest.mark.parametrize("path", ["/gradio_api/file=/etc/hostname", "/gradio_api/file=../said"])
def test_files_of_the_machine_are_not_served(served, path):
    with pytest.raises(urllib.error.HTTPError, match=r"403|404"):
        urllib.request.urlopen(served.address + path)


@needs_gradio
def test_what_is_sent_by_hand_ends_in_a_line_without_a_traceback(served):
    file = {"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}
    body = json.dumps({"data": [[file], True], "fn_index": 0, "session_hash": "a"}).encode()
    asked = urllib.request.Request(
        f"{served.address}/gradio_api/queue/join", body, {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(asked).close()
    deadline = time.monotonic() + 60
    while "hostname" not in served.said and time.monotonic() < deadline:
        time.sleep(0.2)
    (line,) = [line for line in served.said.splitlines() if "hostname" in line]
    assert line.startswith("snella: the page: ")
    assert "Traceback" not in served.said


@needs_gradio
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_in_a_line_and_nothing_is_left(number, code, run, tmp_path):
    page = Served(tmp_path, run)
    uploaded(page.address, b"not an image")
    assert any("a.png" in name for name in page.left())
    assert page.stop(number) == code
    assert page.left() == []
    (at, stopped) = page.said.splitlines()
    assert at.startswith("page at http://127.0.0.1:")
    assert stopped == f"snella: stopped; this starts again: snella app {run} --device cpu"
