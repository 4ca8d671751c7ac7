"""Completion of commands, flags and choices in a shell: `eval "$(snella --completion bash)"`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from snella.cli import commands
from snella.cli.commands import train_hints
from snella.cli.compare_flags import SET_HERE
from snella.cli.flags import SWITCHES, choices_of
from snella.config.fields import descriptions, flag
from snella.config.schema import TrainConfig, settings
from snella.errors import UserError


@dataclass(frozen=True)
class Word:
    """A flag."""

    flag: str
    text: str  # its first sentence
    choices: tuple[str, ...]
    has_value: bool


def script(shell: str, names: Iterable[str]) -> str:
    """Return what a shell evaluates to complete the command line.

    Args:
        shell: bash, zsh or fish.
        names: of the commands.

    Raises:
        UserError: another shell.
    """
    if shell not in SHELLS:
        raise UserError(f"--completion takes a shell: {', '.join(SHELLS)}; not {shell or 'nothing'}")
    return SHELLS[shell]({name: _words(name) for name in names})


def _words(name: str) -> list[Word]:
    """Return the flags of a command."""
    found: dict[str, Word] = {}
    if name in ("train", "compare"):
        texts = {None: descriptions(TrainConfig)}
        sections = get_type_hints(TrainConfig)
        texts |= {s.section: descriptions(sections[s.section]) for s in settings().values() if s.section}
        own = {n: texts[s.section][s.attribute] for n, s in settings().items()}
        left_out = SET_HERE if name == "compare" else {}
        found = {n: _word(n, hint, own.get(n, "")) for n, hint in train_hints().items() if n not in left_out}
    kind = getattr(commands, name.capitalize())
    if name != "train":
        hints, texts = get_type_hints(kind, include_extras=True), descriptions(kind)
        named = [part.name for part in fields(kind) if "Positional" not in str(kind.__annotations__[part.name])]
        found |= {n: _word(n, hints[n], texts.get(n, "")) for n in named}
    return list(found.values()) + [Word(switch, "", (), False) for switch in SWITCHES if switch[2:] not in found]


def _word(name: str, hint: Any, text: str) -> Word:
    sentence = re.split(r"(?<=[.:;])\s", " ".join(text.split()), maxsplit=1)[0].rstrip(".:;")
    choices = tuple(str(choice) for choice in choices_of(hint) if re.fullmatch(r"[\w.+-]+", str(choice)))
    return Word(flag(name), sentence, choices, hint is not bool)


def _bash(words: dict[str, list[Word]]) -> str:
    """Return a function for bash: the flags of the command, the choices after a flag, else files."""
    lines = ["_snella() {", '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words=""']
    lines += ['  if [ "$COMP_CWORD" -eq 1 ]; then', f'    words="{" ".join(words)} --help --version --completion"']
    lines += ['  elif [ "${word#-}" != "$word" ]; then', '    case "${COMP_WORDS[1]}" in']
    lines += [f'      {name}) words="{" ".join(w.flag for w in own)} --help" ;;' for name, own in words.items()]
    lines += ["    esac", "  else", '    case "${COMP_WORDS[1]} $before" in']
    for name, own in words.items():
        lines += [f'      "{name} {w.flag}") words="{" ".join(w.choices)}" ;;' for w in own if w.choices]
    lines += ["    esac", "  fi", '  COMPREPLY=($(compgen -W "$words" -- "$word"))', "}"]
    return "\n".join([*lines, "complete -o default -F _snella snella", ""])


def _zsh(words: dict[str, list[Word]]) -> str:
    """Return bash's, which zsh can run."""
    return f"autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n{_bash(words)}"


def _fish(words: dict[str, list[Word]]) -> str:
    lines = [f"complete -c snella -n __fish_use_subcommand -xa '{' '.join(words)}'"]
    for name, own in words.items():
        for word in own:
            text = word.text.replace("\\", "").replace("'", "\\'")
            value = f" -xa '{' '.join(word.choices)}'" if word.choices else " -r" if word.has_value else ""
            told = f" -d '{text}'" if text else ""
            lines.append(f"complete -c snella -n '__fish_seen_subcommand_from {name}' -l {word.flag[2:]}{told}{value}")
    return "\n".join([*lines, ""])


SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
