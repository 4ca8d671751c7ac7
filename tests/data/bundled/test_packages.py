from __future__ import annotations

import sys
from pathlib import Path

from snella.data.bundled.packages import package_file


def test_files_are_found_without_importing(tmp_path: Path, monkeypatch) -> None:
    package = tmp_path / "package_of_files"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "data" / "a.csv").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert package_file("package_of_files", "data", "a.csv") == str(package / "data" / "a.csv")
    assert package_file("package_of_files", "data") == str(package / "data")
    assert package_file("package_of_files", "b.csv") is None
    monkeypatch.setitem(sys.modules, "package_of_files", None)
    assert package_file("package_of_files", "data") is None
    assert package_file("no_such_package_at_all") is None
