"""One linear operator per pixel, applied at several dilations: ``operator_conv``."""

from __future__ import annotations

from opir_lightning.ops.operator_conv.dispatch import Backend, operator_conv
from opir_lightning.ops.operator_conv.padding import Padding

__all__ = ["Backend", "Padding", "operator_conv"]
