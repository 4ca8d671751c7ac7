"""Two runs' updates in one backbone, against what is computed by hand and by `snella.combine`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from benchmarks import interference
from benchmarks.interference import WAYS, overlap, put, update_of
from snella import combine
from snella.methods.adapters import merged
from snella.runs.load import load_run
from support.runs import read, train, write_images


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two trainings of one backbone, whose classes are called the other way round."""
    root = tmp_path_factory.mktemp("interference")
    write_images(root / "one")
    shutil.copytree(root / "one" / "c0", root / "other" / "c2")
    shutil.copytree(root / "one" / "c1", root / "other" / "c0")
    shutil.copytree(root / "one" / "c2", root / "other" / "c1")
    for name in ("one", "other"):
        assert train(root / name, root / f"run-{name}", "--start-scale", "2", "--lr", "1e-2") == 0
    return root / "run-one", root / "run-other"


def test_alone_it_is_the_runs_own_and_the_files_have_all(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert interference.main([*map(str, runs), "--out", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["top1"].keys() == {"alone", *WAYS}
    assert found["top1"]["alone"] == [pytest.approx(read(run / "summary.json")["test"]["top1"]) for run in runs]
    assert "by sign, 0.5" in capsys.readouterr().out


@pytest.mark.parametrize("way", WAYS)
def test_the_weights_are_those_of_combine(way: str, runs: tuple[Path, Path]) -> None:
    one, other = map(load_run, runs)
    updates = [update_of(run) for run in (one, other)]
    model = load_run(runs[0]).model
    assert isinstance(model, PeftModel)
    model.load_adapter(str(runs[1] / "adapter"), "other")
    factor = float(way.rpartition(" ")[2])
    expected = combine(
        model, ["default", "other"], [factor] * 2, modules_of="default", by_sign=way.startswith("by sign")
    ).state_dict()

    plain = merged("snella", one.model)
    put(plain, updates[0].weights, [update.deltas for update in updates], way)
    found = plain.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name])


def test_the_overlap_by_hand() -> None:
    one = {"a": torch.tensor([[1.0, 0.0], [2.0, -1.0]]), "b": torch.tensor([0.0, 0.0, 3.0, 1.0])}
    other = {"a": torch.tensor([[1.0, 1.0], [-2.0, -1.0]]), "b": torch.tensor([0.0, 0.0, 0.0, 1.0])}
    weights = {"a": torch.full((2, 2), 2.0), "b": torch.zeros(4)}
    found = overlap(one, other, weights)
    assert found.kept == (5 / 8, 5 / 8)
    assert found.both == 4 / 8
    assert found.agreeing == 3 / 4
    assert found.cosine == pytest.approx((1 - 4 + 1 + 1) / (16 * 8) ** 0.5)
    assert found.sizes == (pytest.approx(1.0), pytest.approx(8**0.5 / 4))


def test_what_cannot_be_joined_is_refused(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_images(tmp_path / "data")
    for flags, said in ((["--seed", "1"], "two backbones"), (["--method", "linear"], "no updates beside its weights")):
        run = tmp_path / flags[1]
        assert train(data, run, *flags, "--epochs", "1") == 0
        assert interference.main([str(run), str(runs[0])]) == 2
        assert said in capsys.readouterr().err
