"""The adapted layer: a frozen Linear or Conv2d whose weight carries one sparse update per matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from timm.layers import drop_path
from torch import Tensor, nn

from snella.delta import gated, kept_count, kernel_matrix
from snella.errors import UserError
from snella.ops import (
    Convolution,
    Factors,
    Form,
    Linear,
    adapted_product,
    adapted_weight,
    budget_threshold,
    draw_drop_path,
    is_transformed,
    source_of,
)
from snella.tuner.config import SnellaConfig

# The published code drops no inputs of the update of attention's output projection.
NO_INPUT_DROPOUT = ("proj", "o_proj", "out_proj")

# A relative constant is saved with the adapter, since another base, or a random one that is loaded later, would give
# another. It is an integer because a cast of the model to half precision would round a float.
SCALE_UNIT = 2.0**-32

# What gates that do not square multiply entries by, over the root of the weight's rms: what the others do where the
# update is a hundredth of the weight. Without it an update is as large as the weight after a few steps.
LINEAR = 0.1


@dataclass(frozen=True)
class UpdateSettings:
    """What one adapter fixes for the updates of a layer."""

    form: Form
    dropout: float
    drop_path: float
    rematerialize: bool | Literal["mlp"]
    in_units_of_scale: bool  # the scalars: they would outgrow an update that is far smaller than they are


@dataclass(frozen=True)
class CachedWeight:
    """An adapted weight and what it was made of: identities of tensors, and values of those that train."""

    key: tuple
    values: tuple[Tensor, ...]
    weight: Tensor


def _take_scales(layer: nn.Module, _: object = None) -> None:
    """Use the constants that a state dict, or a copy into the buffers (DDP, averages of weights), has brought."""
    assert isinstance(layer, SnellaLayer)
    for name in layer.snella_scale:
        units = cast(Tensor, layer.snella_scale[name])
        if not units.is_meta:
            settings = layer.settings[name]
            form = settings.form._replace(scale=units.item() * SCALE_UNIT)
            layer.settings[name] = replace(settings, form=form)
    layer._cached_weight = None


def _is_traced(x: Tensor) -> bool:
    """Whether operations are looked into (torch's compile, func and jit.trace) or only planned (meta tensors)."""
    planned = torch.compiler.is_compiling() or torch.jit.is_tracing() or x.device.type == "meta"
    return planned or is_transformed()


def _is_hooked(module: nn.Module) -> bool:
    """Whether a module's call does more than its class's forward: hooks, or offloaded weights (accelerate)."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


class SnellaLayer(nn.Module, BaseTunerLayer):
    """A Linear or Conv2d with y = x (W + scale · delta)ᵀ + bias, delta by active adapter (METHOD: `snella.delta`).

    The weight counts as S matrices (out/S, in) stacked along the out axis; a convolution's is
    (out, in·kh·kw). Parameters by adapter name: snella_A (S, H, n, r/H), snella_B (S, H, m/S, r/H), the scalars
    (S,) of kernel `mixk`, the integer budgets snella_kept (S,), and where it is relative the constant snella_scale.
    """

    adapter_layer_names = ("snella_A", "snella_B", "snella_alpha", "snella_gamma", "snella_beta")
    # snella_kept stays out of PEFT's lists: PEFT 0.20 casts what they name to the base's dtype, integers too.

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: SnellaConfig, name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.name = name
        self.settings: dict[str, UpdateSettings] = {}
        self.scaling: dict[str, float] = {}  # PEFT's name; not saved
        self.snella_A = nn.ParameterDict()
        self.snella_B = nn.ParameterDict()
        self.snella_alpha = nn.ParameterDict()
        self.snella_gamma = nn.ParameterDict()
        self.snella_beta = nn.ParameterDict()
        self.snella_kept = BufferDict(persistent=True)
        self.snella_scale = BufferDict(persistent=True)  # of those whose constant is relative, in units of SCALE_UNIT
        self.register_load_state_dict_post_hook(_take_scales)
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self._unmerged_weight: Tensor | None = None
        self._cached_weight: CachedWeight | None = None
        self.tied = False  # whether another adapted layer has the same weight
        self._shared_weight: list[nn.Parameter] = []  # that weight while this layer's update is merged
        self.in_features: int = getattr(base_layer, "in_features", None) or base_layer.in_channels  # pyright: ignore
        self.out_features: int = getattr(base_layer, "out_features", None) or base_layer.out_channels  # pyright: ignore
        self.cast_input_dtype_enabled = True  # PEFT's name, as the two before
        self.update_layer(adapter_name, config)

    def _base(self) -> nn.Linear | nn.Conv2d:
        return cast("nn.Linear | nn.Conv2d", self.get_base_layer())

    def kept(self, adapter_name: str) -> Tensor:
        """The budgets (S,), int64: entries that each matrix's update may have."""
        return cast(Tensor, self.snella_kept[adapter_name])

    def update_layer(self, adapter_name: str, config: SnellaConfig) -> None:
        """Add an adapter's factors, scalars and budgets to this layer.

        Raises:
            UserError: `fused_splits` names a count that does not divide the layer's outputs.
        """
        weight = self._base().weight
        out_features, in_features = weight.shape[0], weight[0].numel()
        last_name = self.name.rsplit(".", 1)[-1]
        splits = config.fused_splits.get(last_name, 1)
        if out_features % splits:
            raise UserError(
                f"{self.name} has {out_features} outputs, not divisible into fused_splits[{last_name!r}]={splits}"
            )
        rows, width = out_features // splits, config.r // config.heads
        squares = config.gate in ("published", "soft")
        scale, gain = config.scale, 1.0
        if scale is None:
            root = math.sqrt(self._rms())
            gain = 1.0 if squares else LINEAR * root
            units = max(round(config.relative_scale * root * gain / SCALE_UNIT), 1)
            self.snella_scale[adapter_name] = torch.tensor(units, device=weight.device)
            scale = units * SCALE_UNIT
        self.settings[adapter_name] = UpdateSettings(
            form=Form(config.kernel, config.gate, scale),
            dropout=0.0 if last_name in NO_INPUT_DROPOUT else config.update_dropout,
            drop_path=config.update_drop_path,
            rematerialize=config.rematerialize,
            in_units_of_scale=config.scale is None and not squares,
        )
        self.scaling[adapter_name] = 1.0
        self.snella_A[adapter_name] = nn.Parameter(torch.empty(splits, config.heads, in_features, width))
        self.snella_B[adapter_name] = nn.Parameter(torch.empty(splits, config.heads, rows, width))
        if config.kernel == "mixk":
            self.snella_alpha[adapter_name] = nn.Parameter(torch.full((splits,), float(config.init_alpha)))
            self.snella_gamma[adapter_name] = nn.Parameter(torch.ones(splits))
            self.snella_beta[adapter_name] = nn.Parameter(torch.zeros(splits))
        for factor in (*self.snella_A[adapter_name], *self.snella_B[adapter_name]):
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5))  # each 3-D slice by itself, as published
            with torch.no_grad():
                factor.mul_(gain * config.start_scale / scale)  # the update starts the same under any constant
        kept = kept_count(config.init_sparsity, rows * in_features)
        self.snella_kept[adapter_name] = torch.full((splits,), kept, dtype=torch.int64, device=weight.device)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _rms(self) -> float:
        """Of the frozen weight; one of zeros, or without values yet (meta), counts as a new layer's."""
        weight = self._base().weight.data if self._unmerged_weight is None else self._unmerged_weight
        size = 0.0 if weight.is_meta else torch.linalg.vector_norm(weight, dtype=torch.float32).item()
        return size / math.sqrt(weight.numel()) or 1 / math.sqrt(3 * weight[0].numel())

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter from this layer, as PEFT does."""
        if adapter_name in self.settings:
            del self.settings[adapter_name], self.scaling[adapter_name], self.snella_kept[adapter_name]
            if adapter_name in self.snella_scale:
                del self.snella_scale[adapter_name]
        super().delete_adapter(adapter_name)

    def set_scale(self, adapter: str, scale: float) -> None:
        """Let scale · delta be the adapter's update (from now on: not what is merged already)."""
        if adapter in self.scaling:
            self.scaling[adapter] = float(scale)

    def scale_layer(self, scale: float) -> None:
        """Multiply the scales of the active adapters, as PEFT's layers do."""
        for name in self.active_adapters:
            self.set_scale(name, self.scaling.get(name, 1.0) * scale)

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the scales of the active adapters; None: back to 1."""
        for name in self.active_adapters:
            self.set_scale(name, 1.0 if scale is None else self.scaling.get(name, 1.0) / scale)

    def matrix_names(self, adapter_name: str) -> list[str]:
        """Names of the S matrices: the layer's, with [0] … [S-1] behind where it holds several."""
        splits = len(self.kept(adapter_name))
        return [self.name] if splits == 1 else [f"{self.name}[{i}]" for i in range(splits)]

    def matrix_size(self, adapter_name: str) -> int:
        """Entries of each of the S matrices."""
        return self._base().weight.numel() // len(self.kept(adapter_name))

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """The update (out, in) of all S matrices times its scale, in at least fp32; differentiable."""
        factors, scale = self._factors(adapter_name), self.scaling[adapter_name]
        dtype = torch.promote_types(factors.A.dtype, torch.float32)
        if _is_traced(factors.A):
            delta = self._traceable_delta(adapter_name)
        else:
            delta = adapted_weight(None, factors, self.kept(adapter_name), self.settings[adapter_name].form, dtype)
        return delta if scale == 1 else scale * delta

    def _factors(self, adapter_name: str) -> Factors:
        A, B = self.snella_A[adapter_name], self.snella_B[adapter_name]
        if adapter_name not in self.snella_alpha:  # kernel pwl
            return Factors(A, B, None, None, None)
        settings = self.settings[adapter_name]
        unit = settings.form.scale if settings.in_units_of_scale else 1
        scalars = (by_adapter[adapter_name] for by_adapter in (self.snella_alpha, self.snella_gamma, self.snella_beta))
        return Factors(A, B, *(scalar if unit == 1 else unit * scalar for scalar in scalars))

    def _traceable_delta(self, adapter_name: str) -> Tensor:
        """The definition, which torch.compile sees through and fuses by itself."""
        kernel, gate, scale = self.settings[adapter_name].form
        A, B, *scalars = self._factors(adapter_name)
        deltas = []
        for i, kept in enumerate(self.kept(adapter_name)):
            of_matrix = (None if scalar is None else scalar[i] for scalar in scalars)
            K = kernel_matrix(A[i], B[i], *of_matrix, kernel=kernel, scale=scale)
            t = None if gate == "none" else budget_threshold(K.detach(), kept, gate == "soft")
            deltas.append(gated(K, t, gate))
        return torch.cat(deltas)

    def _in_force(self) -> list[str]:
        """Adapters whose update is not in the base weight and has to be added; disabled ones are taken out of it."""
        if self.merged and self.disable_adapters:
            self.unmerge()
        if self.disable_adapters or self.merged:
            return []
        return [name for name in self.active_adapters if name in self.settings]

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The adapted weight W + scale · delta, in W's dtype and shape.

        Some models read it instead of calling the layer (timm's EVA, BEiT and Swin v2 call F.linear with
        `qkv.weight`), and have to see the update. In evaluation without gradients it is kept until a factor, a
        budget, a scale or W changes (of what does not train: by other ways than a write to its .data).
        """
        names = self._in_force()
        base = self._base().weight
        if not names:
            return base
        if self.training or torch.is_grad_enabled() or _is_traced(base):
            return self._add_updates(base, names)
        tensors = self._sources(names)
        if base.requires_grad or any(tensor.is_inference() for tensor in (base, *tensors)):
            return self._add_updates(base, names)  # which may change unseen
        # fused optimisers and writes to .data change values that train without a new version
        values = tensors if any(tensor.requires_grad for tensor in tensors) else ()
        states = ((tensor.data_ptr(), tensor._version, tensor.dtype, tensor.device) for tensor in (base, *tensors))
        key = (*states, *(self.scaling[name] for name in names), len(values))
        cached = self._cached_weight
        if cached is None or cached.key != key or not all(map(torch.equal, cached.values, values)):
            self._cached_weight = cached = None  # not two copies at once
            copies = tuple(tensor.detach().clone() for tensor in values)
            self._cached_weight = cached = CachedWeight(key, copies, self._add_updates(base, names))
        return cached.weight

    def _sources(self, names: list[str]) -> list[Tensor]:
        """The tensors that the adapters' updates are made of."""
        by_adapters = [self.snella_kept, *(getattr(self, attribute) for attribute in self.adapter_layer_names)]
        return [by_adapter[name] for name in names for by_adapter in by_adapters if name in by_adapter]

    def _sum_of_updates(self, names: list[str]) -> Tensor:
        delta = self.get_delta_weight(names[0])
        for name in names[1:]:
            delta = delta + self.get_delta_weight(name)
        return delta

    def _add_updates(self, base: Tensor, names: list[str]) -> Tensor:
        delta = self._sum_of_updates(names)
        return (base.to(delta.dtype) + delta.view_as(base)).to(base.dtype)

    def train(self, mode: bool = True) -> SnellaLayer:
        """Set the mode, free the adapted weight that evaluation kept, and look at the constants' buffers again."""
        _take_scales(self)
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """x (b, ..., in) or (b, in, h, w) -> y, as the base layer gives it with the adapted weight."""
        names = self._in_force()
        if not names:
            return self.base_layer(x)
        if self.snella_A[names[0]].is_meta and not x.is_meta:
            raise UserError(
                f"{self.name}: its factors are offloaded, where nothing fetches them; merge_and_unload first"
            )
        if len(names) == 1 and self.scaling[names[0]] == 1 and torch.is_grad_enabled() and not _is_traced(x):
            return self._lean(x, names[0])
        if self.training and any(self.settings[name].dropout or self.settings[name].drop_path for name in names):
            y = self.base_layer(x)
            for name in names:
                y = y + self._regularised_update(x, name)
            return y
        if _is_hooked(self.base_layer):  # whose weight may be elsewhere
            update = self._sum_of_updates(names).view(self._base().weight.shape)
            return self.base_layer(x) + self._plain(x, update.to(x.dtype), bias=False)
        return self._plain(x, self.weight)

    def _lean(self, x: Tensor, name: str) -> Tensor:
        base, settings = self._base(), self.settings[name]
        y, weight, bias = None, base.weight, base.bias
        drops = self.training and settings.dropout  # the update sees another x than the weight
        if drops or _is_hooked(base):
            y, weight, bias = self.base_layer(x), None, None  # two products
        if drops:
            x = F.dropout(x, settings.dropout)
        source = source_of(x) if settings.rematerialize else None
        x, product, padded = self._product(x)
        drop = None
        if self.training and settings.drop_path:
            drop = draw_drop_path(settings.drop_path, len(self.kept(name)), len(x), x.device)
        update = adapted_product(
            x,
            weight,
            bias,
            self._factors(name),
            self.kept(name),
            form=settings.form,
            product=product,
            dtype=base.weight.dtype,
            source=None if padded else source,
            drop=drop,
            recompute_output=settings.rematerialize == "mlp" and y is None,
        )
        return update if y is None else y + update

    def _product(self, x: Tensor) -> tuple[Tensor, Linear | Convolution, bool]:
        """x, padded where the convolution alone could not; what to multiply it by; whether it was padded."""
        base = self._base()
        if isinstance(base, nn.Linear):
            return x, Linear(), False
        kernel = (base.kernel_size[0], base.kernel_size[1])
        if base.padding_mode == "zeros" and not isinstance(base.padding, str):
            return x, Convolution(kernel, base.stride, base.padding, base.dilation), False
        mode = "constant" if base.padding_mode == "zeros" else base.padding_mode
        x = F.pad(x, base._reversed_padding_repeated_twice, mode=mode)
        return x, Convolution(kernel, base.stride, (0, 0), base.dilation), True

    def _regularised_update(self, x: Tensor, adapter_name: str) -> Tensor:
        """x deltaᵀ with dropout on x and drop-path per sample on the result, drawn for each matrix by itself."""
        settings = self.settings[adapter_name]
        channels = 1 if isinstance(self._base(), nn.Conv2d) else -1
        parts = []
        for delta in self.get_delta_weight(adapter_name).chunk(len(self.kept(adapter_name))):
            delta = delta.view(-1, *self._base().weight.shape[1:]).to(self._base().weight.dtype)
            part = self._plain(F.dropout(x, settings.dropout), delta, bias=False)
            parts.append(drop_path(part, settings.drop_path, training=True))
        return torch.cat(parts, dim=channels)

    def _plain(self, x: Tensor, weight: Tensor, bias: bool = True) -> Tensor:
        base = self._base()
        if isinstance(base, nn.Conv2d):
            return base._conv_forward(x, weight, base.bias if bias else None)  # knows padding modes
        return F.linear(x, weight, base.bias if bias else None)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put the active (or named) adapters' updates into the base weight, whose old tensor is kept for unmerge.

        Raises:
            ValueError: `safe_merge` and the merged weight is not finite.
        """
        base = self._base()
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.settings:
                continue
            merged = self._add_updates(base.weight, [name])
            if safe_merge and not merged.isfinite().all():
                raise ValueError(f"adapter {name!r} makes the weight of {self.name} non-finite; it is not merged")
            if self._unmerged_weight is None:
                self._unmerged_weight = base.weight.data
                if self.tied:  # the other layers' weight has no part in this update
                    self._shared_weight.append(cast(nn.Parameter, base.weight))
                    base.weight = nn.Parameter(base.weight.data, requires_grad=base.weight.requires_grad)
            base.weight.data = merged
            self.merged_adapters.append(name)
        self._cached_weight = None

    def unmerge(self) -> None:
        """Take the base weight back as it was before the first merge, to the bit."""
        if self._unmerged_weight is not None:
            base = self._base()
            unmerged = self._unmerged_weight.to(base.weight.device, base.weight.dtype)
            if self._shared_weight:
                base.weight = self._shared_weight.pop()
            base.weight.data = unmerged
            self._unmerged_weight = None
            self.merged_adapters.clear()

    def __repr__(self) -> str:
        return "snella." + super().__repr__()
