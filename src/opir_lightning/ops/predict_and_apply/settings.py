"""The plain values that every backend of ``predict_and_apply`` is given, and the projection that they share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Settings(NamedTuple):
    """Options of one call, checked.

    Attributes:
        kernel_size: K.
        groups: G, 1 or the number of channels.
        dilations: D distances.
        padding: as in ``operator_conv``.
    """

    kernel_size: int
    groups: int
    dilations: list[int]
    padding: str

    @property
    def taps(self) -> int:
        """Rows of the prediction that are taps; behind them come the offsets, if there are any."""
        return self.groups * self.kernel_size**2


def project(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``weight @ features + bias`` for each pixel: ``(B, F, H, W)`` to ``(B, N, H, W)``."""
    flat = torch.baddbmm(bias[..., None], weight, features.flatten(2))
    return flat.unflatten(2, features.shape[-2:])
