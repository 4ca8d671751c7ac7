"""A figure is whole or not there."""

import pytest

from snella.errors import UserError
from snella.report import style


def test_a_figure_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "figure.png"
    path.write_text("old")

    class Broken:
        def savefig(self, path, **_):
            path.write_text("half")
            raise OSError("disk full")

    with pytest.raises(UserError, match=r"cannot write .*figure.png: disk full"):
        style.save_figure(Broken(), path)  # pyright: ignore[reportArgumentType]
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"]
