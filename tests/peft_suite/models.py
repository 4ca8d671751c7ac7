"""Tiny models in the place of those that PEFT's tests load from the hub: of the same classes, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

WIDTH: dict[str, Any] = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
TEXT: dict[str, Any] = WIDTH | dict(vocab_size=1000, max_position_embeddings=64)
CAUSAL: dict[str, Any] = TEXT | dict(num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
SEQ2SEQ: dict[str, Any] = dict(
    d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=1000, max_position_embeddings=64,
    pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
)  # fmt: skip
OPT: dict[str, Any] = dict(
    hidden_size=16, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=1000,
    max_position_embeddings=64, pad_token_id=1, bos_token_id=2, eos_token_id=2,
)  # fmt: skip
GPT: dict[str, Any] = dict(
    n_embd=16, n_layer=2, n_head=4, n_positions=64, vocab_size=1000, bos_token_id=0, eos_token_id=0
)
T5: dict[str, Any] = dict(
    d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, vocab_size=1000, pad_token_id=0, eos_token_id=1,
    decoder_start_token_id=0,
)  # fmt: skip
# last part of the hub's name -> class of the model, and of the config with its values
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "tiny-random-OPTForCausalLM": ("OPTForCausalLM", "OPTConfig", OPT),
    "tiny-random-GPT2LMHeadModel": ("GPT2LMHeadModel", "GPT2Config", GPT),
    "tiny-random-gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT),
    "tiny-random-GPTJForCausalLM": ("GPTJForCausalLM", "GPTJConfig", GPT | dict(rotary_dim=4)),
    "tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", "LlamaConfig", CAUSAL),
    "tiny-dummy-qwen2": ("Qwen2ForCausalLM", "Qwen2Config", CAUSAL),
    "tiny-random-Gemma3ForCausalLM": ("Gemma3ForCausalLM", "Gemma3TextConfig", CAUSAL | dict(head_dim=4)),
    "tiny-random-MistralForCausalLM": ("MistralForCausalLM", "MistralConfig", CAUSAL | dict(sliding_window=None)),
    "tiny-random-T5ForConditionalGeneration-calibrated": ("T5ForConditionalGeneration", "T5Config", T5),
    "tiny-random-BartForConditionalGeneration": ("BartForConditionalGeneration", "BartConfig", SEQ2SEQ),
    "tiny-random-BertModel": ("BertModel", "BertConfig", TEXT),
    "tiny-random-RobertaModel": ("RobertaModel", "RobertaConfig", TEXT),
    "tiny-random-DebertaModel": ("DebertaModel", "DebertaConfig", TEXT),
    "tiny-random-DebertaV2Model": ("DebertaV2Model", "DebertaV2Config", TEXT),
    "tiny-random-BertForSequenceClassification": ("BertForSequenceClassification", "BertConfig", TEXT),
    "tiny-random-RobertaForSequenceClassification": ("RobertaForSequenceClassification", "RobertaConfig", TEXT),
    "tiny-LlamaForSequenceClassification-3.2": ("LlamaForSequenceClassification", "LlamaConfig", CAUSAL),
}


def local_models(folder: Path) -> Callable[[str], str]:
    """Return what gives, for a name on the hub, the folder of a tiny model of that class, made at its first use."""

    def path_of(hub_name: str) -> str:
        name = hub_name.rpartition("/")[2]
        if name not in MODELS:
            return hub_name
        path = folder / name
        if not path.exists():
            model_class, config_class, values = MODELS[name]
            torch.manual_seed(0)
            config: Any = getattr(transformers, config_class)(**values)
            getattr(transformers, model_class)(config).save_pretrained(path)
        return str(path)

    return path_of
