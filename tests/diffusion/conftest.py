"""Tiny pipelines in folders, each written once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.tiny_pipelines import WRITERS, Folders


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The folder of a pipeline, written once; not to be changed."""
    root = tmp_path_factory.mktemp("pipelines")

    def folder(name: str) -> Path:
        path = root / name
        return path if path.is_dir() else WRITERS[name](path)

    return folder


@pytest.fixture
def copied(folders: Folders, tmp_path: Path) -> Folders:
    """A copy that may be changed."""
    return lambda name: Path(shutil.copytree(folders(name), tmp_path / name))
