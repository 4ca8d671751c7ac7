"""The tokenizers of `tiny_pipelines` for transformers 4, which takes files where version 5 takes vocabularies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def clip_tokenizer(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], length: int) -> Any:
    """Return a CLIPTokenizer of texts of so many tokens."""
    from transformers import CLIPTokenizer

    with TemporaryDirectory() as folder:
        words, pairs = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        words.write_text(json.dumps(vocabulary))
        pairs.write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]))
        return CLIPTokenizer(str(words), str(pairs), model_max_length=length)


def t5_tokenizer(vocabulary: Sequence[tuple[str, float]], length: int) -> Any:
    """Return a T5TokenizerFast of texts of so many tokens; padding, end and unknown are the first three."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.Unigram(list(vocabulary), unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    end = vocabulary[1][0]
    tokenizer.post_processor = processors.TemplateProcessing(single=["$A", end], special_tokens=[(end, 1)])
    transformers: Any = import_module("transformers")  # version 5 has another type of that name
    return transformers.T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0, model_max_length=length)
