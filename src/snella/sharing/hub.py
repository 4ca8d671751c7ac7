"""The hub's client, with its errors in a line: names, the token, one commit up, one revision down."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from snella.console import Terminal
from snella.errors import UserError, short_reason

NAME = re.compile(r"(?P<repo>[\w][\w.-]*/[\w][\w.-]*)(@(?P<revision>[\w./-]+))?")  # OWNER/NAME, OWNER/NAME@REVISION
LOGIN = "run: hf auth login, or set HF_TOKEN to a token that may write"
SECONDS = 15.0  # until a question that is not answered is given up


def check_push(name: str) -> None:
    """Refuse, before anything is read or trained, a name that cannot be pushed to, or a machine without a token.

    Raises:
        UserError: with the remedy.
    """
    found = NAME.fullmatch(name)
    if not found or found["revision"] or "--" in name or ".." in name:
        raise UserError(f"{name} is not a name on the hub; give OWNER/NAME, such as my-name/flowers-snella")
    if get_token() is None:
        raise UserError(f"no token for the hub is known here; {LOGIN}")


def upload(folder: Path, name: str, *, private: bool, message: str) -> str:
    """Put the files of a folder into a model repository, which is made if need be, as one commit; return its address.

    A private repository stays one, whatever `private` is.

    Raises:
        UserError: no connection, or the hub refuses it.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    operations = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
    with _told(name, f"nothing is pushed; {LOGIN}, and snella push does it again"), _bars():
        api = HfApi()
        address = api.create_repo(name, private=private or None, exist_ok=True)
        api.create_commit(name, operations, commit_message=message)
    return str(address)


def download(name: str, revision: str | None, patterns: Sequence[str]) -> tuple[Path, str]:
    """Return the folder in the hub's own cache that has these files of a repository, and the revision's hash.

    Without a connection it is what the cache has of that revision.

    Raises:
        UserError: there is no such repository or revision, or it cannot be read.
    """
    remedy = "name a folder, or a run on the hub as OWNER/NAME (hf auth login for private ones)"
    with _told(name, remedy), _bars():
        found = snapshot_download(name, revision=revision, allow_patterns=list(patterns), etag_timeout=SECONDS)
    return Path(found), Path(found).name


@contextlib.contextmanager
def _bars() -> Iterator[None]:
    """Leave the client its progress bars where a person looks at them."""
    if Terminal(stderr=True).is_terminal or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextlib.contextmanager
def _told(name: str, remedy: str) -> Iterator[None]:
    """Turn what the hub, or the way to it, answers into a UserError that names the repository."""
    try:
        yield
    except LocalEntryNotFoundError as error:
        reason = short_reason(error.__cause__ or error)
        raise UserError(f"{name} on the hub cannot be reached ({reason}); {remedy}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        reasons = {401: "the token is not valid", 403: "the token may not do that", 404: "there is no such repository"}
        if type(error).__name__ == "RepositoryNotFoundError":
            reasons[401] = "there is no such repository, or it is private"
        if type(error).__name__ == "RevisionNotFoundError":
            reasons[404] = "there is no such revision"
        reason = reasons.get(status) or short_reason(error)
        raise UserError(f"{name} on the hub: {reason} (status {status}); {remedy}") from error
    except UserError:
        raise
    except Exception as error:  # httpx, the operating system or the store of large files, by the client's version
        raise UserError(f"{name} on the hub cannot be reached ({short_reason(error)}); {remedy}") from error
