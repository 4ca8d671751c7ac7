"""The one PEFT tuner. Importing it makes PEFT know the method `SNELLA`."""

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType, register_peft_method

from snella.tuner.base_precision import set_base_precision
from snella.tuner.config import PEFT_TYPE, SnellaConfig
from snella.tuner.layer import SnellaLayer
from snella.tuner.model import SnellaModel

__all__ = ["SnellaConfig", "SnellaLayer", "SnellaModel", "set_base_precision"]


def _register() -> None:
    """Register with PEFT, once. Its enum of methods cannot be subclassed, so the member is made by hand."""
    if PEFT_TYPE not in PeftType.__members__:
        member = str.__new__(PeftType, PEFT_TYPE)
        member._name_ = PEFT_TYPE
        member._value_ = PEFT_TYPE
        type.__setattr__(PeftType, PEFT_TYPE, member)
        PeftType._member_names_.append(PEFT_TYPE)
        PeftType._member_map_[PEFT_TYPE] = member
        PeftType._value2member_map_[PEFT_TYPE] = member
    if PeftType(PEFT_TYPE) not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(name=PEFT_TYPE.lower(), config_cls=SnellaConfig, model_cls=SnellaModel)


_register()
