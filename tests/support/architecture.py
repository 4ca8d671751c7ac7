"""The house measured from its imports: rooms, floors, arrows, circles, the longest file and function.

    python tests/support/architecture.py       print the figures

A room is a package, or a module that stands at the top. Lazy imports count, and so do those for types alone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "snella"


def room_of(path: Path) -> str:
    """Return the room that a file is in: its package, or its own name at the top."""
    *packages, name = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(packages) if packages or name == "__init__" else name


def modules() -> dict[str, Path]:
    """Return the modules by dotted name; a package is its `__init__`."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = ("snella", *path.relative_to(SOURCE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_by(path: Path, known: dict[str, Path]) -> Iterator[Path]:
    """Yield the files of the package that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else node.module for name in names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (known[name] for name in names if name in known)


def arrows() -> dict[str, dict[str, set[str]]]:
    """Return room -> room that it imports -> the files that do, without the faces of packages at the top."""
    known, found = modules(), dict[str, dict[str, set[str]]]()
    for path in known.values():
        room = room_of(path)
        found.setdefault(room, {})
        for other in imported_by(path, known):
            if room_of(other) != room and room_of(other):
                found[room].setdefault(room_of(other), set()).add(path.relative_to(SOURCE).as_posix())
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the sets of nodes that reach each other, of two or more."""
    reached = {node: _reached(graph, node) for node in graph}
    groups = {tuple(sorted(other for other in reached[node] if node in reached[other])) for node in graph}
    return sorted(list(group) for group in groups if len(group) > 1)


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    seen, waiting = {start}, [start]
    while waiting:
        for other in graph.get(waiting.pop(), set()) - seen:
            seen.add(other)
            waiting.append(other)
    return seen


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """Return the floor of each room: 1, or one above the highest that it imports. There must be no circle."""
    found: dict[str, int] = {}

    def floor(room: str) -> int:
        if room not in found:
            found[room] = 1 + max((floor(other) for other in graph[room]), default=0)
        return found[room]

    for room in graph:
        floor(room)
    return found


@dataclass(frozen=True)
class Size:
    """Lines of a file or a function."""

    lines: int
    name: str


def files() -> list[Size]:
    """Return the source files, the longest first."""
    paths = [path for path in SOURCE.rglob("*") if path.suffix in (".py", ".c", ".h")]
    sizes = [Size(len(path.read_text("utf-8").splitlines()), path.relative_to(SOURCE).as_posix()) for path in paths]
    return sorted(sizes, key=lambda size: -size.lines)


def functions() -> list[Size]:
    """Return the functions with their decorators, the longest first."""
    found = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                name = f"{path.relative_to(SOURCE).as_posix()}:{node.name}"
                found.append(Size(node.end_lineno - first + 1, name))
    return sorted(found, key=lambda size: -size.lines)


def folders() -> list[Size]:
    """Return the folders by the number of source files side by side, the fullest first."""
    places = [SOURCE, *(path for path in SOURCE.rglob("*") if path.is_dir() and path.name != "__pycache__")]
    sizes = [
        Size(sum(p.suffix in (".py", ".c", ".h") for p in place.iterdir()), place.relative_to(SOURCE).as_posix())
        for place in places
    ]
    return sorted(sizes, key=lambda size: -size.lines)


def main() -> None:
    """Print the figures of the house."""
    graph = {room: set(others) for room, others in arrows().items()}
    found = circles(graph)
    packages = [room for room in graph if (SOURCE / room.replace(".", "/")).is_dir()]
    print(f"rooms: {len(packages)} packages, and {len(graph) - len(packages)} modules at the top")
    print(f"arrows between rooms: {sum(map(len, graph.values()))}; circles: {len(found)} {found or ''}")
    if not found:
        by_floor = floors(graph)
        print(f"floors: {max(by_floor.values())}")
        for number in range(max(by_floor.values()), 0, -1):
            print(f"  {number}: {', '.join(sorted(room or 'snella' for room in graph if by_floor[room] == number))}")
    for what, sizes in (("file", files()), ("function", functions()), ("folder", folders())):
        print(f"largest {what}s: {', '.join(f'{size.name} {size.lines}' for size in sizes[:3])}")


if __name__ == "__main__":
    main()
