"""An adapter gives the same under transformers 4 and 5, in two environments: `make test-oldest` names the other one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.crossing import FAMILIES, MAJOR, TARGETS

OTHER = os.environ.get("SNELLA_OTHER_PYTHON", "")  # an interpreter whose transformers is of the other version
pytestmark = pytest.mark.skipif(not OTHER, reason="$SNELLA_OTHER_PYTHON names no other environment's interpreter")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What `check` finds of each family's adapters, by the version that made them."""
    folder = tmp_path_factory.mktemp("crossing")
    four, five = (OTHER, sys.executable) if MAJOR == "5" else (sys.executable, OTHER)
    for python, *commands in ((four, "models", "make"), (five, "make", "check"), (four, "check")):
        call = [python, "-m", "support.crossing", str(folder), *commands]
        done = subprocess.run(call, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stderr[-2000:]
    files = {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}
    assert files.keys() == {"models-4", "make-4", "check-5", "make-5", "check-4"}, "not one transformers 4 and one 5"
    for name in ("models-4", "make-4", "make-5"):
        assert files[name] == dict.fromkeys(FAMILIES), name
    return {"4": files["check-5"], "5": files["check-4"]}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("made_with", ["4", "5"])
def test_an_adapter_gives_what_it_gave_where_it_was_made(
    family: str, made_with: str, found: dict[str, dict[str, Any]]
) -> None:
    differences = found[made_with][family]
    assert isinstance(differences, dict), differences
    assert differences["base"] <= 1e-5  # else the versions differ in the model itself
    for name in TARGETS:
        assert differences[name] <= 1e-5
    assert differences["moved"] > 1e-2
