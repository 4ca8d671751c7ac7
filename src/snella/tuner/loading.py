"""What a state dict brings into the adapted layers: all that an adapter needs, by the names of this model, or an error.

PEFT loads with `strict=False`: without this, an adapter whose layers are called otherwise would stay as it was drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from snella.errors import UserError
from snella.tuner.layer import SnellaLayer
from snella.tuner.names import counterparts, versions

PREFIX = "snella_"


def watch_loading(model: nn.Module) -> None:
    """Have every state dict that is loaded into the model checked, and its keys renamed where that is known."""
    unwatch_loading(model)
    model.register_load_state_dict_pre_hook(_fit_keys)


def unwatch_loading(model: nn.Module) -> None:
    """Undo `watch_loading`."""
    hooks = model._load_state_dict_pre_hooks
    for number in [number for number, hook in hooks.items() if getattr(hook, "hook", None) is _fit_keys]:
        del hooks[number]


def with_adapter_name(state: Mapping[str, Tensor], adapter_name: str) -> dict[str, Tensor]:
    """Return a saved adapter's tensors under the names that they have in a model."""
    return {
        f"{key}.{adapter_name}" if key.rpartition(".")[2].startswith(PREFIX) else key: tensor
        for key, tensor in state.items()
    }


def _fit_keys(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the keys of adapters in a state dict to what the model calls them.

    Raises:
        UserError: the adapter's tensors are not all there, or some have no place; one of each is named.
    """
    expected = _adapter_keys(model)
    given = [key for key in state if key.startswith(prefix) and PREFIX in key.rpartition(".")[0].rpartition(".")[2]]
    for adapter_name, wanted in expected.items():
        saved = [key.removeprefix(prefix) for key in given if key.endswith(f".{adapter_name}")]
        missing, unexpected = _difference(wanted, saved)
        if not saved or not (missing or unexpected):
            continue  # another adapter's, or a part of the model without it
        places = counterparts(unexpected, missing)
        missing, unexpected = _difference(wanted, [places.get(key, key) for key in saved])
        if missing or unexpected:
            raise _misfit(model, adapter_name, missing, unexpected)
        for key, place in places.items():
            state[prefix + place] = state.pop(prefix + key)


def _adapter_keys(model: nn.Module) -> dict[str, list[str]]:
    """Return the keys of each adapter's tensors in the model's state dict."""
    keys: dict[str, list[str]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, SnellaLayer):
            for adapter_name in layer.settings:
                keys.setdefault(adapter_name, []).extend(f"{name}.{key}" for key in layer.tensor_names(adapter_name))
    return keys


def _difference(wanted: Iterable[str], given: Iterable[str]) -> tuple[list[str], list[str]]:
    wanted, given = dict.fromkeys(wanted), dict.fromkeys(given)
    return [key for key in wanted if key not in given], [key for key in given if key not in wanted]


def _misfit(model: nn.Module, adapter_name: str, missing: list[str], unexpected: list[str]) -> UserError:
    parts = []
    if unexpected:
        parts.append(f"this model has no place for {len(unexpected)} of its tensors, such as {unexpected[0]}")
    if missing:
        parts.append(f"{len(missing)} tensors of the model's are not in it, such as {missing[0]}")
    made_with = getattr(getattr(model, "peft_config", {}).get(adapter_name), "versions", None) or {}
    here = versions()
    differ = [f"{name} {made} (here {here.get(name)})" for name, made in made_with.items() if made != here.get(name)]
    parts.append(f"it was made with {', '.join(differ) or 'another model, or with other settings'}")
    return UserError(f"adapter {adapter_name!r} does not fit this {type(model).__name__}: {'; '.join(parts)}")
