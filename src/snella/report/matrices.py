"""Where a weight matrix sits: its block and its kind, read from its name alone.

"blocks.3.attn.qkv[0]" is the kind "q" of block "3"; "layers.2.blocks.5.mlp.fc1" the kind "fc1" of block "2.5".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile

SHORT = {
    "qkv[0]": "q", "qkv[1]": "k", "qkv[2]": "v",
    "query": "q", "key": "k", "value": "v",
    "q_proj": "q", "k_proj": "k", "v_proj": "v",
    "to_q": "q", "to_k": "k", "to_v": "v",
}  # fmt: skip


def places(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return (block, kind) of each matrix, as short as they can be without two matrices sharing a place.

    A block ends at the last index inside a name, and what follows is the kind; an index at the very end belongs to
    the kind ("downsample.0"). A name without index is a block of its own, of kind "".
    """
    split = {name: _split(name) for name in names}
    blocks = _block_labels(list(dict.fromkeys(block for block, _ in split.values())))
    kinds = _kind_labels(list(dict.fromkeys(kind for _, kind in split.values())))
    return {name: (blocks[block], kinds[kind]) for name, (block, kind) in split.items()}


def _split(name: str) -> tuple[str, str]:
    """Return block and kind of a matrix, both in full."""
    parts = name.split(".")
    inner = parts[: len(parts) - len(list(takewhile(str.isdigit, reversed(parts))))]
    end = max((i + 1 for i, part in enumerate(inner) if part.isdigit()), default=0)
    return (".".join(parts[:end]), ".".join(parts[end:])) if end else (name, "")


def _block_labels(blocks: Sequence[str]) -> dict[str, str]:
    """Name blocks with an index by it alone, or after the word that tells them apart; others stay as they are."""
    parts = {block: block.split(".") for block in blocks if block.rsplit(".", 1)[-1].isdigit()}
    shared = len(list(takewhile(lambda column: len(set(column)) == 1, zip(*parts.values(), strict=False))))
    words = {block: re.sub(r"\d+", "", part[shared]) for block, part in parts.items() if len(part) > shared}
    several = len(set(words.values())) > 1  # down_blocks, mid_block, up_blocks
    short = {
        block: f"{words[block] if several else ''} {'.'.join(re.findall(r'[0-9]+', block))}".strip() for block in parts
    }
    if len(set(short.values())) < len(short):
        return {block: block for block in blocks}
    return {block: short.get(block, block) for block in blocks}


def _kind_labels(kinds: Sequence[str]) -> dict[str, str]:
    """Name each kind by its last word, or by all of it where two kinds end alike."""
    last = {kind: re.sub(r"^.*\.(?=[^.]*[^.\d][^.]*(\.\d+)*$)", "", kind) for kind in kinds}
    short = {kind: SHORT.get(word, word) for kind, word in last.items()}
    count = Counter(short.values())
    return {kind: label if count[label] == 1 else kind for kind, label in short.items()}
