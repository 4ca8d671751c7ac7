"""Files that installed packages carry, found without importing the packages."""

from __future__ import annotations

import os
from importlib.util import find_spec

from snella.errors import UserError


def package_file(package: str, *parts: str) -> str | None:
    """Return the path of a file or folder in an installed package; None where either is missing."""
    spec = find_spec(package)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = os.path.join(place, *parts)
        if os.path.exists(path):
            return path
    return None


def data_file(data: str, package: str, install: str, *path: str) -> str:
    """Return the path of a file or folder that a bundled data set is read from; the module that it lies in goes first.

    Raises:
        UserError: the package is missing, or has no such file; with the command that installs it.
    """
    found = package_file(*path)
    if found is None:
        raise UserError(f"data {data!r} needs {path[-1]} of the package {package}; install it with: {install}")
    return found
