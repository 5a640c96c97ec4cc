"""Predict one linear operator per pixel from features, and apply it, without storing it: ``predict_and_apply``."""

from __future__ import annotations

from opir_lightning.ops.predict_and_apply.dispatch import predict_and_apply

__all__ = ["predict_and_apply"]
