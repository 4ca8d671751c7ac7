"""Fetch the source of the installed PEFT and run its tests with SNELLA in their matrices.

    python tests/peft_suite/run.py FOLDER [PYTEST OPTION ...]    FOLDER: where PEFT's source is put

No hub is asked: the models that the tests load are made here, tiny and random. Left out are files whose tests name
other methods' classes themselves (test_low_level_api.py, test_tuners_utils.py, test_initialization.py, those of one
method), and those that want GPUs, quantised models or data of the hub.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import peft

SUITE = (
    "test_custom_models.py",
    "test_decoder_models.py",
    "test_encoder_decoder_models.py",
    "test_feature_extraction_models.py",
    "test_seq_classifier.py",
    "test_token_classification_qa.py",
)


def source_of_peft(folder: Path) -> Path:
    """Return the folder of the installed PEFT's tests; its source distribution is fetched where it is not there."""
    name = f"peft-{peft.__version__}"
    tests = folder / name / "tests"
    if not tests.exists():
        folder.mkdir(parents=True, exist_ok=True)
        options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--quiet", "--dest", str(folder)]
        command = [sys.executable, "-m", "pip", "download", *options, f"peft=={peft.__version__}"]
        if subprocess.run(command).returncode or not (archive := folder / f"{name}.tar.gz").exists():
            raise SystemExit(f"no source distribution of peft {peft.__version__}: put {name}/tests into {folder}")
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")
    (tests / "__init__.py").touch()  # the distribution leaves it out, and its tests import relatively
    return tests


def main(folder: str, *options: str) -> int:
    """Run the suite and return pytest's exit code."""
    tests = source_of_peft(Path(folder).resolve())
    own = Path(__file__).parents[1]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "peft_suite.plugin",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",
    ]
    chosen = [option for option in options if option.endswith(".py")]
    command += [str(tests / file) for file in chosen or SUITE]
    command += [option for option in options if option not in chosen]
    paths = [str(own), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, env=environment, cwd=tests.parent).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
