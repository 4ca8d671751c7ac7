"""`snella push RUN OWNER/NAME`: a finished run as a model repository of the hub, with its card."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console

from snella.console import Terminal, print_line
from snella.files import write_text
from snella.pages.kept import read_kept
from snella.sharing.card import card, licences
from snella.sharing.hub import check_push, upload
from snella.sharing.package import MODEL_CARD, PICTURES, check_private, stage


def push(
    folder: Path,
    name: str,
    *,
    private: bool = False,
    license: str | None = None,
    data_license: str | None = None,
    console: Console | None = None,
) -> str:
    """Push a run, and return the address of its repository.

    Args:
        folder: of a finished run.
        name: OWNER/NAME; the repository is made if there is none.
        private: whether one that is made is private; else it is as the owner's are.
        license: of the adapter, for the card.
        data_license: of the data, for the card; None: what the data says of itself.

    Raises:
        UserError: the run is not finished, a path of this machine would be pushed, no token, or what the hub says.
    """
    console = console or Terminal()
    check_push(name)
    run = read_kept(folder, None)
    with tempfile.TemporaryDirectory(prefix="snella-push-") as temporary:
        staged = Path(temporary) / "run"
        found = stage(folder, staged)
        shown = [file for file in PICTURES if (staged / file).is_file()]
        write_text(staged / MODEL_CARD, card(run, found, name, licences(run, license, data_license), shown))
        check_private(folder, staged)
        for file in found.elsewhere:
            print_line(console, f"{file} is not pushed; whoever loads {name} needs it too")
        address = upload(staged, name, private=private, message=f"{run.config.method.name} by snella")
    print_line(console, f"pushed to {address}")
    return address
