"""The fenced snippets of README and docs."""

from __future__ import annotations

import re
import shlex
from itertools import takewhile


def snippets(language: str, text: str) -> list[str]:
    """Return the code of the text's fenced blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def shell_lines(text: str) -> list[list[str]]:
    """Return the words of each command in the text's shell snippets, without comments and where its output goes."""
    lines = [line for snippet in snippets("bash", text) for line in snippet.replace("\\\n", " ").splitlines()]
    split = [shlex.split(line, comments=True) for line in lines]
    return [list(takewhile(lambda word: word not in (">", "|"), words)) for words in split if words]


def commands(text: str) -> list[list[str]]:
    """Return the snella commands of the text's shell snippets, without the program's name."""
    return [words[1:] for words in shell_lines(text) if words[0] == "snella"]
