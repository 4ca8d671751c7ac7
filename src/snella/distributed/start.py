"""Whether all processes start the same training, asked before its first step."""

from __future__ import annotations

from collections.abc import Mapping

from snella.distributed import world
from snella.errors import UserError, cut

REMEDY = "start all of them with the same command, packages and data"


def check_same_start(facts: Mapping[str, str]) -> None:
    """Refuse to train where a process has other facts (name -> value) than the first; all of them end.

    Raises:
        UserError: names the process, the fact and both values.
    """
    found = world.gathered(dict(facts))
    for number, known in enumerate(found):
        for name, value in found[0].items():
            if known.get(name) != value:
                theirs, ours = (cut(text, 60) for text in (known.get(name, "nothing"), value))
                raise UserError(f"process {number} has {name} {theirs}, and process 0 has {ours}; {REMEDY}")
