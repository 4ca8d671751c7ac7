"""What a row of a table of layouts is, and how data are listed by the first row that recognises them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from snella.data.folders.choices import NO_CHOICE, Choices
from snella.data.images import is_image
from snella.data.paths import check_exists, explain_hidden_set
from snella.errors import UserError, short_reason

Listed = TypeVar("Listed", covariant=True)


@dataclass(frozen=True)
class Layout(Generic[Listed]):
    """One row: how data of a layout are recognised, and what lists them.

    Args:
        name: how refusals offer it, after "give".
        recognises: whether a path (its tilde expanded) or a name is of this layout. No image is opened.
        list: the listing of such a path or name; the seed is for splits that the layout itself draws, the choices
            say which of several readings is meant.
        bundled: `name` is a set that an installed package carries.
        any_folder: lists a folder that no row recognises too, or says what it lacks; one row of a table.
    """

    name: str
    recognises: Callable[[str], bool]
    list: Callable[[str, int, Choices], Listed]
    bundled: bool = False
    any_folder: bool = False


Table = tuple[Layout[Listed], ...]


class ListSet(Protocol[Listed]):
    """A bundled set's listing, by its name."""

    def __call__(self, name: str, /, *, seed: int) -> Listed: ...


def at_path(
    name: str, recognises: Callable[[str], bool], list_path: Callable[[str], Listed], *, any_folder: bool = False
) -> Layout[Listed]:
    """Return the row of a file or folder, whose listing draws nothing and can be read in one way."""
    return Layout(name, recognises, lambda path, seed, choices: list_path(path), any_folder=any_folder)


def with_choices(
    name: str,
    recognises: Callable[[str], bool],
    list_path: Callable[[str, Choices], Listed],
    *,
    any_folder: bool = False,
) -> Layout[Listed]:
    """Return the row of a file or folder that may have several readings."""
    return Layout(name, recognises, lambda path, seed, choices: list_path(path, choices), any_folder=any_folder)


def bundled_set(name: str, list_set: ListSet[Listed]) -> Layout[Listed]:
    """Return the row of a set that an installed package carries."""
    return Layout(
        name,
        lambda data: data == name and not os.path.exists(data),
        lambda data, seed, choices: list_set(data, seed=seed),
        bundled=True,
    )


def below_prefix(prefix: str, list_name: Callable[[str], Listed]) -> Layout[Listed]:
    """Return the row of the data sets `PREFIX/NAME`; the listing is given NAME."""

    def list_below(data: str, seed: int, choices: Choices) -> Listed:
        name = data.partition("/")[2]
        if not name:
            raise UserError(f"{data} names no data set; write {prefix}/NAME")
        return list_name(name)

    return Layout(
        f"{prefix}/NAME",
        lambda data: data.partition("/")[0].lower() == prefix and "/" in data and not os.path.exists(data),
        list_below,
    )


def recognised(table: Table[Listed], data: str) -> bool:
    """Tell whether a row recognises data for certain. No image is opened."""
    path = os.path.expanduser(data)
    return any(layout.recognises(path) for layout in table)


def bundled_names(table: Table[Listed]) -> tuple[str, ...]:
    """Return the names of a table's bundled sets."""
    return tuple(layout.name for layout in table if layout.bundled)


def list_data(table: Table[Listed], data: str, *, seed: int, holder: str, choices: Choices = NO_CHOICE) -> Listed:
    """List data by the first row that recognises them, a folder that none does by the row of any folder.

    Args:
        holder: the folder to give in place of a single image, in words.
        choices: which reading is meant, where there are several.

    Raises:
        UserError: data of no layout of the table, with those that there are; whatever the layout refuses.
    """
    path = os.path.expanduser(data)
    try:
        with explain_hidden_set(data, bundled_names(table)):
            layout = next((layout for layout in table if layout.recognises(path)), None)
            if layout is None and os.path.isdir(path):
                layout = next((layout for layout in table if layout.any_folder), None)
            if layout is None:
                raise _no_layout(table, path, holder)
            return layout.list(path, seed, choices)
    except OSError as error:
        raise UserError(f"{error.filename or data} cannot be read: {short_reason(error)}; check it") from None


def _no_layout(table: Table[Listed], path: str, holder: str) -> UserError:
    """Return the refusal of a path that is missing, or a file of no layout. Raises the first itself."""
    usual_first = sorted(table, key=lambda layout: not layout.any_folder)
    names = [layout.name for layout in usual_first]
    remedy = f"give {', '.join(names[:-1])}, or {names[-1]}"
    check_exists(path, others=bundled_names(table), remedy=remedy)
    if is_image(os.path.basename(path)):
        return UserError(f"{path} is a single image; give {holder}")
    if path.lower().endswith((".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")):
        return UserError(f"{path} is an archive; unpack it and give the folder")
    return UserError(f"{path} is not data of a known layout; {remedy}")
