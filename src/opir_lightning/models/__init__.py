"""The restoration network and its parts."""

from opir_lightning.models.opir import OPIR

__all__ = ["OPIR"]
