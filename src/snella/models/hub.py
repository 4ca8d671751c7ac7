"""Checks that timm's and transformers' backbones share: that the hub can be reached, that an input size fits."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from torch import nn

from snella.errors import UserError, short_reason

WITHOUT_HUB = "give the weights as --checkpoint FILE, or start without any: --no-pretrained"
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_model.safetensors",
)


def require_hub(repo: str, *, files: Iterable[str] = WEIGHTS, remedy: str = WITHOUT_HUB) -> None:
    """Ask once whether the hub can be reached, unless one of `files` is already in the local cache.

    The hub's own client tries again for half a minute before it gives up.

    Args:
        repo: `owner/name`, with `@revision` if need be.

    Raises:
        UserError: no connection, or no such repository; the message ends with the remedy.
    """
    name, _, revision = repo.partition("@")
    if any(isinstance(try_to_load_from_cache(name, file, revision=revision or None), str) for file in files):
        return
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision or None), timeout=10)
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if type(error).__name__ in ("RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError"):
            raise UserError(f"the hub has no {repo} that you may read (status {status}); {remedy}") from error
        # any other answer is an answer: let the download itself say what is wrong
    except Exception as error:  # requests, httpx or the operating system, by the version of the hub's client
        raise UserError(f"{repo} cannot be downloaded ({short_reason(error)}); {remedy}") from error


def check_input_size(model: nn.Module, name: str, image_size: int) -> None:
    """Run one image through the model, since an architecture may crop, or fail on, a size that it was not made for.

    Raises:
        UserError: the size is not a multiple of the patches', which the message names; or the model fails on it.
    """
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is not None and first.stride == first.kernel_size and first.padding == (0, 0):
        patch = first.stride[0]
        if rest := image_size % patch:
            below, above = image_size - rest, image_size - rest + patch
            sizes = f"{below} or {above}" if below else str(above)
            raise UserError(
                f"image size {image_size} is not a multiple of the patch of {name}, {patch} pixels; try {sizes}"
            )
    training = model.training
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, image_size, image_size))
    model.train(training)
