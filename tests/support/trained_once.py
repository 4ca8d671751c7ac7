"""Runs that are trained once: of settings that were trained before a run is a copy."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from snella.cli.main import main
from snella.config.recipe import read_recipe, to_yaml


class TrainedOnce:
    """Does what `main` does with `train --recipe FILE --out FOLDER --resume`, and keeps the runs that it has made."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._kept: dict[str, tuple[Path, Path]] = {}  # settings -> the folder trained in, its copy as it was then

    def __call__(self, command: Sequence[str]) -> int:
        recipe, folder = command[2], Path(command[4])
        if folder.exists():  # there is something to go on with
            return main(list(command))
        settings = to_yaml(read_recipe(recipe).changed(out=None))
        if settings in self._kept:
            first, copy = self._kept[settings]
            shutil.copytree(copy, folder)
            for file in (folder / "config.yaml", folder / "summary.json"):
                file.write_text(file.read_text().replace(str(first), str(folder)))
            return 0
        code = main(list(command))
        if code == 0:
            copy = self._place / str(len(self._kept))
            shutil.copytree(folder, copy)
            self._kept[settings] = folder, copy
        return code
