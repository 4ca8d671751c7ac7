"""The evaluation of a finished run: on its own data and on others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from snella.cli.main import main
from support.runs import read


def test_evaluate_gives_the_numbers_of_the_summary(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(trained), "--device", "cpu"]) == 0
    report, summary = read(trained / "evaluation" / "test.json"), read(trained / "summary.json")
    assert {name: report["metrics"][name] for name in summary["test"]} == pytest.approx(summary["test"])
    assert [row["name"] for row in report["classes"]] == ["c0", "c1", "c2"]
    assert sum(map(sum, report["confusion"])) == sum(row["count"] for row in report["classes"])
    assert (trained / "evaluation" / "test.png").is_file()
    assert "by class" in capsys.readouterr().out


def test_evaluate_on_other_data_matches_classes_by_name(
    snella_run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(images / "c2", other / "c2")
    shutil.copytree(images / "c1", other / "c1")
    assert main(["evaluate", str(snella_run), "--data", str(other), "--device", "cpu"]) == 0
    report = read(snella_run / "evaluation" / "other.json")
    assert [row["count"] for row in report["classes"]] == [0, 10, 10]
    (other / "c1").rename(other / "zebra")
    assert main(["evaluate", str(snella_run), "--data", str(other)]) == 2
    assert "zebra" in capsys.readouterr().err


def test_evaluate_on_other_data_leaves_the_runs_own_evaluation(snella_run: Path, images: Path, tmp_path: Path) -> None:
    assert main(["evaluate", str(snella_run), "--device", "cpu"]) == 0
    own = (snella_run / "evaluation" / "test.json").read_text()
    for name in ("test", "site.v1", "site.v2"):
        other = tmp_path / name
        shutil.copytree(images, other)
        assert main(["evaluate", str(snella_run), "--data", str(other), "--device", "cpu"]) == 0
    assert (snella_run / "evaluation" / "test.json").read_text() == own
    for name in ("data-test", "site.v1", "site.v2"):
        assert read(snella_run / "evaluation" / f"{name}.json")["data"] == str(tmp_path / name.removeprefix("data-"))


def test_evaluate_where_the_precision_cannot_be_used(
    images: Path, spoilable: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = spoilable / "config.yaml"
    config.write_text(config.read_text().replace("\nprecision: fp32", "\nprecision: fp16"))
    assert main(["evaluate", str(spoilable), "--device", "cpu"]) == 0
    assert "fp16, in which it was trained, cannot be used here; evaluated in fp32" in capsys.readouterr().out
