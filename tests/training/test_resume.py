"""A run that was stopped anywhere, and resumed, ends as one that was not: to the bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from safetensors.torch import load_file

from snella.errors import UserError
from snella.training.checkpoint import checkpoints, newest_checkpoint
from snella.training.loop import FitResult, Interrupted
from snella.training.tuned_weights import tuned_state
from support import toy
from support.toy import EVERY_STEP, SETTINGS, Classification, Net, interrupt_at, train

Whole = tuple[Path, Net, FitResult]
DEATHS = (2, 4, 9)  # steps in the writing of whose checkpoint a process dies


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums over several threads differ in their last bits from one process to the next."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, *train(folder)


def rows(path: Path) -> list[dict]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in found]


def assert_same_run(folder: Path, model: Net, result: FitResult, whole: Whole) -> None:
    reference_folder, reference_model, reference_result = whole
    reference = tuned_state(reference_model)
    assert tuned_state(model).keys() == reference.keys()
    assert all(torch.equal(value, reference[name]) for name, value in tuned_state(model).items())
    apart = ("seconds", "peak_memory_bytes", "last")
    assert {k: v for k, v in vars(result).items() if k not in apart} == {
        k: v for k, v in vars(reference_result).items() if k not in apart
    }
    assert (result.last is None) == (reference_result.last is None)
    for name, value in (reference_result.last or {}).items():
        assert torch.equal((result.last or {})[name], value), name
    for name in ("metrics.jsonl", "allocation.jsonl"):
        assert rows(folder / name) == rows(reference_folder / name)
    last, reference_last = newest_checkpoint(folder), newest_checkpoint(reference_folder)
    assert last is not None
    assert reference_last is not None
    assert last.name == reference_last.name
    for name in ("tuned", "ema", "best", "optimiser", "after_step"):
        tensors = load_file(last / f"{name}.safetensors")
        expected = load_file(reference_last / f"{name}.safetensors")
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in tensors.items()), name


def test_the_reference_run_moves_everything(whole: Whole) -> None:
    folder, model, result = whole
    start, end = tuned_state(Net()), load_file(checkpoints(folder)[-1] / "tuned.safetensors")
    assert all(
        not torch.equal(start[name], end[name]) for name in end if "norm.num" not in name and "norm.r" not in name
    )
    assert len({str(row["kept"]) for row in rows(folder / "allocation.jsonl")}) > 1
    assert result.steps == EVERY_STEP[-1]
    again = load_file(checkpoints(folder)[-1] / "best.safetensors")
    assert all(torch.equal(again[name], value) for name, value in tuned_state(model).items())


def test_the_last_epoch_is_kept_beside_the_best_one(whole: Whole) -> None:
    folder, _, result = whole
    assert (result.last is None) == (result.best_epoch == result.epochs_done)
    ema = load_file(checkpoints(folder)[-1] / "ema.safetensors")
    last = result.last or load_file(checkpoints(folder)[-1] / "best.safetensors")
    assert all(torch.equal(last[name], value) for name, value in ema.items())


def test_a_run_is_repeatable(whole: Whole, tmp_path: Path) -> None:
    assert_same_run(tmp_path, *train(tmp_path), whole)


@pytest.mark.parametrize("step", EVERY_STEP)
def test_interrupted_at_any_step(step: int, whole: Whole, tmp_path: Path) -> None:
    with pytest.raises(Interrupted) as stopped:
        train(tmp_path, at_step=interrupt_at(step))
    assert stopped.value.step == step
    assert stopped.value.checkpoint == tmp_path / "checkpoints" / f"step-{step:08d}"
    assert stopped.value.checkpoint == newest_checkpoint(tmp_path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_same_run(tmp_path, *train(tmp_path, resume=True), whole)


@pytest.mark.parametrize("step", EVERY_STEP)
def test_crashed_at_any_step(step: int, whole: Whole, tmp_path: Path) -> None:
    def crash(now: int) -> None:
        if now == step:
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        train(tmp_path, at_step=crash)
    assert len(rows(tmp_path / "metrics.jsonl")) >= step - 1  # rows after the checkpoint, to be cut off
    assert_same_run(tmp_path, *train(tmp_path, resume=True), whole)


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_interrupted_while_validating(epoch: int, whole: Whole, tmp_path: Path) -> None:
    validations = []

    def tap(_: int, batch: int) -> None:
        validations.append(batch)
        if validations == [0, 1, 2] * (epoch - 1) + [0, 1]:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as stopped:
        train(tmp_path, at_validation=tap)
    assert stopped.value.step == 3 * epoch
    assert len(validations) == 3 * (epoch - 1) + 2  # the third batch was not waited for
    assert_same_run(tmp_path, *train(tmp_path, resume=True), whole)


def test_stopped_again_and_again(whole: Whole, tmp_path: Path) -> None:
    for step in EVERY_STEP:
        with pytest.raises(Interrupted):
            train(tmp_path, resume=True, at_step=interrupt_at(step))
    assert_same_run(tmp_path, *train(tmp_path, resume=True), whole)


@dataclass
class Ended:
    """A training that ended in a process of its own: its folder, the exit code and what it has said."""

    folder: Path
    code: int
    stderr: str


@pytest.fixture(scope="module")
def ended(python: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """By what became of it: interrupted after a step, or killed while it wrote the checkpoint of a step."""
    root = tmp_path_factory.mktemp("ended")
    command = [python, toy.__file__, root, "interrupt-4", *(f"die-{step}" for step in DEATHS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    codes = dict(line.split() for line in run.stdout.splitlines())
    return {job: Ended(root / job, int(code), (root / f"{job}.stderr").read_text()) for job, code in codes.items()}


def test_sigint_in_a_process_of_its_own(ended: dict[str, Ended], whole: Whole, tmp_path: Path) -> None:
    stopped = ended["interrupt-4"]
    assert "Interrupted: interrupted after step 4" in stopped.stderr
    assert "once more" in stopped.stderr
    shutil.copytree(stopped.folder, tmp_path, dirs_exist_ok=True)
    assert_same_run(tmp_path, *train(tmp_path, resume=True), whole)


@pytest.mark.parametrize("step", DEATHS)
def test_killed_in_the_middle_of_writing_a_checkpoint(
    step: int, ended: dict[str, Ended], whole: Whole, tmp_path: Path
) -> None:
    killed = ended[f"die-{step}"]
    assert killed.code == 9
    shutil.copytree(killed.folder, tmp_path, dirs_exist_ok=True)
    written = [path.name for path in (tmp_path / "checkpoints").glob("*")]
    assert written == [] if step == 2 else f"step-{step:08d}" not in written
    assert (tmp_path / ".checkpoint.partial" / "optimiser.safetensors").exists()
    assert_same_run(tmp_path, *train(tmp_path, resume=True), whole)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "metrics.jsonl", "allocation.jsonl"}


def test_the_second_signal_stops_at_once(tmp_path: Path) -> None:
    def twice(step: int) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, at_step=twice)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_closed_terminal_asks_too_but_under_nohup(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    try:
        with pytest.raises(Interrupted) as stopped:
            train(tmp_path, at_step=lambda step: os.kill(os.getpid(), signal.SIGHUP) if step == 2 else None)
        assert stopped.value.signal_number == signal.SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        resumed = train(tmp_path, resume=True, at_step=lambda step: os.kill(os.getpid(), signal.SIGHUP))
        assert_same_run(tmp_path, *resumed, whole)
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_outside_the_main_thread_no_handler_is_set(whole: Whole, tmp_path: Path) -> None:
    outcome: list[tuple[Net, FitResult]] = []
    before = signal.getsignal(signal.SIGINT)

    def at_step(_: int) -> None:
        assert signal.getsignal(signal.SIGINT) is before

    thread = threading.Thread(target=lambda: outcome.append(train(tmp_path, at_step=at_step)))
    thread.start()
    thread.join()
    assert_same_run(tmp_path, *outcome[0], whole)


def test_a_finished_run_gives_its_result_without_training(whole: Whole, tmp_path: Path) -> None:
    _, first = train(tmp_path)

    class NoTask(Classification):
        def loss(self, *args: object) -> NoReturn:
            pytest.fail("it trains")

        def evaluate(self, *args: object) -> NoReturn:
            pytest.fail("it validates")

    model, result = train(tmp_path, resume=True, task=NoTask())
    assert result == first
    assert_same_run(tmp_path, model, result, whole)


def test_resume_with_nothing_to_resume_starts(whole: Whole, tmp_path: Path) -> None:
    assert_same_run(tmp_path, *train(tmp_path, resume=True), whole)


def test_resume_with_other_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path, at_step=interrupt_at(4))
    with pytest.raises(UserError, match=r"step-00000004 was made with lr 0\.02, not 0\.01"):
        train(tmp_path, resume=True, settings=replace(SETTINGS, lr=0.01))
    train(tmp_path, resume=True, settings=replace(SETTINGS, checkpoint_every=5))  # decides no result


def test_resume_with_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path, at_step=interrupt_at(4))
    model = Net()
    model.head = torch.nn.Linear(8, 4)
    with pytest.raises(UserError, match=r"does not fit this model .*head\.weight"):
        train(tmp_path, resume=True, model=model)


def test_a_run_is_not_written_over(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(UserError, match="holds a run already"):
        train(tmp_path)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was interrupted at its fifth step."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Interrupted):
        train(folder, at_step=interrupt_at(5))
    return folder


@pytest.mark.parametrize("name", ["tuned.safetensors", "best.safetensors", "state.json", "checksums.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_a_damaged_checkpoint_is_named(name: str, damage: str, stopped: Path, whole: Whole, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "checkpoints" / "step-00000005" / name
    content = bytearray(path.read_bytes())
    path.unlink()
    if damage != "missing":
        content[len(content) // 2] ^= 4
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"step-00000005 is damaged .* delete that folder"):
        train(tmp_path, resume=True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    assert_same_run(tmp_path, *train(tmp_path, resume=True), whole)
