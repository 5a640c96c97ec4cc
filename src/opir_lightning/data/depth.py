"""Depth maps as haze needs them."""

from __future__ import annotations

import numpy as np

FARTHEST = 20.0  # in units of the nearest: where disparity goes to 0 (the sky), depth would go to infinity


def relative_depth(values: np.ndarray, *, disparity: bool = False) -> np.ndarray:
    """Depth in units of the picture's mean depth.

    Args:
        values: ``(H, W)``, at least 0, any unit: depth, or disparity.
        disparity: near is large: depth is 1 / disparity, at most FARTHEST times that of the nearest point.

    Returns:
        ``(H, W)`` float32, mean 1.
    """
    depth = values.astype(np.float32)
    if disparity:
        depth = 1 / np.maximum(depth, depth.max() / FARTHEST)
    return depth / np.float32(depth.mean(dtype=np.float64))
