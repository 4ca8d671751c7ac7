"""`snella report` on real runs and on everything that is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from snella.cli.main import main
from snella.console import Terminal
from snella.pages.intervals import of_classes, of_quantities, of_regions
from snella.report.outputs import read_outputs, write_outputs
from support import masked_runs
from support.runs import read, train, write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert train(images, out) == 0
    return out


@pytest.fixture
def spoilable(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def said(capsys: pytest.CaptureFixture[str]) -> str:
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    assert len(shown.err.splitlines()) == 1
    return shown.err


def test_a_training_writes_the_page_last(run):
    text = (run / "report.html").read_text()
    assert f"{read(run / 'summary.json')['test']['top1']:.1%}" in text
    assert '"thumbnails": []' not in text


def test_what_is_kept_of_images_gives_the_metrics_of_the_summary(run):
    summary = read(run / "summary.json")
    for split in ("val", "test"):
        outputs = read_outputs(run, split)
        assert outputs is not None
        assert len(outputs.names) == summary["images"][split]
        found = of_classes(outputs.values["logits"], outputs.values["labels"])(np.ones(len(outputs.names), int))
        assert found == pytest.approx(summary[split], abs=1e-6)
    assert all(
        name.startswith(f"c{label}/") for name, label in zip(outputs.names, outputs.values["labels"], strict=True)
    )


def test_masks_are_kept_as_counts_and_the_worst_are_drawn(tmp_path):
    data = masked_runs.write_pairs(tmp_path / "data", 12)
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run"), *masked_runs.TINY]) == 0
    outputs, summary = read_outputs(tmp_path / "run", "test"), read(tmp_path / "run" / "summary.json")
    assert outputs is not None
    found = of_regions(outputs.values["counts"])(np.ones(len(outputs.names), int))
    assert {name: found[name] for name in summary["test"]} == pytest.approx(summary["test"])
    assert (tmp_path / "run" / "worst.png").is_file()
    assert "Where it is worst" in (tmp_path / "run" / "report.html").read_text()


def test_quantities_are_kept_in_their_units(tmp_path):
    data = write_images(tmp_path / "data")
    rows = [f"{path.relative_to(data)},{i}" for i, path in enumerate(sorted(data.rglob("*.png")))]
    (data / "table.csv").write_text("\n".join(["path,size", *rows]))
    flags = ["--task", "regress", "--target-column", "size"]
    assert train(data / "table.csv", tmp_path / "run", *flags) == 0
    outputs, summary = read_outputs(tmp_path / "run", "test"), read(tmp_path / "run" / "summary.json")
    about = read(tmp_path / "run" / "adapter" / "snella.json")
    assert outputs is not None
    metrics = of_quantities(outputs.values["predicted"], outputs.values["true"], [about["scales"][0]["std"]])
    found = metrics(np.ones(len(outputs.names), int))
    assert {name: found[name] for name in ("mae", "rmse")} == pytest.approx(
        {name: summary["test"][name] for name in ("mae", "rmse")}, rel=1e-5
    )


def test_the_page_goes_where_it_is_asked_to_and_replaces_nothing_there(run, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert main(["report", str(run), "--out", str(out)]) == 0
    assert out.read_text() == (run / "report.html").read_text()  # the same at every call
    assert main(["report", str(run), "--out", str(out)]) == 2
    assert "exists already" in said(capsys)
    assert main(["report", str(run), "--out", str(tmp_path / "page.pdf")]) == 2
    assert "ends in .html" in said(capsys)


def test_where_the_data_has_moved_the_page_has_no_pictures_and_says_so(spoilable, images, tmp_path, capsys):
    config = spoilable / "config.yaml"
    config.write_text(config.read_text().replace(str(images), str(tmp_path / "gone")))
    assert main(["report", str(spoilable)]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("Pictures of the images are left out") == 1
    text = (spoilable / "report.html").read_text()
    assert "Pictures of the images are left out" in text
    assert '"thumbnails": []' in text


def test_evaluate_writes_again_what_is_kept(spoilable, capsys):
    shutil.rmtree(spoilable / "outputs")
    assert main(["report", str(spoilable)]) == 0
    assert "keeps nothing of each image" in (spoilable / "report.html").read_text()
    assert main(["evaluate", str(spoilable), "--device", "cpu"]) == 0
    again = read_outputs(spoilable, "test")
    assert again is not None
    assert main(["report", str(spoilable)]) == 0
    assert "keeps nothing of each image" not in (spoilable / "report.html").read_text()


@pytest.mark.parametrize("broken", [b"", b"no tensors", b"\xff" * 64])
def test_damaged_outputs_are_a_line_with_the_remedy(spoilable, broken, capsys):
    (spoilable / "outputs" / "test.safetensors").write_bytes(broken)
    assert main(["report", str(spoilable)]) == 2
    assert "snella evaluate" in said(capsys)


def test_what_is_not_finite_is_said_and_not_shown(spoilable, capsys):
    outputs = read_outputs(spoilable, "test")
    assert outputs is not None
    logits = torch.from_numpy(outputs.values["logits"])
    logits[0, 0] = torch.nan
    write_outputs(
        spoilable, "test", outputs.names, {"logits": logits, "labels": torch.from_numpy(outputs.values["labels"])}
    )
    assert main(["report", str(spoilable)]) == 0
    text = (spoilable / "report.html").read_text()
    assert "some images of test is not finite" in text
    assert "keeps nothing" not in text


def test_what_is_no_run_is_a_line_with_the_remedy(spoilable, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    for wrong, words in (("absent", "does not exist"), ("folder", "neither a run nor a comparison")):
        assert main(["report", str(tmp_path / wrong)]) == 2
        assert words in said(capsys)
    (spoilable / "summary.json").unlink()
    assert main(["report", str(spoilable)]) == 2
    assert "--resume" in said(capsys)
    (tmp_path / "folder" / "compare.json").write_text("{}")
    assert main(["report", str(tmp_path / "folder")]) == 2
    assert "compare.json is damaged" in said(capsys)
    assert main(["report"]) == 2
    assert "no folder" in said(capsys)


def test_a_page_that_cannot_be_written_does_not_spoil_the_training(images, tmp_path, capsys, monkeypatch):
    import snella.pages.page as page

    monkeypatch.setattr(page, "PAGE", "summary.json/report.html")  # below a file
    assert train(images, tmp_path / "run") == 0
    assert "no report: cannot write" in capsys.readouterr().out
    assert (tmp_path / "run" / "summary.json").is_file()


def test_a_fault_of_the_page_does_not_spoil_the_training(tmp_path, capsys):
    from snella.pages.page import _faults_told

    with _faults_told(tmp_path, Terminal()):
        raise ZeroDivisionError("division by zero")
    out = " ".join(capsys.readouterr().out.split())
    assert f"no report, by a fault in snella (ZeroDivisionError: division by zero); snella report {tmp_path}" in out


def test_outputs_hold_names_of_any_encoding(tmp_path):
    write_outputs(tmp_path, "test", ["a\udcff.png", "<b>"], {"labels": torch.tensor([1, 0])})
    found = read_outputs(tmp_path, "test")
    assert found is not None
    assert found.names == ("a\udcff.png", "<b>")
    assert json.loads(json.dumps(found.values["labels"].tolist())) == [1, 0]
    write_outputs(tmp_path, "test", [], {})
    assert read_outputs(tmp_path, "test") is None


def test_heat_maps_stand_on_the_page_where_they_are_asked_for(run, tmp_path, capsys):
    pytest.importorskip("captum", reason="no captum: pip install 'snella[explain]'")
    title = "What the most confident errors rest on"
    assert title not in (run / "report.html").read_text()
    assert main(["report", str(run), "--explain", "--out", str(tmp_path / "page.html")]) == 0
    assert title in (tmp_path / "page.html").read_text()
    capsys.readouterr()
    (tmp_path / "compare.json").write_text("{}")
    assert main(["report", str(tmp_path), "--explain"]) == 2
    assert "is a comparison; ask for the page of one of its runs" in said(capsys)
