"""YAML read within bounds: what is too long, too deep or stands for too much is refused before it is built.

Dates are text: a folder may be called 2024-01-01. Numbers are written in plain digits: 010 and 1:30 are text, and not 8
and 90 as in YAML 1.1. A key that stands twice in a table is an error, not its last value.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

from snella.errors import UserError, short_reason

LONGEST = 200_000  # characters; the longest recipe of the package has 5,000
DEEPEST = 20  # lists and tables inside each other
LARGEST = 50_000  # values, each alias counted as what it stands for


PLAIN = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(?:0|[1-9][0-9]*)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"(?:[-+]?[0-9]+\.[0-9]*(?:[eE][-+][0-9]+)?|\.[0-9]+(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
}


class _Loader(yaml.SafeLoader):
    """YAML's plain values, of which dates and times are text, and tables without double keys."""

    yaml_implicit_resolvers: ClassVar[Any] = {
        first: [(tag, PLAIN.get(tag, pattern)) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise yaml.constructor.ConstructorError(problem=f"{twice} is there twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep=deep)


def read_yaml(text: str) -> Any:
    """Return what YAML holds. Raises UserError, a short line, where it is not YAML or goes beyond the bounds."""
    if len(text) > LONGEST:
        raise UserError(f"{len(text):,} characters are too many for settings (the most is {LONGEST:,})")
    try:
        _check_depth(text)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_size(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise UserError(f"no valid YAML{where}: {short_reason(Exception(problem))}") from None
    except (ValueError, TypeError, AttributeError, OverflowError) as error:  # a number of 5,000 digits, an odd tag
        if isinstance(error, UserError):
            raise
        raise UserError(f"no valid YAML: {short_reason(error)}") from None


def _check_depth(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise UserError(
                f"lists or tables are {DEEPEST} deep in line {event.start_mark.line + 1}; settings are flat"
            )


def _check_size(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node stands for. Raises UserError where they are too many, or it is inside itself."""
    if id(node) in known:
        if not known[id(node)]:
            raise UserError(f"an alias in line {node.start_mark.line + 1} stands for what it is inside of")
        return known[id(node)]
    known[id(node)] = 0  # under way
    inner = node.value if isinstance(node, yaml.CollectionNode) else []
    parts = [part for pair in inner for part in (pair if isinstance(pair, tuple) else (pair,))]
    size = 1 + sum(_check_size(part, known) for part in parts)
    if size > LARGEST:
        raise UserError(f"aliases stand for more than {LARGEST:,} values; write settings out")
    known[id(node)] = size
    return size
