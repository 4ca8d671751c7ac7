"""The compiled passes: made once, kept in the user's cache, and done without where they cannot be made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from snella.errors import UserError
from snella.ops import blocks, native

COMPILER = native.library() is not None


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and no library loaded yet."""
    monkeypatch.setenv("SNELLA_CACHE", str(tmp_path / "snella"))
    monkeypatch.setattr(native, "library", native.library.__wrapped__)
    return tmp_path / "snella"


@pytest.mark.skipif(not COMPILER, reason="no C compiler")
def test_made_once_and_then_read_from_the_cache(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.library() is not None
    (made,) = fresh.iterdir()
    assert made.suffix == ".so"
    monkeypatch.setattr(native.subprocess, "run", lambda *a, **k: pytest.fail("compiled again"))
    assert native.library() is not None


@pytest.mark.skipif(not COMPILER, reason="no C compiler")
def test_another_processor_gets_another_library(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.library() is not None
    monkeypatch.setattr(native, "_processor", lambda: "another")
    assert native.library() is not None
    assert len(list(fresh.iterdir())) == 2


@pytest.mark.skipif(not COMPILER, reason="no C compiler")
@pytest.mark.parametrize("changed", [path.name for path in native.SOURCES])
def test_another_source_gets_another_library(
    changed: str, fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert native.library() is not None
    copies = tuple(tmp_path / path.name for path in native.SOURCES)
    for path, copy in zip(native.SOURCES, copies, strict=True):
        copy.write_text(path.read_text() + ("/* changed */\n" if path.name == changed else ""))
    monkeypatch.setattr(native, "SOURCES", copies)
    assert native.library() is not None
    assert len(list(fresh.iterdir())) == 2


@pytest.mark.skipif(not COMPILER, reason="no C compiler")
def test_a_cache_that_cannot_be_written(fresh: Path) -> None:
    fresh.write_text("a file where the folder should be")
    assert native.library() is not None


@pytest.mark.skipif(not COMPILER, reason="no C compiler")
@pytest.mark.parametrize("spoil", ["cut", "empty", "altered", "link", "others may write", "another's"])
def test_a_library_that_is_not_what_was_put_there_is_made_again(
    spoil: str, fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file that was cut short would end every process that loads it (SIGBUS); another user's could do anything."""
    assert native.library() is not None
    (made,) = fresh.iterdir()
    content = made.read_bytes()
    made.unlink()
    if spoil == "link":
        (tmp_path / "elsewhere.so").write_bytes(content)
        made.symlink_to(tmp_path / "elsewhere.so")
    else:
        changed = {"cut": content[: len(content) // 2], "empty": b"", "altered": content[:-1] + b"x"}
        made.write_bytes(changed.get(spoil, content))
        made.chmod(0o666 if spoil == "others may write" else 0o644)
    if spoil == "another's":
        if not os.stat(made).st_uid:
            os.chown(made, 12345, -1)  # root's own are anybody's to run
        monkeypatch.setattr(native.os, "getuid", lambda: 54321)
    compiled = []
    run = native.subprocess.run
    monkeypatch.setattr(native.subprocess, "run", lambda *a, **k: compiled.append(a) or run(*a, **k))
    assert native.library() is not None
    assert len(compiled) == 1
    assert made.read_bytes() == content
    assert not made.is_symlink()
    assert not made.stat().st_mode & 0o022


@pytest.mark.skipif(not COMPILER, reason="no C compiler")
def test_what_is_loaded_stays_whole_when_the_file_in_the_cache_is_cut(fresh: Path) -> None:
    assert native.library() is not None
    loaded = native.library()
    (made,) = fresh.iterdir()
    made.write_bytes(b"")
    assert loaded is not None
    assert loaded.snella_kernel is not None


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", native.library.__wrapped__)
    monkeypatch.setattr(native, "cache_folder", lambda: (_ for _ in ()).throw(UserError("no home folder")))
    assert (native.library() is not None) == COMPILER


def test_without_a_compiler(fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert native.library() is None
    assert native.arithmetic() == "torch operations"
    assert not native.available(torch.randn(2, 3, 4))
    assert not fresh.exists()


@pytest.mark.skipif(os.name != "posix", reason="needs a program that fails")
def test_with_a_compiler_that_fails(fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    assert native.library() is None
    assert not fresh.exists()


def test_what_it_does_not_handle() -> None:
    assert not native.available(torch.randn(2, 3, 4, dtype=torch.float64))
    assert not native.available(torch.randn(native.MAX_HEADS + 1, 3, 4))
    assert not native.available(torch.empty(2, 3, 4, device="meta"))


@pytest.mark.slow
def test_a_large_layer() -> None:
    """16384 x 16384: at most two tensors of the weight's size besides the weight itself."""
    size = 16384
    A, B = torch.randn(2, size, 4), torch.randn(2, size, 4)
    scalars = (torch.tensor(1.0), torch.tensor(1.0), torch.tensor(0.0))
    K = torch.empty(size, size)
    for backend in (native, blocks) if COMPILER else (blocks,):
        lse = backend.kernel_and_stats(A, B, scalars, K, scale=0.1)
        sample = torch.randint(size, (200,))
        D = 0.1 * (torch.cdist(B[0], A[0, sample]) - torch.cdist(B[1], A[1, sample]))
        expected = D + torch.softmax(D, 0)
        torch.testing.assert_close(K[:, sample], expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(lse[sample], torch.logsumexp(D, 0), rtol=1e-4, atol=1e-4)
