"""Floor 8½: `from_pretrained` of transformers runs a quantized checkpoint through qcore.

::

    from qcore.transformers import QcoreConfig

    model = AutoModelForCausalLM.from_pretrained(path, quantization_config=QcoreConfig())

or, for every checkpoint of a method that qcore knows, until it is switched off again::

    qcore.transformers.enable()
    model = AutoModelForCausalLM.from_pretrained(path)

Importing this module registers the method ``qcore`` with transformers, and nothing else changes
until one of the two asks for it (docs/adr/0009).
"""

from qcore.models.skeleton import import_transformers

import_transformers()

from qcore.transformers.config import QcoreConfig  # noqa: E402
from qcore.transformers.quantizer import QcoreQuantizer  # noqa: E402
from qcore.transformers.seam import (  # noqa: E402
    disable,
    enable,
    enabled,
    register,
    unregister,
)

register()

__all__ = [
    "QcoreConfig",
    "QcoreQuantizer",
    "disable",
    "enable",
    "enabled",
    "register",
    "unregister",
]
