"""`snella push`: what goes to the hub, what does not, and what its card says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from snella.cli.main import main
from snella.files import check_checksums
from snella.runs.load import load_run
from support.hub import Hub
from support.runs import read, train

NAME = "ann/flowers-snella"


@pytest.fixture
def pushed(run: Path, hub: Hub) -> dict[str, bytes]:
    """The files of a run on the hub."""
    assert main(["push", str(run), NAME, "--license", "apache-2.0", "--data-license", "CC0"]) == 0
    return hub.newest(NAME)


def test_what_is_pushed_is_a_run_with_its_adapter_and_card_and_no_more(pushed: dict[str, bytes], run: Path):
    assert set(pushed) - {".gitattributes"} == {
        *("README.md", "config.yaml", "summary.json", "metrics.jsonl", "allocation.jsonl", "start.json"),
        *("allocation.png", "curves.png", "base.safetensors"),
        *(f"adapter/{path.name}" for path in (run / "adapter").iterdir()),
    }
    (weights,) = (run / "adapter").glob("*.safetensors")
    assert pushed[f"adapter/{weights.name}"] == weights.read_bytes()


def test_nothing_pushed_names_a_path_of_this_machine_or_an_image(pushed: dict[str, bytes], run: Path, images: Path):
    assert "my private photos" in (run / "config.yaml").read_text()
    texts = {name: content.decode() for name, content in pushed.items() if not name.endswith((".png", ".safetensors"))}
    private = [str(images), str(run), str(Path.home()) + os.sep, "c0/", '.png"', os.getcwd()]
    assert {(name, word) for name, text in texts.items() for word in private if word in text} == set()
    assert yaml.safe_load(texts["config.yaml"])["data"] is None
    assert json.loads(texts["start.json"])["entries"] is None


def test_the_checksums_are_those_of_what_is_pushed(pushed: dict[str, bytes], tmp_path: Path):
    for name, content in pushed.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert check_checksums(tmp_path / "adapter", remedy="")


def test_the_card_says_metrics_with_intervals_how_to_load_and_licences(pushed: dict[str, bytes], run: Path):
    text = pushed["README.md"].decode()
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert front["pipeline_tag"] == "image-classification"
    test = read(run / "summary.json")["test"]["top1"]
    row = next(line for line in text.splitlines() if line.startswith("| top-1"))
    value, interval = [cell.strip() for cell in row.split("|")[2:4]]
    assert value == f"{test:.1%}"
    low, high = (float(end.rstrip("%")) / 100 for end in interval.split(" to "))
    assert low <= test + 5e-4
    assert high >= test - 5e-4
    assert "top-5" not in text  # of three classes
    assert "![allocation](allocation.png)" in text
    assert f"snella predict {NAME} IMAGE..." in text
    assert f'from_pretrained(base, "{NAME}", subfolder="adapter")' in text
    assert "- data: CC0" in text
    assert "- backbone: none: it was not pre-trained" in text


def test_the_card_s_snippet_of_peft_gives_the_run_s_model(pushed: dict[str, bytes], hub: Hub, run: Path):
    (code,) = re.findall(r"```python\n(.*?import peft.*?)```", pushed["README.md"].decode(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(names["model"].eval()(images), load_run(run).model(images))


def test_a_repository_is_private_where_it_is_asked_for(run: Path, hub: Hub):
    assert main(["push", str(run), "ann/open"]) == 0
    assert main(["push", str(run), "ann/own", "--private"]) == 0
    assert main(["push", str(run), "ann/own"]) == 0  # again, as another commit
    assert {name: bool(found.private) for name, found in hub.repositories.items()} == {
        "ann/open": False,
        "ann/own": True,
    }


def test_a_training_that_pushes(images: Path, tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]):
    flags = ("--epochs", "1", "--method", "linear", "--push", "ann/trained", "--private", "--json", "--quiet")
    assert train(images, tmp_path / "run", *flags) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["pushed"] == f"{hub.address}/ann/trained"
    assert found["test"] == read(tmp_path / "run" / "summary.json")["test"]
    assert shown.err == ""
    assert hub.repositories["ann/trained"].private


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("flowers", "flowers is not a name on the hub; give OWNER/NAME"),
        ("ann/a/b", "ann/a/b is not a name on the hub"),
        ("stranger/run", "stranger/run on the hub: the token may not do that (status 403)"),
    ],
)
def test_what_cannot_be_pushed_to_is_a_line(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str], name: str, expected: str
):
    assert main(["push", str(run), name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


def test_without_a_token_a_training_says_so_before_it_begins(
    images: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("snella.sharing.hub.get_token", lambda: None)
    assert train(images, tmp_path / "run", "--push", "ann/run") == 2
    assert "no token for the hub is known here; run: hf auth login, or set HF_TOKEN" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert hub.asked == []


def test_a_wrong_token_and_no_connection_are_a_line(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    assert main(["push", str(run), NAME]) == 2
    assert "the token is not valid (status 401)" in capsys.readouterr().err


def test_the_endpoint_is_the_one_of_the_environment(run: Path, hub: Hub):
    """In a process of its own, as a user has it."""
    command = [sys.executable, "-m", "snella", "push", str(run), "ann/elsewhere", "--json"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["pushed"] == f"{hub.address}/ann/elsewhere"
    assert "adapter/snella.json" in hub.newest("ann/elsewhere")
