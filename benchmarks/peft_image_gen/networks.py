"""The networks of PEFT's method comparisons, with random weights and of any depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.diffusion import draw_weights

Inputs = tuple[Tensor, ...]

# transformer/config.json of FLUX.2-klein-base-4B but for its depth, and where it differs from the class's defaults
FLUX: dict[str, Any] = {"num_attention_heads": 24, "joint_attention_dim": 7680, "guidance_embeds": False}
# config.json of Llama-3.2-3B but for its depth, where it differs from the class's defaults
LLAMA: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Network:
    """A network and a training step of it as PEFT's comparison has them."""

    name: str
    shapes: Mapping[str, Any]
    depth: tuple[int, ...]  # blocks of each kind
    samples: int  # in a step
    tokens: int  # of a sample
    checkpointing: bool  # of gradients, block by block
    build: Callable[[Mapping[str, Any], tuple[int, ...]], Any]
    inputs: Callable[[Mapping[str, Any], int, int], Inputs]  # of so many samples of so many tokens
    loss: Callable[[nn.Module, Inputs], Tensor]


def _flux(shapes: Mapping[str, Any], depth: tuple[int, ...]) -> Any:
    from diffusers import Flux2Transformer2DModel

    return Flux2Transformer2DModel(**shapes, num_layers=depth[0], num_single_layers=depth[1])


def _flux_inputs(shapes: Mapping[str, Any], samples: int, tokens: int) -> Inputs:
    """Return noisy latents, a text's states, times, both's positions and the target; a third of the tokens is text."""
    text = tokens // 3
    latents, target = torch.randn(2, samples, tokens - text, shapes.get("in_channels", 128)).bfloat16()
    states = torch.randn(samples, text, shapes["joint_attention_dim"]).bfloat16()
    places = [torch.zeros(samples, count, 4) for count in (tokens - text, text)]
    return latents, states, torch.rand(samples), *places, target


def _flux_loss(model: nn.Module, inputs: Inputs) -> Tensor:
    latents, states, times, image_places, text_places, target = inputs
    given = model(
        hidden_states=latents,
        encoder_hidden_states=states,
        timestep=times,
        img_ids=image_places,
        txt_ids=text_places,
        return_dict=False,
    )
    return F.mse_loss(given[0].float(), target.float())


def _llama(shapes: Mapping[str, Any], depth: tuple[int, ...]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    make: Any = LlamaConfig
    return LlamaForCausalLM(make(**shapes, num_hidden_layers=depth[0], attn_implementation="sdpa"))


def _llama_inputs(shapes: Mapping[str, Any], samples: int, tokens: int) -> Inputs:
    return (torch.randint(shapes["vocab_size"], (samples, tokens)),)


def _llama_loss(model: nn.Module, inputs: Inputs) -> Tensor:
    return model(input_ids=inputs[0], labels=inputs[0], use_cache=False).loss


NETWORKS = {
    # 512 pixels are 1024 tokens, beside 512 of text
    "image": Network("FLUX.2-klein-base-4B", FLUX, (5, 20), 2, 1536, True, _flux, _flux_inputs, _flux_loss),
    # a batch of the longest texts that are taken; most are far shorter
    "language": Network("Llama-3.2-3B", LLAMA, (28,), 4, 768, False, _llama, _llama_inputs, _llama_loss),
}


def build(network: Network, depth: tuple[int, ...], device: str = "cpu") -> Any:
    """Build the network with so many blocks of each kind, in bf16, its weights drawn at once unless on `meta`."""
    with torch.device("meta"):
        model = network.build(network.shapes, depth).to(torch.bfloat16)
    if device == "meta":
        return model
    model = model.to_empty(device=device)
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    for buffer in model.buffers():  # angles of positions
        buffer.zero_()
    draw_weights(model)
    return model
