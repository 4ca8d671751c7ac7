"""The PEFT tuner: wraps a model's layers and lets their matrices compete for the budget."""

from __future__ import annotations

import copy
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from transformers.pytorch_utils import Conv1D

from snella.errors import UserError
from snella.ops import recomputable, unwatch, watch
from snella.tuner.allocator import AllocatingTuner
from snella.tuner.base_layers import Convolutional
from snella.tuner.config import SnellaConfig, UniqueNames
from snella.tuner.layer import SnellaLayer
from snella.tuner.loading import unwatch_loading, watch_loading, with_adapter_name
from snella.tuner.names import renamed_targets, uncompiled, versions
from snella.tuner.targets import NoMatchError, adaptable, candidates, default_targets, head_names, refusal, suits


class SnellaModel(AllocatingTuner):
    """The model under a `peft.PeftModel` with `SnellaConfig`: reach it as `model.base_model`.

    Example:
        >>> import peft, timm, torch
        >>> from snella import SnellaConfig
        >>> model = peft.get_peft_model(
        ...     timm.create_model("test_vit", num_classes=5), SnellaConfig(r=8, total_step=100)
        ... )
        >>> optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
        >>> model(torch.randn(2, 3, 160, 160)).square().mean().backward()
        >>> optimizer.step()
        >>> record = model.base_model.update_and_allocate(1)
        >>> optimizer.zero_grad()
    """

    prefix = "snella_"
    tuner_layer_cls = SnellaLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  (see `targets.FAMILIES`)

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        """Adapt what is inside a model that torch.compile has wrapped, so that names and files are the same."""
        if isinstance(inner := vars(model).get("_modules", {}).get("_orig_mod"), nn.Module):
            watch_loading(model)  # whose handle the caller still has
            self.model = inner

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Wrap the targeted layers, as PEFT does; convolutions that a pattern matched, but not `adaptable`, stay.

        Batch norms that do not train keep their statistics from here on, see `train`.
        """
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        _hold_statistics(model)
        modules = dict(model.named_modules())
        self.targeted_module_names = [
            name for name in self.targeted_module_names if isinstance(modules[name], SnellaLayer)
        ]
        if not any(adapter_name in layer.settings for layer in self.adapted_layers()):
            raise NoMatchError(
                f"target_modules={self.peft_config[adapter_name].target_modules!r} matches convolutions only "
                f"that cannot be adapted; choose from: {', '.join(candidates(model))}"
            )
        owners: Counter[Tensor | None] = Counter(
            parameter for module in model.modules() for parameter in module._parameters.values()
        )
        for layer in self.adapted_layers():
            layer.tied = owners[layer.get_base_layer().weight] > 1
        watch_loading(model)
        if hasattr(model, "save_lora_adapter"):  # diffusers' models
            vars(model)["save_lora_adapter"] = _refuse_to_save_as_lora
        if self.peft_config[adapter_name].rematerialize:
            for module in filter(recomputable, model.modules()):
                watch(module)

    def train(self, mode: bool = True) -> SnellaModel:
        """Set the mode, except in batch norms without a trainable parameter, whose statistics must not move.

        They belong to the frozen base, and are not saved with an adapter. Name them in modules_to_save to train them.
        """
        super().train(mode)
        _hold_statistics(self.model)
        return self

    @staticmethod
    def _check_target_module_exists(peft_config: PeftConfig, key: str) -> bool | re.Match[str] | None:
        """Return what PEFT does; layers_to_transform are chosen by numbers wherever they stand in a name."""
        assert isinstance(peft_config, SnellaConfig)
        key, wanted = uncompiled(key), peft_config.layers_to_transform
        if wanted is not None:
            parts = peft_config.layers_pattern or r"[^.]*[^.\d][^.]*"
            pattern = parts if isinstance(parts, str) else "|".join(parts)
            number = re.search(rf"(?:^|\.)(?:{pattern})\.(\d+)\.", f"{key}.")
            if number is None or int(number[1]) not in ([wanted] if isinstance(wanted, int) else wanted):
                return False
            peft_config = copy.copy(peft_config)
            peft_config.layers_to_transform = peft_config.layers_pattern = None
        return BaseTuner._check_target_module_exists(peft_config, key)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:  # pyright: ignore[reportIncompatibleMethodOverride] PEFT says None
        model: nn.Module = super()._unload_and_optionally_merge(*args, **kwargs)  # type: ignore[assignment]
        unwatch_loading(model)
        vars(model).pop("save_lora_adapter", None)
        for module in model.modules():
            unwatch(module)
        return model

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Name all that was saved after the adapter, as PEFT 0.20 does: what does not fit is seen in `loading`.

        Raises:
            UserError: there is no tensor of an update.
        """
        if not any(cls.prefix in key for key in state_dict):
            raise UserError(
                f"adapter {adapter_name!r}: none of its {len(state_dict)} tensors is of an update ({cls.prefix}...); "
                "its file is damaged or another method's: restore it, or train again"
            )
        return with_adapter_name(state_dict, adapter_name)

    def _prepare_adapter_config(self, peft_config: SnellaConfig, model_config: dict) -> SnellaConfig:  # type: ignore[override]
        if peft_config.bias != "none" and not hasattr(BaseTuner, "_get_learnable_bias_state_dict"):
            raise UserError(f"bias={peft_config.bias!r} needs peft 0.21 or newer; this one would not save the biases")
        heads = head_names(self.model)
        if _requested(peft_config, "modules_to_save") is None:
            _fill_in(peft_config, "modules_to_save", UniqueNames(heads))
        targets = _requested(peft_config, "target_modules")
        if targets is None:
            _fill_in(peft_config, "target_modules", self._default_targets(model_config))
        elif targets == "all-linear":
            _fill_in(peft_config, "target_modules", self._all_linear(heads))
        if peft_config.versions is None:
            peft_config.versions = versions()
        names = [name for name, _ in self.model.named_modules()]
        _rename_targets(peft_config, names)
        if not any(self._check_target_module_exists(peft_config, name) for name in names):
            besides = {"modules_to_save": peft_config.modules_to_save, "exclude_modules": peft_config.exclude_modules}
            apart = ", ".join(f"{name}={value!r}" for name, value in besides.items() if value)
            raise NoMatchError(
                f"target_modules={(targets or peft_config.target_modules)!r} matches no layer of "
                f"{type(self.model).__name__} that is to be adapted{apart and f' (left out: {apart})'}; "
                f"choose from: {', '.join(candidates(self.model))}"
            )
        return peft_config

    def _default_targets(self, model_config: dict) -> str | set[str]:
        """Return the family's, or else those that PEFT has for a text model of this type."""
        try:
            return default_targets(self.model)
        except NoMatchError:
            names = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_config.get("model_type", ""))
            if not names:
                raise
            return set(names)

    def _all_linear(self, heads: list[str]) -> set[str]:
        """Return the names of all Linear layers but the head's and the output embedding's.

        PEFT's own shorthand would take timm's heads.
        """
        get_output: Any = getattr(self.model, "get_output_embeddings", None)
        output = get_output() if callable(get_output) else None
        return {
            uncompiled(name)
            for name, module in self.model.named_modules()
            if adaptable(module)
            and module is not output
            and isinstance(
                module.get_base_layer() if isinstance(module, BaseTunerLayer) else module, nn.Linear | Conv1D
            )
            and not name.endswith("base_layer")
            and not any(name == head or name.startswith(f"{head}.") for head in heads)
        }

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: SnellaConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, SnellaLayer):
            target.update_layer(adapter_name, peft_config)
            return
        if isinstance(target, BaseTunerLayer):
            raise UserError(f"{current_key} already has an adapter of type {type(target).__name__}")
        by_pattern = isinstance(peft_config.target_modules, str)
        if isinstance(target, Convolutional) and by_pattern and not adaptable(target):
            return
        if not suits(target):
            passes = "; a regular expression passes over it" if isinstance(target, Convolutional) else ""
            raise UserError(
                f"{current_key} is a {type(target).__name__}, {refusal(target)}{passes}; "
                f"choose target_modules from: {', '.join(candidates(self.model))}"
            )
        layer = SnellaLayer(target, adapter_name, peft_config, name=current_key)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a further adapter trains only once it is made active
        self._replace_module(parent, target_name, layer, target)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Cast as PEFT does; its new parameters in the place of half-precision ones would all train."""
        trains = {name: parameter.requires_grad for name, parameter in self.named_parameters()}
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for name, parameter in self.named_parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(trains[name])

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Refuse what PEFT would leave unread: an adapter for each row of a batch."""
        if kwargs.get("adapter_names") is not None:
            raise UserError("adapter_names: a batch has one adapter; call the model for each, with set_adapter before")
        yield

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter, as PEFT does, with its averages: another of that name starts with none."""
        super().delete_adapter(adapter_name)
        for table in ("_importance_by_adapter", "_travel_by_adapter"):
            vars(self).get(table, {}).pop(adapter_name, None)

    def add_weighted_adapter(self, adapters: list[str], weights: list[float], *args: Any, **kwargs: Any) -> None:
        """Refuse: the sum of several updates is in general not one of this kind."""
        raise UserError(
            "the weighted sum of SNELLA updates is no SNELLA update: snella.combine(model, "
            f"{list(adapters)}, weights={list(weights)}) gives the plain model with it in its weights; for an "
            "adapter save each by snella.save_as_lora and combine those; to train on, have them active together, "
            f"model.base_model.set_adapter({list(adapters)}), each with layer.set_scale(name, weight)"
        )


def _refuse_to_save_as_lora(*args: Any, **kwargs: Any) -> None:
    raise UserError(
        "diffusers would save this adapter as a LoRA that nothing loads: call save_pretrained(folder) of the PeftModel "
        "and snella.load_into_pipeline(pipe, folder), or snella.save_as_lora for a LoRA close to it"
    )


def _hold_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, _NormBase) and not any(part.requires_grad for part in module.parameters()):
            module.eval()


def _rename_targets(config: SnellaConfig, names: list[str]) -> None:
    """Take the layers of names that another version of transformers has, where the model has none so called."""
    targets = config.target_modules
    if not isinstance(targets, set | list) or not (renamed := renamed_targets(targets, names)):
        return
    told = ", ".join(f"{target!r} is {' and '.join(map(repr, others))}" for target, others in renamed.items())
    warnings.warn(f"target_modules of another version of transformers: here {told}", stacklevel=2)
    kept = {target for target in targets if target not in renamed}
    _fill_in(config, "target_modules", kept.union(*renamed.values()))


def _requested(config: SnellaConfig, name: str) -> Any:
    """Return what the user gave for a field that PEFT reads back; not what was filled in for another model."""
    value = getattr(config, name)
    requested, filled = vars(config).get("_filled_in", {}).get(name, (value, value))
    return requested if value == filled else value


def _fill_in(config: SnellaConfig, name: str, value: Any) -> None:
    """Set a field to what suits the model at hand, and remember what the user gave."""
    vars(config).setdefault("_filled_in", {})[name] = (_requested(config, name), copy.copy(value))
    setattr(config, name, value)
