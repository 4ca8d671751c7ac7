"""Who may work in a folder."""

from __future__ import annotations

import filelock
import pytest

from snella.errors import UserError
from snella.runfolder import alone_in


def test_one_at_a_time_and_nothing_is_left(tmp_path):
    for _ in range(2):
        refused = pytest.raises(UserError, match="another training is at work in")
        with alone_in(tmp_path, "training"), refused, alone_in(tmp_path, "training"):
            pass
        assert not any(tmp_path.iterdir())


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
    def no_locks(*args: object, **kwargs: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(filelock.FileLock, "acquire", no_locks)
    reached = []
    with alone_in(tmp_path, "training"), alone_in(tmp_path, "training"):
        reached.append(True)
    assert reached
