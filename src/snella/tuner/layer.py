"""The adapted layer: a frozen linear layer or convolution whose weight carries one sparse update per matrix."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import Any, cast

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from timm.layers import drop_path
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from snella.delta import kept_count
from snella.distributed.draws import dropout, whole_draws
from snella.errors import UserError
from snella.ops import (
    DropPathCall,
    Factors,
    ProductCall,
    adapted_product,
    draw_drop_path,
    draw_sample,
    is_traced,
    source_of,
    unpacked,
)
from snella.tuner.base_layers import (
    BaseLayer,
    Convolutional,
    as_weight,
    is_hooked,
    matrices,
    matrix_sizes,
    multiply,
    multiply_parts,
    out_first,
    put_weight,
    split_padding,
)
from snella.tuner.cached_weight import CachedWeight, is_cacheable, keep
from snella.tuner.config import SnellaConfig
from snella.tuner.scale import (
    Start,
    UpdateSettings,
    choose_scale,
    delta_of,
    draw_factors,
    less_start,
    saved_scales,
    update_settings,
)


class SnellaLayer(nn.Module, BaseTunerLayer):
    """A layer with y = x (W + scale · delta)ᵀ + bias, delta by active adapter (METHOD: `snella.delta`).

    The weight counts as S matrices (out/S, n) stacked along the out axis (which: `base_layers`). Parameters by adapter
    name: snella_A (S, H, n, r/H), snella_B (S, H, m/S, r/H), the scalars (S,) of kernel `mixk`, the integer budgets
    snella_kept (S,), and where it is relative the constant snella_scale.
    With `start="zero"` delta is less by what it was at the start, in the entries that it keeps now (snella_start).

    What the forward pass does, by the first line that fits:

        adapters to add                   while                     y
        none (1)                          any                       base(x)
        one, unscaled, with gradients (2) dropout, or hooks (3)     base(x) + fused product of the update alone
                                          else                      fused product of W + update
        others                            dropout or drop-path      base(x) + x updateᵀ for each adapter and matrix
                                          hooks (3)                 base(x) + x (sum of the updates)ᵀ
                                          else                      product of `weight`, in evaluation a cached one

    Dropout (on the update's x), drop-path and sampling of tokens for the update's gradient count in training only; a
    fused product does drop-path and sampling by itself, the others sample nothing.
    (1) No active adapter in this layer, or all are merged, or disabled, which unmerges them first.
    (2) And not traced, where `ops.is_traced` has the update made by its definition.
    (3) Of the base layer: its call does more than its class's forward, see `is_hooked`.
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
        self.snella_scale = BufferDict(persistent=True)  # 0-d, in SCALE_UNIT, of adapters whose constant is relative
        self.snella_start = BufferDict(persistent=True)  # (3,) `scale.Start`, of adapters whose update starts at zero
        self.register_load_state_dict_post_hook(SnellaLayer._use_saved_scales)
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self._unmerged_weight: Tensor | None = None
        self._cached_weight: CachedWeight | None = None
        self.tied = False  # whether another adapted layer has the same weight
        self._shared_weight: list[nn.Parameter] = []  # that weight while this layer's update is merged
        base: Any = self.get_base_layer()
        self.out_features, columns, *_ = out_first(base, base.weight).shape
        self.in_features: int = getattr(base, "in_channels", columns)
        self.cast_input_dtype_enabled = True  # PEFT's name, as the two before
        self.update_layer(adapter_name, config)

    def _use_saved_scales(self, _: object = None) -> None:
        """Use the constants that a state dict, or a copy into the buffers (DDP, averages of weights), has brought."""
        units = {name: cast(Tensor, units) for name, units in self.snella_scale.items()}
        for name, scale in saved_scales(units).items():
            settings = self.settings[name]
            self.settings[name] = replace(settings, spec=settings.spec._replace(scale=scale))
        self._cached_weight = None

    def get_base_layer(self) -> BaseLayer:
        """Return the innermost base layer, as PEFT does."""
        return cast(BaseLayer, super().get_base_layer())

    def kept(self, adapter_name: str) -> Tensor:
        """Return the budgets (S,), int64: entries that each matrix's update may have."""
        return cast(Tensor, self.snella_kept[adapter_name])

    def update_layer(self, adapter_name: str, config: SnellaConfig) -> None:
        """Add an adapter's factors, scalars and budgets to this layer. Raises UserError as `matrix_sizes` does."""
        base = self.get_base_layer()
        weight, width = base.weight, config.rank(self.name) // config.heads
        splits, rows, in_features = matrix_sizes(base, self.name, config.fused_splits)
        values = unpacked(weight.data if self._unmerged_weight is None else self._unmerged_weight)
        scale = choose_scale(config, out_first(base, values))
        if scale.units is not None:
            self.snella_scale[adapter_name] = torch.tensor(scale.units, device=weight.device)
        self.settings[adapter_name] = update_settings(config, self.name.rsplit(".", 1)[-1], scale)
        self.scaling[adapter_name] = 1.0
        self.snella_A[adapter_name] = nn.Parameter(torch.empty(splits, config.heads, in_features, width))
        self.snella_B[adapter_name] = nn.Parameter(torch.empty(splits, config.heads, rows, width))
        if config.kernel == "mixk":
            self.snella_alpha[adapter_name] = nn.Parameter(torch.full((splits,), float(config.init_alpha)))
            self.snella_gamma[adapter_name] = nn.Parameter(torch.ones(splits))
            self.snella_beta[adapter_name] = nn.Parameter(torch.zeros(splits))
        kept = kept_count(config.init_sparsity, rows * in_features)
        start = Start.drawn(scale.start, kept) if config.start == "zero" else None
        if start is not None:
            self.snella_start[adapter_name] = start.saved().to(weight.device)
        draw_factors(self.snella_A[adapter_name], self.snella_B[adapter_name], scale.start, start and start.seed)
        self.snella_kept[adapter_name] = torch.full((splits,), kept, dtype=torch.int64, device=weight.device)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter from this layer, as PEFT does."""
        for kept in (self.settings, self.scaling, self.snella_kept, self.snella_scale, self.snella_start):
            if adapter_name in kept:
                del kept[adapter_name]
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

    def tensor_names(self, adapter_name: str) -> list[str]:
        """Return the names of an adapter's tensors in this layer's state dict."""
        kinds = (*self.adapter_layer_names, "snella_kept", "snella_scale", "snella_start")
        return [f"{kind}.{adapter_name}" for kind in kinds if adapter_name in getattr(self, kind)]

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return not isinstance(self.get_base_layer(), Convolutional)  # PEFT converts no convolutions

    def matrix_names(self, adapter_name: str) -> list[str]:
        """Return the names of the S matrices: the layer's, with [0] … [S-1] behind where it holds several."""
        splits = len(self.kept(adapter_name))
        return [self.name] if splits == 1 else [f"{self.name}[{i}]" for i in range(splits)]

    def matrix_size(self, adapter_name: str) -> int:
        """Return the number of entries of each of the S matrices."""
        return self.get_base_layer().weight.numel() // len(self.kept(adapter_name))

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """Return `delta_matrices`, for transformers' Conv1D as its weight lies, (in, out): what PEFT expects."""
        delta = self.delta_matrices(adapter_name)
        return delta.mT if isinstance(self.get_base_layer(), Conv1D) else delta

    def delta_matrices(self, adapter_name: str) -> Tensor:
        """Return the update (out, n) of all S matrices times its scale, in at least fp32; differentiable."""
        factors, kept, settings = self._factors(adapter_name), self.kept(adapter_name), self.settings[adapter_name]
        delta = delta_of(factors, kept, settings)
        if adapter_name in self.snella_start:
            delta = less_start(delta, factors, kept, cast(Tensor, self.snella_start[adapter_name]), settings)
        scale = self.scaling[adapter_name]
        return delta if scale == 1 else scale * delta

    def _factors(self, adapter_name: str) -> Factors:
        A, B = self.snella_A[adapter_name], self.snella_B[adapter_name]
        if adapter_name not in self.snella_alpha:  # pwl
            return Factors(A, B, None, None, None)
        unit = self.settings[adapter_name].unit
        scalars = (by_adapter[adapter_name] for by_adapter in (self.snella_alpha, self.snella_gamma, self.snella_beta))
        return Factors(A, B, *(scalar if unit == 1 else unit * scalar for scalar in scalars))

    def _adapters_to_add(self) -> list[str]:
        """Return the active adapters whose update is not in the base weight; disabled ones are taken out of it."""
        if self.merged and self.disable_adapters:
            self.unmerge()
        if self.disable_adapters or self.merged:
            return []
        return [name for name in self.active_adapters if name in self.settings]

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The adapted weight W + scale · delta, in W's dtype and shape.

        Some models read it instead of calling the layer (timm's EVA and Swin v2 call F.linear with `qkv.weight`). In
        evaluation without gradients it is kept until a factor, a budget, a scale or W changes; see `cached_weight`.
        """
        names = self._adapters_to_add()
        base = self.get_base_layer().weight
        if not names:
            return base
        sources = self._sources(names)
        if self.training or torch.is_grad_enabled() or is_traced(base) or not is_cacheable(base, sources):
            return self.add_update(base, self.sum_of_updates(names))
        scales = [self.scaling[name] for name in names]
        cached = self._cached_weight
        if cached is None or not cached.is_current(base, sources, scales):
            self._cached_weight = cached = None  # not two copies at once
            adapted = self.add_update(base, self.sum_of_updates(names))
            self._cached_weight = cached = keep(adapted, base, sources, scales)
        return cached.weight

    def _sources(self, names: list[str]) -> list[Tensor]:
        """Return the tensors that the adapters' updates are made of."""
        by_adapters = [self.snella_kept, *(getattr(self, attribute) for attribute in self.adapter_layer_names)]
        return [by_adapter[name] for name in names for by_adapter in by_adapters if name in by_adapter]

    def sum_of_updates(self, names: list[str]) -> Tensor:
        """Return the sum (out, n) of the adapters' `delta_matrices`."""
        return reduce(torch.add, map(self.delta_matrices, names))

    def add_update(self, base: Tensor, delta: Tensor) -> Tensor:
        """Return a weight of the layer's shape, in its dtype, with an update (out, n) added in that of the update."""
        return (unpacked(base).to(delta.dtype) + as_weight(self.get_base_layer(), delta)).to(base.dtype)

    def train(self, mode: bool = True) -> SnellaLayer:
        """Set the mode, free the adapted weight that evaluation kept, and look at the constants' buffers again."""
        self._use_saved_scales()
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """Return y of x (b, ..., in) or (b, in, h, w), as the base layer gives it with the adapted weight."""
        names = self._adapters_to_add()
        if not names:
            return self.base_layer(x)
        if self.snella_A[names[0]].is_meta and not x.is_meta:
            raise UserError(f"{self.name}: its factors are offloaded and nothing fetches them; merge_and_unload first")
        drops_groups = self.training and self.settings[names[0]].drop_path and matrices(self.get_base_layer()) > 1
        plain = self.scaling[names[0]] == 1 and names[0] not in self.snella_start and not drops_groups
        if len(names) == 1 and plain and torch.is_grad_enabled() and not is_traced(x):
            return self._fused_product(x, names[0])
        if self.training and any(self.settings[name].dropout or self.settings[name].drop_path for name in names):
            y = self.base_layer(x)
            for name in names:
                y = y + self._regularised_update(x, name)
            return y
        if is_hooked(self.base_layer):  # whose weight may be elsewhere
            update = as_weight(self.get_base_layer(), self.sum_of_updates(names))
            return self.base_layer(x) + multiply(self.get_base_layer(), x, update.to(x.dtype), bias=False)
        return multiply(self.get_base_layer(), x, self.weight)

    def _fused_product(self, x: Tensor, name: str) -> Tensor:
        base, settings = self.get_base_layer(), self.settings[name]
        y, weight, bias = None, out_first(base, base.weight), base.bias
        drops = self.training and settings.dropout  # the update sees another x than the weight
        if drops or is_hooked(base):
            y, weight, bias = self.base_layer(x), None, None  # two products
        x = dropout(x, settings.dropout) if drops else x
        source = source_of(x) if settings.rematerialize else None
        x, product, padded = split_padding(base, x)
        share = settings.sample_tokens if self.training else None
        sample = None if share is None else draw_sample(share, x.device)
        call = ProductCall(settings.spec, product, base.weight.dtype, sample=sample)
        if self.training and settings.drop_path:
            drop = draw_drop_path(settings.drop_path, len(self.kept(name)), len(x), x.device)
            call = DropPathCall(settings.spec, product, base.weight.dtype, drop, sample=sample)
        update = adapted_product(
            *(x, weight, bias, self._factors(name), self.kept(name), call),
            source=None if padded else source,
            recompute_output=settings.rematerialize == "mlp" and y is None,
        )
        return update if y is None else y + update

    def _regularised_update(self, x: Tensor, adapter_name: str) -> Tensor:
        """Return x deltaᵀ with dropout on x and drop-path per sample, drawn for each matrix by itself."""
        settings, base = self.settings[adapter_name], self.get_base_layer()
        delta = as_weight(base, self.delta_matrices(adapter_name)).to(base.weight.dtype)
        with whole_draws():
            parts = multiply_parts(base, x, delta, len(self.kept(adapter_name)), settings.dropout)
            kept = [drop_path(part, settings.drop_path, training=True) for part in parts]
        return torch.cat(kept, dim=1 if isinstance(base, Convolutional) else -1)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put the active (or named) adapters' updates into the base weight, whose old tensor is kept for unmerge.

        Raises ValueError where `safe_merge` is asked for and the merged weight is not finite.
        """
        base = self.get_base_layer()
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.settings:
                continue
            merged = self.add_update(base.weight, self.sum_of_updates([name]))
            if safe_merge and not merged.isfinite().all():
                raise ValueError(f"adapter {name!r} makes the weight of {self.name} non-finite; it is not merged")
            if self._unmerged_weight is None:
                self._unmerged_weight = base.weight.data
                if self.tied:  # the other layers' weight has no part in this update
                    self._shared_weight.append(cast(nn.Parameter, base.weight))
                    base.weight = nn.Parameter(base.weight.data, requires_grad=base.weight.requires_grad)
            put_weight(base, merged)
            self.merged_adapters.append(name)
        self._cached_weight = None

    def unmerge(self) -> None:
        """Take the base weight back as it was before the first merge, to the bit."""
        if self._unmerged_weight is not None:
            base = self.get_base_layer()
            unmerged = self._unmerged_weight.to(base.weight.device, base.weight.dtype)
            if self._shared_weight:
                base.weight = self._shared_weight.pop()
            put_weight(base, unmerged)
            self._unmerged_weight = None
            self.merged_adapters.clear()

    def __repr__(self) -> str:
        return "snella." + super().__repr__()
