"""Files that installed packages carry, found without importing the packages."""

from __future__ import annotations

import os
from importlib.util import find_spec


def package_file(package: str, *parts: str) -> str | None:
    """Return the path of a file or folder in an installed package; None where either is missing."""
    spec = find_spec(package)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = os.path.join(place, *parts)
        if os.path.exists(path):
            return path
    return None
