"""Layers that other versions of transformers call otherwise, so that an adapter crosses from one to the other.

Two names are of one layer where both become the same by RENAMES; which of them is the older does not matter.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import metadata

LIBRARIES = ("transformers", "timm", "torch", "peft", "snella")

# What transformers 5 calls otherwise than 4, in the order in which it is to be replaced.
RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\b_orig_mod\.", ""),  # of torch.compile
        (r"attention\.(?:attention|self)\.(query|key|value)\b", r"attention.\1"),
        (r"attention\.([qkv])_proj\b", lambda match: f"attention.{dict(q='query', k='key', v='value')[match[1]]}"),
        (r"attention\.output\.dense\b", "attention.o_proj"),
        (r"\bintermediate\.dense\b", "mlp.fc1"),
        (r"\boutput\.dense\b", "mlp.fc2"),
        (r"\bmlp\.dense(\d)\b", r"mlp.fc\1"),  # SegFormer
        (r"\bencoder\.block\.(\d+)\.(\d+)\b", r"stages.\1.blocks.\2"),
        (r"\blinear_c\.", "linear_projections."),
        (r"\b(?:swin|beit|vision_model|text_model)\.", ""),  # parts that became models by themselves, or the reverse
        (r"\bmodel\.(?=stages\.)", ""),  # DINOv3's ConvNeXt
        (r"\b(?:model\.|encoder\.)?layers?\.(?=\d)", "layers."),
        (r"attn\.out_proj\b", "attn.o_proj"),  # DETR's decoders
        (r"\blayers\.(\d+)\.fc(\d)\b", r"layers.\1.mlp.fc\2"),
        (r"\bpsp_modules\.(?:blocks\.(\d+)|(\d+)\.1)\.conv\b", r"psp_modules.\1\2.conv"),  # UPerNet heads
        (r"\bpsp_bottleneck\b", "bottleneck"),
        (r"\.conv(?:\.convolution|olution)?(?=\.snella_|$)", ".conv"),
    )
)
# Last parts of names, as target_modules has them: what takes their place where no layer is called so.
RENAMED_TARGETS = {
    "query": ("q_proj",),
    "key": ("k_proj",),
    "value": ("v_proj",),
    "dense": ("o_proj", "fc1", "fc2"),
    "dense1": ("fc1",),
    "dense2": ("fc2",),
    "q_proj": ("query",),
    "k_proj": ("key",),
    "v_proj": ("value",),
    "o_proj": ("attention.output.dense",),
    "fc1": ("intermediate.dense", "dense1"),
    "fc2": ("output.dense", "dense2"),
}


def uncompiled(name: str) -> str:
    """Return a name without what torch.compile puts into it."""
    return name.replace("_orig_mod.", "")


def canonical(name: str) -> str:
    """Return the name that a layer, or a tensor in it, has under all versions."""
    for pattern, replacement in RENAMES:
        name = pattern.sub(replacement, name)
    return name


def counterparts(names: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Return which of the others each name stands for under another version; names without just one are left out."""
    names, others = list(names), list(others)
    by_form = {canonical(other): other for other in others}
    count = Counter(map(canonical, names)) | Counter(map(canonical, others))  # the larger of both
    return {name: by_form[form] for name in names if (form := canonical(name)) in by_form and count[form] == 1}


def renamed_targets(targets: Iterable[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Return what to put for those ends of names that no name has, where another version's has one."""

    def found(end: str) -> bool:
        return any(name == end or name.endswith(f".{end}") for name in names)

    renamed = {}
    for target in sorted(targets):
        if found(target):
            continue
        whole = list(counterparts([target], names).values()) if "." in target else []
        if others := whole or [end for end in RENAMED_TARGETS.get(target, ()) if found(end)]:
            renamed[target] = others
    return renamed


def versions() -> dict[str, str]:
    """Return the versions of the libraries that name layers, or save them, of those that are installed."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found
