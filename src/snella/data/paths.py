"""Paths that a user gave: near names where one does not exist, and the text of a file."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Container, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

from snella.errors import UserError


def composed(text: str) -> str:
    """Return a name in the one form (NFC) in which equal letters are equal: macOS writes é as e and an accent."""
    return unicodedata.normalize("NFC", text)


def is_text(value: str) -> bool:
    """Tell whether a text can be written down: no half characters, no zero byte."""
    return not re.search("[\0\ud800-\udfff]", value)


def same_file_key(path: str) -> object:
    """Return what is equal for all names of one file: links, other cases on systems that tell none apart, a//./b."""
    try:
        found = os.stat(path)
    except OSError:
        return os.path.normpath(path)
    return found.st_dev, found.st_ino


def check_exists(path: str, *, others: tuple[str, ...] = (), remedy: str = "check the path") -> str:
    """Return the path itself, if it exists.

    Args:
        others: names that would do as well, suggested where they are near.
        remedy: what to say where no name is near.

    Raises:
        UserError: names the path and near names beside it, or the first folder of it that is missing.
    """
    if os.path.exists(path):
        return path
    parent, name = os.path.split(os.path.abspath(path))
    if os.path.islink(path):
        raise UserError(f"{path} is a link to {os.readlink(path)}, which does not exist; mend the link")
    if not os.path.isdir(parent):
        while not os.path.isdir(os.path.dirname(parent)):
            parent = os.path.dirname(parent)
        raise UserError(f"{path} does not exist: there is no folder {parent}; {remedy}")
    prefix = os.path.dirname(path)
    beside = {entry.lower(): os.path.join(prefix, entry) for entry in sorted(os.listdir(parent))}
    beside |= {other.lower(): other for other in others}
    near = [beside[match] for match in get_close_matches(name.lower(), list(beside), n=3, cutoff=0.6)]
    if near:
        raise UserError(f"{path} does not exist; did you mean {' or '.join(near)}?")
    raise UserError(f"{path} does not exist; {remedy}")


@contextmanager
def explain_hidden_set(data: str, names: Container[str]) -> Iterator[None]:
    """Add to a refusal inside that the path hides the bundled data of that name, where it does."""
    try:
        yield
    except UserError as error:
        if data in names and os.path.exists(data):
            raise UserError(f"{error}; it hides the bundled data of that name: rename it to have those") from None
        raise


def read_text(path: str) -> str:
    """Return the text of a UTF-8 file, without the byte-order mark that some editors write. Raises UserError."""
    if not os.path.isfile(path):  # to open a pipe would wait for ever
        raise UserError(f"{path} is not a file; put a text file in its place")
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from None
