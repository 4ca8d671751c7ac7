"""What is written stands there whole or not at all, with the usual permissions, and errors say what to do."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from snella import files
from snella.errors import UserError
from snella.files import (
    Records,
    cache_folder,
    check_writable,
    failures_of,
    usual_permissions,
    write_json,
    write_text,
    writing,
    writing_into,
)
from snella.json_files import Record, read_rows
from snella.ops import native

LINKS = pytest.mark.skipif(os.name != "posix", reason="links need rights on other systems")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_half(path: Path, error: BaseException) -> None:
    path.write_text("half")
    raise error


# ---- writing


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), writing(path) as partial:
            write_half(partial, error())
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_folders_above_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "deep" / "a", "text")
    assert (tmp_path / "new" / "deep" / "a").read_text() == "text"


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with writing(tmp_path / "weights") as partial:
            partial.mkdir()
            (partial / name).touch()
    assert names(tmp_path / "weights") == ["second"]
    assert names(tmp_path) == ["weights"]


def test_the_old_folder_comes_back_where_the_new_one_cannot_be_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    path.mkdir()
    (path / "old").touch()
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(source).name == ".weights.partial":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", fail)
    refused = pytest.raises(UserError, match=r"cannot write .*weights: no space left on device; make room")
    with refused, writing(path) as partial:
        partial.mkdir()
    assert names(path) == ["old"]
    assert names(tmp_path) == ["weights"]


def test_a_body_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*weights"), writing(tmp_path / "weights"):
        pass
    assert names(tmp_path) == ["weights"]


def test_two_may_write_what_is_shared(tmp_path: Path) -> None:
    path = tmp_path / "a"

    def late() -> None:
        with writing(path, shared=True) as partial:
            partial.write_text("second")

    with writing(path, shared=True) as partial:
        partial.write_text("first")
        other = threading.Thread(target=late)
        other.start()
        other.join()
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_what_is_shared_has_a_path_of_its_own_wherever_it_is_asked_for(tmp_path: Path) -> None:
    aside = tmp_path / ".aside.partial"
    with writing(tmp_path / "a", partial=aside) as partial:
        assert partial == aside
        partial.touch()
    with writing(tmp_path / "b", shared=True, partial=aside) as partial:
        assert partial.parent == tmp_path
        assert partial != aside
        partial.touch()
    assert names(tmp_path) == ["a", "b"]


def test_a_file_takes_no_folders_place(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*mine"), writing(tmp_path / "mine") as partial:
        partial.touch()
    assert (tmp_path / "mine").is_dir()


@LINKS
def test_a_link_is_replaced_and_what_it_points_to_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("theirs")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "theirs").touch()
    for link, target in (("a", "file"), ("b", "folder"), ("c", "folder")):
        (tmp_path / link).symlink_to(tmp_path / target)
    write_text(tmp_path / "a", "ours")
    with writing(tmp_path / "b") as partial:
        partial.mkdir()
        (partial / "ours").touch()
    with pytest.raises(UserError, match=r"cannot write .*c: is a directory"):
        write_text(tmp_path / "c", "a file takes no folder's place, nor that of a link to one")
    assert (tmp_path / "file").read_text() == "theirs"
    assert names(tmp_path / "folder") == ["theirs"]
    assert (tmp_path / "a").read_text() == "ours"
    assert names(tmp_path / "b") == ["ours"]
    assert names(tmp_path) == ["a", "b", "c", "file", "folder"]


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    with writing(tmp_path / "weights") as partial:
        partial.mkdir()
        (partial / "private").touch(mode=0o600)
    assert (tmp_path / "weights" / "private").stat().st_mode & 0o777 == usual_permissions()


@LINKS
def test_permissions_behind_a_link_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "secret").touch(mode=0o600)
    with writing(tmp_path / "weights") as partial:
        partial.mkdir()
        (partial / "link").symlink_to(tmp_path / "secret")
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_what_is_durable_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_sync(number: int) -> None:
        events.append(f"{os.fstat(number).st_size} bytes")
        fsync(number)

    def record_move(source: Path, target: Path) -> None:
        events.append(f"to {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", record_sync)
    monkeypatch.setattr(files.os, "replace", record_move)
    with writing(tmp_path / "weights", durable=True) as partial:
        (partial / "below").mkdir(parents=True)
        (partial / "one").write_bytes(b"1")
        (partial / "below" / "two").write_bytes(b"22")
    assert sorted(events[:2]) == ["1 bytes", "2 bytes"]
    assert events[2:] == ["to weights"]
    events.clear()
    write_text(tmp_path / "text", "not durable")
    assert events == ["to text"]


def test_text_may_hold_names_of_files_that_are_no_unicode(tmp_path: Path) -> None:
    write_text(tmp_path / "a", os.fsdecode(b"caf\xe9"))
    assert (tmp_path / "a").read_bytes() == b"caf\xe9"
    write_json(tmp_path / "b", {"name": "café"})
    assert (tmp_path / "b").read_text(encoding="utf-8") == '{\n  "name": "café"\n}\n'


# ---- writing_into


def test_files_of_the_same_names_are_replaced_and_others_kept(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "part").mkdir(parents=True)
    for name in ("weights", "notes", "part/old"):
        (folder / name).write_text("old")
    with writing_into(folder) as temporary:
        (temporary / "part").mkdir()
        for name in ("weights", "config", "part/new"):
            (temporary / name).write_text("new")
            (temporary / name).chmod(0o600)
        assert (folder / "weights").read_text() == "old"
    assert {name: (folder / name).read_text() for name in ("weights", "notes", "config")} == {
        "weights": "new",
        "notes": "old",
        "config": "new",
    }
    assert names(folder) == ["config", "notes", "part", "weights"]
    assert names(folder / "part") == ["new"]
    assert (folder / "weights").stat().st_mode & 0o777 == usual_permissions()
    assert names(tmp_path) == ["model"]


def test_the_folder_is_made_only_when_its_files_are_whole(tmp_path: Path) -> None:
    with writing_into(tmp_path / "model") as temporary:
        (temporary / "weights").touch()
        assert not (tmp_path / "model").exists()
    assert names(tmp_path / "model") == ["weights"]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("error", [UserError("other logits"), KeyboardInterrupt()])
def test_a_body_that_fails_leaves_nothing_behind(there: bool, error: BaseException, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    if there:
        folder.mkdir()
        (folder / "weights").write_text("old")
    with pytest.raises(type(error)), writing_into(folder) as temporary:
        write_half(temporary / "weights", error)
    assert names(tmp_path) == (["model"] if there else [])
    if there:
        assert names(folder) == ["weights"]
        assert (folder / "weights").read_text() == "old"


# ---- errors


def test_a_failure_to_write_names_target_reason_and_remedy(tmp_path: Path) -> None:
    target = tmp_path / "a"
    with pytest.raises(UserError) as raised, failures_of(target, "sell the car"):
        raise OSError(28, "No space left on device")
    assert str(raised.value) == f"cannot write {target}: no space left on device; sell the car"
    with pytest.raises(UserError) as raised, failures_of(target):  # of a library in Rust
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    assert str(raised.value).startswith(f"cannot write {target}: I/O error: No space left on device")


@pytest.mark.parametrize("error", [ValueError("x"), UserError("y"), KeyboardInterrupt()])
def test_other_errors_pass_through(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as raised, failures_of(tmp_path):
        raise error
    assert raised.value is error


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_writable(tmp_path / "new" / "deep")
    assert names(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to .*file: not a directory; choose another --out"):
        check_writable(tmp_path / "file" / "run")

    def locked(self: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", locked)  # as below a folder that may not be looked into
    with pytest.raises(UserError, match=r"cannot write to .*run: permission denied"):
        check_writable(tmp_path / "run")


# ---- records


def rows_of(path: Path) -> list[dict[str, Any]]:
    return read_rows(path, Record({}), remedy="delete it")


def test_rows_are_added_and_read(tmp_path: Path) -> None:
    records = Records(tmp_path / "run" / "metrics.jsonl")
    assert rows_of(records.path) == []
    rows = [{"step": 1, "name": "é\u2028"}, {"step": 2}]
    for row in rows:
        records.append(row)
    records.sync()
    assert records.rows == 2
    assert rows_of(records.path) == rows
    assert rows_of(tmp_path / "nowhere.jsonl") == []


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    Records(tmp_path / "rows.jsonl").append({"loss": math.nan, "of": [math.inf, 1.5]})
    write_json(tmp_path / "value.json", {"loss": -math.inf})
    assert rows_of(tmp_path / "rows.jsonl") == [{"loss": None, "of": [None, 1.5]}]
    assert json.loads((tmp_path / "value.json").read_text()) == {"loss": None}


def test_rows_behind_those_that_count_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f"{json.dumps({'step': step})}\n" for step in range(5)) + '{"step": 5, "lo')
    whole = Records(path, rows=9)  # a row that was cut short is none
    assert whole.rows == 5
    assert len(rows_of(path)) == 5
    records = Records(path, rows=3)
    assert records.rows == 3
    records.append({"step": "new"})
    assert [row["step"] for row in rows_of(path)] == [0, 1, 2, "new"]
    assert Records(path).rows == 0
    assert rows_of(path) == []


def test_rows_that_cannot_be_written_tell_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*metrics.jsonl: is a directory; .*then go on with --resume"):
        Records(tmp_path / "metrics.jsonl")


# ---- places


def test_the_cache_folder_and_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("SNELLA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == tmp_path / ".cache" / "snella"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "snella"
    monkeypatch.setenv("SNELLA_CACHE", "~/own")
    assert cache_folder() == tmp_path / "own"


def test_a_user_without_a_home_folder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNELLA_CACHE", "~nobody-by-that-name/cache")
    with pytest.raises(UserError, match="has no home folder; set SNELLA_CACHE"):
        cache_folder()


@pytest.mark.skipif(native.library() is None, reason="no C compiler")
def test_the_compiled_passes_are_kept_below_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "theirs"))
    monkeypatch.setenv("SNELLA_CACHE", str(tmp_path / "own"))
    assert native.library.__wrapped__() is not None
    (kept,) = (tmp_path / "own").iterdir()
    assert kept.suffix == ".so"
    assert not (tmp_path / "theirs").exists()


def test_an_import_changes_no_umask(python: str) -> None:
    code = """
import os
before = os.umask(0o027)
import snella, snella.files, snella.runs.folder
assert os.umask(before) == 0o027
assert snella.files.usual_permissions() == 0o666 & ~before
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([python, "-c", code], env=environment, check=True)
