"""The console script `snella`: the command line without the wait for torch.

`import snella` registers the method with PEFT, and so loads PEFT and torch, which takes seconds. Help and wrong flags
need neither. So the package stands here without its `__init__` having run, and the command line loads what a command
needs inside it: what wraps a model imports `snella.tuner`, which registers. This module is outside the package because
importing a part of a package runs its `__init__`.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec


def main() -> int:
    """Run the command line in `sys.argv` and return its exit code, as `snella.cli.main.main`."""
    spec = find_spec("snella")
    assert spec is not None  # it is installed with this module
    sys.modules.setdefault("snella", module_from_spec(spec))
    from snella.cli.main import main as run

    return run()
