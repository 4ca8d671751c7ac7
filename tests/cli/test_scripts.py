"""What scripts use: --json, --quiet, and completion in a shell."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from snella.cli.completion import script
from snella.cli.main import COMMANDS, main
from support.runs import TINY, read, train, write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scripts") / "run"
    assert train(images, folder, "--method", "linear", "--epochs", "1") == 0
    return folder


def found(args: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> Any:
    """Return the JSON that is all of what a command prints on standard output."""
    capsys.readouterr()
    assert main([*args, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_training_prints_its_summary_and_its_lines_go_to_standard_error(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    args = ["train", "--data", str(images), "--out", str(tmp_path / "run"), *TINY, "--method", "linear", "--json"]
    assert main(args) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"run": str(tmp_path / "run"), **read(tmp_path / "run" / "summary.json")}
    assert "epoch 2/2  val: top1" in shown.err
    assert "top5" not in shown.err  # of three classes
    assert "top5" in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_evaluate_prints_what_its_file_has(run: Path, capsys: pytest.CaptureFixture[str]):
    values = found(["evaluate", str(run)], capsys)
    assert values.items() >= read(run / "evaluation" / "test.json").items()
    assert values["run"] == str(run)


def test_check_prints_each_part(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    values = found(["check", str(run)], capsys)
    assert values["wrong"] == 0
    assert [part["part"] for part in values["parts"]][:3] == ["run", "records", "records"]
    spoilt = Path(shutil.copytree(run, tmp_path / "spoilt"))
    (spoilt / "summary.json").unlink()
    values = found(["check", str(spoilt)], capsys, code=1)
    assert values["wrong"] >= 1
    assert ("run", "wrong") in {(part["part"], part["state"]) for part in values["parts"]}


def test_merge_report_and_data_print_what_they_made_and_found(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    merged = found(["merge", str(run), "--out", str(tmp_path / "merged")], capsys)
    assert merged["out"] == str(tmp_path / "merged")
    assert "timm.create_model" in merged["load"]
    report = found(["report", str(run), "--out", str(tmp_path / "page.html")], capsys)
    assert Path(report["report"]).is_file()
    data = found(["data", str(images)], capsys)
    assert (data["classes"], sum(data["images"].values())) == (["c0", "c1", "c2"], 30)


def test_compare_prints_its_results_and_soup_its_summary(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    own = [
        "--methods",
        "linear",
        "--seeds",
        "0",
        "--lr-grid",
        "1e-3,1e-2",
        "--no-combine",
        "--out",
        str(tmp_path / "c"),
    ]
    flags = ["--data", str(images), *[word for word in TINY if word not in ("--lr", "3e-3")], "--epochs", "1"]
    values = found(["compare", *own, *flags], capsys)
    assert values["failed"] == {}
    assert [row["method"] for row in values["methods"]] == ["linear"]
    runs = [str(path.parent) for path in (tmp_path / "c").rglob("summary.json")]
    soup = found(["soup", *runs, "--out", str(tmp_path / "soup")], capsys)
    assert soup["run"] == str(tmp_path / "soup")
    assert set(soup["test"]) == {"top1", "top5", "balanced_accuracy"}


def test_quiet_prints_errors_alone(run: Path, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    capfd.readouterr()
    for args in (["data", str(images)], ["check", str(run)], ["evaluate", str(run)]):
        assert main([*args, "--quiet"]) == 0
    assert main(["train", "--data", str(images), "--out", str(tmp_path / "run"), *TINY, "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")
    assert main(["evaluate", "nowhere", "--quiet"]) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "nowhere does not exist" in shown.err


def test_an_error_leaves_standard_output_empty(capsys: pytest.CaptureFixture[str]):
    assert main(["evaluate", "nowhere", "--json"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("snella: ")


def test_predict_keeps_json_of_its_own(run: Path, images: Path, capsys: pytest.CaptureFixture[str]):
    capsys.readouterr()
    assert main(["predict", str(run), str(images / "c0" / "0.png"), "--json", "--quiet"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["image"].endswith("0.png")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("snella ev", ["evaluate"]),
        ("snella train --lab", ["--label-smoothing", "--label-column", "--label-pattern", "--label-separator"]),
        ("snella train --method sn", ["snella", "snell"]),
        ("snella compare --see", ["--seeds"]),
        ("snella evaluate --split t", ["train", "test"]),
        ("snella push --pri", ["--private"]),
        ("snella report --q", ["--quiet"]),
    ],
)
def test_bash_completes(line: str, expected: list[str]):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    words = line.split(" ")
    ask = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _snella; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    shown = subprocess.run(
        [bash, "-c", f"{script('bash', COMMANDS)}\n{ask}"], capture_output=True, text=True, check=True
    )
    assert sorted(shown.stdout.split()) == sorted(expected)


def test_every_shell_has_every_command_and_flag_and_another_is_refused(capsys: pytest.CaptureFixture[str]):
    for shell in ("bash", "zsh", "fish"):
        assert main(["--completion", shell]) == 0
        text = capsys.readouterr().out
        assert all(command in text for command in COMMANDS)
        assert "backbone" in text
    assert "-n '__fish_seen_subcommand_from train' -l gate -d" in text
    assert "-xa 'published soft hard none'" in text
    assert main(["--completion", "tcsh"]) == 2
    assert "--completion takes a shell: bash, zsh, fish; not tcsh" in capsys.readouterr().err


def test_completion_and_help_load_no_torch():
    code = (
        "import sys, snella_cli; sys.argv = ['snella', {!r}, 'fish'];"
        "code = snella_cli.main(); sys.exit(code or bool({{'torch', 'huggingface_hub'}} & set(sys.modules)))"
    )
    for flag in ("--completion", "--help"):
        subprocess.run([sys.executable, "-c", code.format(flag)], check=True, capture_output=True, timeout=120)
