"""The same maths as `snella.delta`, fast and lean: every function here equals its definition."""

from snella.ops.drop_path import DropPathCall, draw_drop_path
from snella.ops.packed import FORMATS, is_packed, pack, unpacked
from snella.ops.product import Convolution, Linear, ProductCall, adapted_product
from snella.ops.rematerialize import recomputable, source_of, unwatch, watch
from snella.ops.sampling import draw_sample
from snella.ops.selection import budget_threshold
from snella.ops.update import Factors, UpdateSpec, adapted_weight, delta_by_definition, is_traced

__all__ = [
    "FORMATS",
    "Convolution",
    "DropPathCall",
    "Factors",
    "Linear",
    "ProductCall",
    "UpdateSpec",
    "adapted_product",
    "adapted_weight",
    "budget_threshold",
    "delta_by_definition",
    "draw_drop_path",
    "draw_sample",
    "is_packed",
    "is_traced",
    "pack",
    "recomputable",
    "source_of",
    "unpacked",
    "unwatch",
    "watch",
]
