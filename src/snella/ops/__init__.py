"""The same maths as `snella.delta`, fast and lean: every function here equals its definition."""

from snella.ops.drop_path import draw_drop_path
from snella.ops.product import Convolution, Linear, adapted_product
from snella.ops.rematerialize import is_transformed, recomputable, source_of, unwatch, watch
from snella.ops.selection import budget_threshold
from snella.ops.update import Factors, Form, adapted_weight

__all__ = [
    "Convolution",
    "Factors",
    "Form",
    "Linear",
    "adapted_product",
    "adapted_weight",
    "budget_threshold",
    "draw_drop_path",
    "is_transformed",
    "recomputable",
    "source_of",
    "unwatch",
    "watch",
]
