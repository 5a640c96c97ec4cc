"""Lightning wiring: module, callbacks, schedules."""

from opir_lightning.training.module import RestorationModule

__all__ = ["RestorationModule"]
