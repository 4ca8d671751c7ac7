"""The state of the runs in a folder, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from snella.cli.main import main
from snella.report.state import run_state, show_runs


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name in ("done", "half", "new", "broken"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").write_text("data: photos\nmethod: lora\nepochs: 4\n")
    (tmp_path / "runs" / "broken" / "config.yaml").write_text("nonsense: 1\n")
    rows = [
        f'{{"kind": "val", "epoch": {e}, "step": {e}, "top1": {v}, "loss": 1.0}}\n' for e, v in ((1, 0.5), (2, 0.25))
    ]
    for name in ("done", "half"):
        (tmp_path / "runs" / name / "metrics.jsonl").write_text("".join(rows))
    chosen = '{"selection": {"metric": "loss", "higher_is_better": false}, "val": {"top1": 0.5}}'
    (tmp_path / "runs" / "done" / "summary.json").write_text(chosen)
    return tmp_path / "runs"


def test_a_run_is_done_stopped_or_running(runs):
    assert run_state(runs / "done").state == "done"
    half = run_state(runs / "half")
    assert (half.data, half.method, half.epoch, half.best, half.state) == ("photos", "lora", "2/4", "50.0%", "stopped")
    with FileLock(runs / "half" / ".lock"):
        assert run_state(runs / "half").state == "running"
    assert run_state(runs / "half").state == "stopped"
    assert run_state(runs / "new").epoch == "0/4"


def test_the_metric_of_the_summary_is_shown(runs):
    assert run_state(runs / "done").best == "1.0000"


def test_a_damaged_run_is_one_line_of_the_table(runs):
    assert run_state(runs / "broken").state == f"damaged: snella check {runs / 'broken'}"


def test_snella_alone_shows_the_runs_or_its_help(runs, monkeypatch, capsys, tmp_path):
    (runs / "mine").mkdir()
    (runs / "mine" / "compare.json").touch()
    monkeypatch.chdir(runs.parent)
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert "runs/half" in shown
    assert "runs/mine: a comparison" in shown
    assert not show_runs(tmp_path / "absent")


def test_the_state_needs_no_torch(runs):
    code = "import sys; from pathlib import Path; import importlib.util as u; import snella_cli"
    code += "; sys.modules['snella'] = u.module_from_spec(u.find_spec('snella'))"
    code += "; from snella.report.state import show_runs; show_runs(Path('runs')); print('torch' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=runs.parent, capture_output=True, text=True, check=True, env=_environment()
    )
    assert found.stdout.splitlines()[-1] == "False"


def _environment() -> dict[str, str]:
    import os

    import snella

    source = str(Path(snella.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}
