"""Run folders whose files lie: a part is missing, altered or not finite. Each is one line that names it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from snella.cli.main import main
from snella.config.method import METHODS, MethodConfig
from snella.errors import UserError
from snella.methods.adapters import load_adapter, save_adapter, wrap
from support.runs import train, write_images
from support.vits import tiny_vit


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images", classes=2, count=6)


@pytest.fixture(scope="module")
def runs(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The finished run of a method, trained when it is first asked for."""
    folder = tmp_path_factory.mktemp("runs")

    def run_of(method: str) -> Path:
        if not (folder / method).exists():
            assert train(images, folder / method, "--method", method, "--epochs", "1") == 0
        return folder / method

    return run_of


@pytest.fixture
def run(runs: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs("snella"), tmp_path / "run"))


def tensors_of(run: Path) -> Path:
    (file,) = (run / "adapter").glob("*.safetensors")
    return file


def changed(run: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """Change the tensors of an adapter, as a run has it that was made before there were checksums."""
    file = tensors_of(run)
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})
    (run / "adapter" / "checksums.json").unlink(missing_ok=True)
    return file


def refused(run: Path, capsys: pytest.CaptureFixture[str], *commands: str) -> str:
    """Return what all of the commands that load a run say, a line each."""
    out = run.parent / "merged"
    lines = set()
    for command in commands or ("predict", "evaluate", "merge"):
        capsys.readouterr()
        assert main([command, str(run), *(("--out", str(out)) if command == "merge" else ())]) == 2
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        lines.add(said.err.splitlines()[-1])
    assert not out.exists()
    (line,) = lines
    assert line.startswith("snella: ")
    assert len(line) < 500
    return line


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_that_lacks_tensors_or_has_others_is_no_base_model(method: str, tmp_path: Path) -> None:
    settings = MethodConfig(name=method, r=4, heads=2)
    save_adapter(method, wrap(tiny_vit(), settings, total_step=20), tmp_path)
    load_adapter(method, tiny_vit(), tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    whole = load_file(file)
    names = sorted(whole)
    for lost in (names[:1], names[-1:], names):
        save_file({name: value for name, value in whole.items() if name not in lost}, file, metadata={"format": "pt"})
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        with pytest.raises(UserError, match=re.escape(f"({file.name} lacks {lost[0]}{more})")):
            load_adapter(method, tiny_vit(), tmp_path)
    save_file(whole | {"unknown": torch.zeros(1)}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"{file.name} has, without a place in the model, .*unknown"):
        load_adapter(method, tiny_vit(), tmp_path)


def test_a_run_whose_adapter_lacks_tensors_predicts_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = changed(run, lambda state: [state.pop(name) for name in list(state) if "snella_" in name])
    assert f"({file.name} lacks base_model.model.blocks.0.attn.proj.snella_A and " in refused(run, capsys)


@pytest.mark.parametrize("method", ["snella", "full"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(
    method: str, value: float, runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(runs(method), tmp_path / "run"))
    name = next(name for name in load_file(tensors_of(run)) if "head" in name and "bias" in name)
    file = changed(run, lambda state: state[name].fill_(value))
    line = refused(run, capsys)
    assert f"{file}: {name} has values that are not finite" in line


def test_a_base_that_is_not_finite_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = load_file(run / "base.safetensors")
    name = next(iter(state))
    save_file(state | {name: state[name] * torch.nan}, run / "base.safetensors")
    assert f"base.safetensors: {name} has values that are not finite" in refused(run, capsys)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "snella.json"])
def test_a_flipped_bit_is_noticed(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "adapter" / name
    content = path.read_bytes()
    changed_once = (
        content.replace(b"0.5", b"0.7", 1) if name == "snella.json" else content.replace(b'"r": 4', b'"r": 8')
    )
    if name.endswith("safetensors"):
        changed_once = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
    assert changed_once != content
    path.write_bytes(changed_once)
    assert f"{path} was altered: it does not match its checksum" in refused(run, capsys)


def test_a_run_without_checksums_loads_as_before(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "adapter" / "README.md").write_text("my notes")  # for people; no checksum
    assert main(["evaluate", str(run)]) == 0
    (run / "adapter" / "checksums.json").unlink()
    assert main(["evaluate", str(run)]) == 0
    capsys.readouterr()


ODD: tuple[Any, ...] = (None, True, -1, 2**70, 1.5, "x", [], [[]], {}, {"a": [1]})


def test_values_of_other_types_are_refused_or_do_not_matter(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "adapter/snella.json"
    (run / "adapter" / "checksums.json").unlink()
    good = json.loads((run / name).read_text())
    places = [(key,) for key in good] + [
        (key, inner) for key in good if isinstance(good[key], dict) for inner in good[key]
    ]
    for number, place in enumerate(places):
        value = ODD[number % len(ODD)]
        spoilt = json.loads(json.dumps(good))
        inner = spoilt if len(place) == 1 else spoilt[place[0]]
        inner[place[-1]] = value
        (run / name).write_text(json.dumps(spoilt))
        capsys.readouterr()
        code = main(["evaluate", str(run)])
        said = capsys.readouterr().err
        assert code in (0, 2), f"{place} = {value}: {said}"
        assert code == 0 or said.splitlines()[-1].startswith("snella: ")


def test_a_type_is_named_with_its_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "adapter" / "snella.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps({**good, "backbone": {**good["backbone"], "image_size": "32"}}))
    assert f'{path}: backbone.image_size is "32", and should be a whole number or null' in refused(run, capsys)


def test_a_model_that_gives_what_is_not_finite_predicts_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights that are finite, and so large that their products are not."""
    changed(run, lambda state: [state[name].fill_(3e38) for name in state if "head.weight" in name])
    line = refused(run, capsys, "predict")
    assert "what the model gives is not finite; its training has diverged" in line
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 0
    assert json.loads((run / "evaluation" / "test.json").read_text())["metrics"]["loss"] is None


def test_a_run_that_diverges_keeps_its_best_epoch_and_goes_on(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    flags = ("--epochs", "4", "--lr", "3e30", "--min-lr", "0", "--warmup", "0.95")
    assert train(images, run, *flags) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    found = re.fullmatch(r"snella: (diverged: .* not finite|the loss is \w+) at step [23] with learning rate .*", said)
    assert found
    assert f"the best epoch before, 1, is in {run / 'adapter'}; --resume --lr 3e+29 goes on from step 1" in said
    assert main(["predict", str(run)]) == 0
    assert main(["merge", str(run), "--out", str(tmp_path / "merged")]) == 0
    capsys.readouterr()
    assert train(images, run, *flags, "--resume") == 2
    assert "snella: diverged: at step " in capsys.readouterr().err
    assert main(["train", "--out", str(run), "--resume", "--lr", "0.003"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert [found["lr"] for found in summary["diverged"]] == [3e30]
    assert main(["train", "--out", str(run), "--resume"]) == 0  # it is finished
