"""The command line: help, flags, and what wrong input comes to: a line, exit code 2, nothing written."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snella.cli.main import COMMANDS, main
from snella.errors import UserError
from snella.tasks import whole_image
from snella.version import __version__
from support.runs import TINY, train, write_images

needs_sighup = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture
def data(images: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(images, tmp_path / "images"))


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What a failed command said: at most two plain lines, nothing on standard output."""
    shown = capsys.readouterr()
    assert shown.err.startswith("snella: ")
    assert 1 <= len(shown.err.splitlines()) <= 2
    assert not set("│╭╰─") & set(shown.err)
    assert "Traceback" not in shown.err
    return shown.err


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"snella {command}" in shown for command in COMMANDS)


def test_no_command_prints_the_help_and_fails_where_there_are_no_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([]) == 2
    assert "snella train" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_describes_its_flags(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"usage: snella {command}" in capsys.readouterr().out


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"snella {__version__}\n"


def test_the_exit_code_reaches_the_shell():
    command = [sys.executable, "-m", "snella", "trian"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert shown.returncode == 2
    assert shown.stderr.startswith("snella: unknown command trian; did you mean train?")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("trian", "unknown command trian; did you mean train?"),
        ("train --lrr 3", "unknown flag --lrr; did you mean --lr?"),
        ("train --no-pretraind", "did you mean --no-pretrained?"),
        ("train --method snela", "--method snela is unknown; did you mean snella? (choose from snella, snell,"),
        ("train --method=snela", "did you mean snella?"),
        ("train --lr abc", "'abc' is not a number"),
        ("train --epochs 1.5", "'1.5' is not a whole number"),
        ("train --image-size big", "--image-size"),
        ("train --lr", "'--lr'"),
        ("train extra", "extra"),
        ("train --recipe dmo", "no recipe dmo; did you mean demo?"),
        ("train", "no data: --data"),
        ("train --data x --resume --overwrite", "contradict"),
        ("train --data x --task generate --adapt-convs --target-modules to_q", "--adapt-convs adds convolutions"),
        ("train --data x --target-modules (qkv", "--target-modules (qkv is not a pattern of names: missing )"),
        ("train --data x --target-modules=", "--target-modules has an empty name"),
        ("train --data x --device gpu", "--device gpu is unknown"),
        ("train --data x --r 7", "--r 7 is not divisible by --heads 2; try --r 6"),
        ("train --data x --target-sparsity 1.5", "--target-sparsity 1.5 is outside [0, 1]"),
        ("train --data x --backbone vit_bse_patch16_224", "vit_base_patch16_224"),
        ("train --data x --auto-augment rnd-m9", "rnd-m9"),
        ("train --data x --device cuda:99", "cuda:99"),
        ("train --data x --device cpu --precision fp16", "fp16"),
        ("train --data x --checkpoint none.pth", "none.pth"),
        ("evaluate", "no run folder: snella evaluate RUN"),
        ("evaluate nowhere", "run folder nowhere does not exist"),
        ("evaluate nowhere --split tst", "did you mean test?"),
        ("predict nowhere x.png", "run folder nowhere does not exist"),
        ("predict nowhere --json --csv", "contradict"),
        ("merge nowhere", "--out FOLDER"),
        ("merge nowhere --out m", "run folder nowhere does not exist"),
        ("data", "no data"),
        ("data nowhere", "nowhere does not exist"),
    ],
)
def test_wrong_flags_are_one_line(args, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(args.split()) == 2
    assert expected in said(capsys)
    assert not any(tmp_path.iterdir())


def test_debug_shows_where(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "nowhere", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_fault_of_our_own_is_told_apart(monkeypatch, capsys):
    def fault(args: list[str]) -> int:
        raise KeyError("x\ny")

    monkeypatch.setitem(COMMANDS, "data", fault)
    assert main(["data"]) == 1
    assert "fault in snella: KeyError: 'x\\ny' (--debug shows where)" in said(capsys)
    assert main(["data", "--debug"]) == 1
    assert capsys.readouterr().err.endswith("fault in snella: KeyError: 'x\\ny'\n")


# Data at fault. Each case spoils a good image folder and says what the message must name.
def every_image_unreadable(root: Path) -> str:
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    return "none of the 30 images can be read"


def nothing_there(root: Path) -> str:
    shutil.rmtree(root)
    return "does not exist"


def empty_folder(root: Path) -> str:
    shutil.rmtree(root)
    root.mkdir()
    return "is empty; expected"


def class_without_image(root: Path) -> str:
    for path in (root / "c1").iterdir():
        path.unlink()
    return "c1 holds no image"


def class_without_readable_image(root: Path) -> str:
    for path in (root / "c1").iterdir():
        path.write_bytes(b"no image")
    return "class 'c1' has no readable image"


def one_class(root: Path) -> str:
    shutil.rmtree(root / "c1")
    shutil.rmtree(root / "c2")
    return "one class only"


def label_out_of_range(root: Path) -> str:
    for name in ("train800", "val200", "train800val200", "test"):
        (root / f"{name}.txt").write_text("c0/0.png -1\nc1/0.png 1\n")
    return "-1"


SPOILT = [
    every_image_unreadable,
    nothing_there,
    empty_folder,
    class_without_image,
    class_without_readable_image,
    one_class,
    label_out_of_range,
]


@pytest.mark.parametrize("spoil", SPOILT)
def test_bad_data_is_one_line_before_any_model_is_built(spoil, data, tmp_path, monkeypatch, capsys):
    def build(spec):
        raise AssertionError("a model was built")

    monkeypatch.setattr(whole_image, "build_backbone", build)
    expected = spoil(data)
    assert train(data, tmp_path / "run") == 2
    assert expected in said(capsys)
    assert not (tmp_path / "run").exists()


def test_odd_images_are_left_out_with_a_count_when_training(data, tmp_path, capsys):
    spoil_images(data / "c0")
    assert train(data, tmp_path / "run") == 0
    assert "4 unreadable images left out" in capsys.readouterr().out


def spoil_images(folder: Path) -> list[str]:
    """Four images that cannot be read, and two odd ones that can; returns the names of the four."""
    whole = (folder / "0.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "zero.png").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save(folder / "grey16.png")
    Image.new("CMYK", (40, 40), (0, 200, 0, 0)).save(folder / "cmyk.jpg")
    return ["truncated.png", "zero.png", "text.png", "animated.gif"]


def test_a_wrong_target_lists_the_candidates(images, tmp_path, capsys):
    assert train(images, tmp_path / "run", "--target-modules", "qvk") == 2
    message = said(capsys)
    assert "qvk" in message
    assert "attn.qkv" in message
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run_is_never_touched(images, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    for flags in ([], ["--overwrite"], ["--resume"]):
        assert train(images, tmp_path / "run", *flags) == 2
        assert "is not a run folder" in said(capsys)
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that nobody may write to")
def test_a_read_only_folder_is_one_line(images, capsys):
    assert train(images, "/proc/run") == 2
    assert "cannot write to /proc" in said(capsys)


def test_a_file_in_the_way_is_one_line(images, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert train(images, tmp_path / "file" / "run") == 2
    assert "file" in said(capsys)


def test_a_full_disk_leaves_no_run_folder(images, tmp_path, monkeypatch, capsys):
    replace = os.replace

    def full(source, target):
        if Path(target).name == "config.yaml":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert train(images, tmp_path / "run") == 2
    assert "no space left on device" in said_last(capsys)
    assert not (tmp_path / "run").exists()


def said_last(capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a command that had begun to work, and so to print."""
    error = capsys.readouterr().err
    assert len(error.splitlines()) <= 2
    return error


@pytest.mark.parametrize(
    ("error", "expected", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x/y"), "x/y: the disk is full", 2),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "x: no permission", 2),
        (OSError(errno.EROFS, "Read-only file system", "x"), "x: the file system is read-only", 2),
        (OSError("no route to host"), "no route to host", 2),
        (MemoryError(), "out of memory; try a smaller --batch-size", 2),
        (UserError("that is wrong"), "snella: that is wrong", 2),
        (KeyboardInterrupt(), "stopped; this starts again: snella data 'a b'", 130),
    ],
)
def test_errors_of_the_machine_are_one_line(error, expected, code, monkeypatch, capsys):
    def fail(args: list[str]) -> int:
        raise error

    monkeypatch.setitem(COMMANDS, "data", fail)
    assert main(["data", "a b"]) == code
    assert expected in said(capsys)


def test_ctrl_c_before_training_starts_says_how_to_start_again(images, tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(whole_image, "read_data", interrupted)
    assert train(images, tmp_path / "run") == 130
    message = said(capsys)
    assert f"snella train --data {images} --out {tmp_path / 'run'} {TINY[0]}" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), pytest.param("SIGHUP", 129, marks=needs_sighup)])
def test_a_signal_before_training_starts_is_told_apart(name, code, images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_DFL)  # the tests may run under nohup
    monkeypatch.setattr(whole_image, "read_data", lambda *args, **kwargs: os.kill(os.getpid(), getattr(signal, name)))
    assert train(images, tmp_path / "run") == code
    assert "stopped; this goes on: snella train --data" in said(capsys)


@needs_sighup
def test_nohup_is_respected(images, tmp_path, monkeypatch):
    read_data = whole_image.read_data

    def hung_up(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGHUP)
        return read_data(*args, **kwargs)

    monkeypatch.setattr(whole_image, "read_data", hung_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert train(images, tmp_path / "run", "--epochs", "1") == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_data_shows_counts_and_unreadable_files(data, capsys):
    spoilt = spoil_images(data / "c0")
    assert main(["data", str(data)]) == 0
    shown = capsys.readouterr().out
    assert "3 classes" in shown
    assert all(name in shown for name in spoilt)


def test_data_takes_the_flags_that_choose_a_reading(tmp_path, capsys):
    for folder in ("fruit", "milk"):
        write_images(tmp_path / folder)
    assert main(["data", str(tmp_path)]) == 2
    assert "choose with --classes top" in capsys.readouterr().err
    assert main(["data", str(tmp_path), "--classes", "top"]) == 0
    assert "image folder, 2 classes" in capsys.readouterr().out
    assert main(["data", str(tmp_path), "--classes", "top", "--task", "segment"]) == 2
    assert "--classes is read with --task classify or multilabel or regress or generate only" in capsys.readouterr().err
