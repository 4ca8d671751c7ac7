"""A run that is named on the command line: a folder, or OWNER/NAME on the hub.

    text ─┬─ a folder here ........................................... that folder, whatever the hub has
          ├─ OWNER/NAME, and OWNER is a folder here .................. refused, with both readings
          └─ OWNER/NAME[@REVISION], or hf:OWNER/NAME .. the hub's cache ─ verified ─ a folder in snella's cache

What a command writes beside a run goes into that last folder, so the hub's cache stays as the hub's client left it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from snella.errors import UserError
from snella.files import cache_folder, check_checksums, writing
from snella.runs.folder import ADAPTER, CONFIG
from snella.sharing.hub import NAME, download
from snella.sharing.package import FILES

PREFIX = "hf:"


def run_folder_of(text: str) -> Path:
    """Return the folder of a run that is given as a folder or as OWNER/NAME, which is downloaded.

    Raises:
        UserError: two readings, no such run, no connection and nothing in the cache, or files that were altered.
    """
    found = NAME.fullmatch(text.removeprefix(PREFIX))
    if not found or (not text.startswith(PREFIX) and Path(text).exists()):
        return Path(text)
    owner = text.partition("/")[0]
    if not text.startswith(PREFIX) and Path(owner).exists():
        raise UserError(
            f"{text} has two readings: a folder in {owner}/, where it is not, or a run on the hub; name a folder that "
            f"is there, or write {PREFIX}{text} for the hub's"
        )
    return fetched(found["repo"], found["revision"])


def fetched(name: str, revision: str | None = None) -> Path:
    """Return a folder of snella's cache that holds a run of the hub at one revision, verified.

    Raises:
        UserError: it cannot be had, it is not a run, or a file is not what its checksum says.
    """
    cached, sha = download(name, revision, FILES)
    if not (cached / CONFIG).is_file() or not (cached / ADAPTER).is_dir():
        raise UserError(f"{name} on the hub is not a run of snella: it has no {CONFIG} with an {ADAPTER}/")
    folder = cache_folder() / "hub" / name.replace("/", "--") / sha[:12]
    if not folder.is_dir():
        with writing(folder, shared=True) as partial:
            for path in sorted(cached.rglob("*")):
                if path.is_file():  # a link into the hub's store: a run has files
                    _placed(path.resolve(), partial / path.relative_to(cached))
            if not check_checksums(partial / ADAPTER, remedy=f"{name} on the hub is damaged; push it again"):
                raise UserError(f"{name} on the hub has no checksums for its adapter; push it again by snella push")
    return folder


def _placed(file: Path, place: Path) -> None:
    """Put a file at a place without copying it, where the file systems allow it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)
