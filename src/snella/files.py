"""Files: written whole or not at all, and where they belong. Nothing else in the package writes.

writing ....... a file or a folder that takes its place when it is whole
writing_into .. several files that are moved into a folder together
Records ....... a .jsonl file that grows by a row at a time
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import threading
import zlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snella.errors import REMEDIES, UserError, error_number, short_reason
from snella.json_files import Count, read_json, without_nan

if TYPE_CHECKING:
    from PIL import Image

MAKE_ROOM = "make room or make it writable"
LIMITS = (errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
CHECKSUMS = "checksums.json"  # in a folder of files that belong together: file -> CRC-32


def cache_folder() -> Path:
    """Return $SNELLA_CACHE, else $XDG_CACHE_HOME/snella, else ~/.cache/snella.

    Raises:
        UserError: there is no home folder to put it in.
    """
    own, users = os.environ.get("SNELLA_CACHE"), os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(own).expanduser() if own else Path(users).expanduser() / "snella"
    except RuntimeError:  # a user without HOME and without an entry in the list of users, as in some containers
        raise UserError(f"{own or users} has no home folder; set SNELLA_CACHE to a folder for the cache") from None


def check_writable(folder: Path) -> None:
    """Try the nearest folder that exists: a run that cannot be saved should fail before it trains.

    Raises:
        UserError: nothing can be written there.
    """
    place = folder
    try:
        while not place.exists():
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {place}: {short_reason(error)}; choose another --out") from None


def check_free(folder: str | os.PathLike[str], overwrite: bool) -> Path:
    """Return the folder's path. Raises UserError where it exists and is not to be written into."""
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and (overwrite or not any(folder.iterdir()))):
        raise UserError(f"{folder} exists already; choose another name" + or_overwrite(folder.is_dir()))
    return folder


def refuse_existing(path: Path) -> None:
    """Refuse to write where a file or a folder is: nothing that a user has is replaced unasked. Raises UserError."""
    if os.path.lexists(path):
        raise UserError(f"{path} exists already; choose another name")


def or_overwrite(possible: bool) -> str:
    """Return the end of a message that a thing exists, where it may be replaced."""
    return " or pass overwrite=True" if possible else ""


@contextlib.contextmanager
def failures_of(target: Path, remedy: str = MAKE_ROOM) -> Iterator[None]:
    """Turn a failure to write (disk full, read-only folder) into a UserError that names the target."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and not error_number(error):
            raise
        if error_number(error) in LIMITS:  # more room would not help
            raise UserError(f"cannot write {target}: {REMEDIES[error_number(error)]}") from error
        raise UserError(f"cannot write {target}: {short_reason(error)}; {remedy}") from error


@contextlib.contextmanager
def writing(
    path: Path,
    *,
    shared: bool = False,
    partial: Path | None = None,
    durable: bool = False,
    remedy: str = MAKE_ROOM,
) -> Iterator[Path]:
    """Give a temporary path beside `path`, for a file or a folder; it takes its place when the body ends.

    Whatever stood there before stays until then. A file does not take the place of a folder. A link is replaced, and
    what it points to is left alone.

    Args:
        path: where the file or folder will stand.
        shared: others may write the same file at the same time; each has a temporary path of its own.
        partial: the temporary path, on the same file system, where it is not to stand beside.
        durable: wait until every byte is on the disk itself before the new takes the place of the old.
        remedy: what to do about a failure, for the message.

    Raises:
        UserError: it cannot be written.
    """
    partial = partial or path.with_name(f".{path.name}.partial")
    if shared:
        partial = partial.with_stem(f"{partial.stem}.{os.getpid()}-{threading.get_ident()}")
    _remove(partial)
    try:
        with failures_of(path, remedy):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            open_to_others(partial)
            if durable:
                _sync(partial)
            _put_in_place(partial, path)
    finally:
        _remove(partial)


@contextlib.contextmanager
def writing_into(folder: Path) -> Iterator[Path]:
    """Give a temporary folder whose files are moved into `folder`, which is made if need be, when the body ends.

    Files and folders of the same names are replaced, others stay.

    Raises:
        UserError: it cannot be written.
    """
    with failures_of(folder, "make room or choose another place"):
        place = folder if folder.is_dir() else folder.parent  # on the same file system
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place, prefix=f".{folder.name}-") as temporary:
            yield Path(temporary)
            open_to_others(Path(temporary))
            folder.mkdir(exist_ok=True)
            for file in sorted(Path(temporary).iterdir(), reverse=True):  # MODEL.data before MODEL
                _put_in_place(file, folder / file.name)


def open_to_others(path: Path) -> None:
    """Give a file, or all below a folder, the usual permissions: safetensors writes private files."""
    for file in _files(path):
        file.chmod(usual_permissions())


@lru_cache(maxsize=1)
def usual_permissions() -> int:
    """Return the permissions that this process's new files have (0o644 where the umask is 0o022)."""
    with tempfile.TemporaryDirectory() as folder:  # to be read, the umask would have to be set
        file = Path(folder) / "new"
        file.touch()
        return file.stat().st_mode & 0o666


def clear_leftovers(folder: Path) -> None:
    """Delete what a process that was killed has left half-written in a folder: `writing`'s temporary paths."""
    for path in folder.glob(".*"):
        if path.suffix in (".partial", ".discarded"):
            _remove(path)


def refuse_link(path: Path) -> None:
    """Refuse to write to a link: what it points to is somewhere else. Raises UserError."""
    if path.is_symlink():
        raise UserError(f"{path} is a link, and what it points to would be written to; delete it")


def discard(path: Path, discarded: Path) -> None:
    """Delete a folder; no part of it ever stands under its name, but under the name `discarded`."""
    _remove(discarded)
    os.replace(path, discarded)
    _remove(discarded)


def _put_in_place(new: Path, path: Path) -> None:
    """Rename a file or a folder to `path`, on the same file system, in the place of what stands there.

    No system renames a folder over one that is not empty: the old one is moved aside first, and comes back where the
    new one cannot be put there.
    """
    if not path.is_dir():
        os.replace(new, path)
        return
    if not new.is_dir():  # else a link to a folder would be replaced
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    old = new.with_suffix(".discarded")
    _remove(old)
    os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(old, path)
        raise
    _remove(old)


def _files(path: Path) -> list[Path]:
    """Return a file itself, or all files below a folder; links are left out, since they may point anywhere."""
    return [file for file in (path, *path.rglob("*")) if file.is_file() and not file.is_symlink()]


def _remove(path: Path) -> None:
    """Delete a file or a folder, as far as that can be done; of a link the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file, or all files below a folder, are on the disk itself."""
    for file in _files(path):
        with open(file, "rb+") as opened:
            os.fsync(opened.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a text file; what stood there before stays until the new one is whole."""
    with writing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")  # names of files need not be UTF-8


def write_json(path: Path, value: object) -> None:
    """Write a JSON file as `write_text` does; numbers that are not finite are null in it."""
    write_text(path, json.dumps(without_nan(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def save_picture(picture: Image.Image, path: Path, *, shared: bool = False) -> None:
    """Write a PNG file as `write_text` does; `shared` as in `writing`."""
    with writing(path, shared=shared) as partial:
        picture.save(partial, "PNG")


def write_checksums(folder: Path) -> None:
    """Write the CRC-32 of each file of a folder into it, but of texts for people (.md), which may be edited."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and file.suffix != ".md"]
    write_json(folder / CHECKSUMS, {file.name: checksum(file) for file in files if file.name != CHECKSUMS})


def check_checksums(folder: Path, *, remedy: str) -> bool:
    """Return whether a folder has checksums, after its files were compared with them.

    Raises:
        UserError: a file is missing, cut short or altered; the message names the file and ends with the remedy.
    """
    if not (folder / CHECKSUMS).is_file():
        return False
    for name, expected in read_json(folder / CHECKSUMS, dict[str, Count], remedy=remedy).items():
        file = folder / Path(name).name
        if not file.is_file():
            raise UserError(f"{file} is missing; {remedy}")
        if checksum(file) != expected:
            raise UserError(f"{file} was altered: it does not match its checksum in {CHECKSUMS}; {remedy}")
    return True


def checksum(file: Path) -> int:
    """Return the CRC-32 of a file."""
    total = 0
    with open(file, "rb") as opened:
        while block := opened.read(1 << 20):
            total = zlib.crc32(block, total)
    return total


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Records:
    """A .jsonl file that grows by a row at a time, each on disk (flushed) before the next; `rows` counts them."""

    REMEDY = f"{MAKE_ROOM}, then go on with --resume"

    def __init__(self, path: Path, rows: int = 0) -> None:
        """Go on after the first `rows` rows; what stands behind them (a later, lost part of a run) is cut off."""
        self.path = path
        self.rows = 0
        with failures_of(path, self.REMEDY):
            path.parent.mkdir(parents=True, exist_ok=True)
            end = 0
            with open(path, "a+b") as file:
                file.seek(0)
                for line in file:
                    if self.rows == rows or not line.endswith(b"\n"):
                        break
                    self.rows += 1
                    end += len(line)
                file.truncate(end)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row; numbers that are not finite are null in it."""
        with failures_of(self.path, self.REMEDY), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(without_nan(row), allow_nan=False) + "\n")
            file.flush()
        self.rows += 1

    def sync(self) -> None:
        """Wait until the rows are on the disk itself, as a checkpoint that counts them is."""
        if self.rows:
            with failures_of(self.path, self.REMEDY):
                _sync(self.path)
