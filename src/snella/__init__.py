"""Sparse fine-tuning of pre-trained vision models: kernelised updates that compete for a budget.

Importing this package registers the method with PEFT, so that `peft.get_peft_model` and
`peft.PeftModel.from_pretrained` know it.
"""

from snella.delta import delta_weight
from snella.integrations.combine import combine
from snella.integrations.diffusers import load_into_pipeline, unload_from_pipeline
from snella.integrations.lora import save_as_lora
from snella.integrations.trainer import AllocationCallback
from snella.tuner import SnellaConfig, SnellaModel, set_base_precision
from snella.version import __version__

__all__ = [
    "AllocationCallback",
    "SnellaConfig",
    "SnellaModel",
    "__version__",
    "combine",
    "delta_weight",
    "load_into_pipeline",
    "save_as_lora",
    "set_base_precision",
    "unload_from_pipeline",
]
