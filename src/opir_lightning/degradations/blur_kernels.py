"""Blur kernels: camera shake, straight motion, defocus, Gaussian. All sum to 1 and have their centroid in the middle.

A kernel is a ``(k, k)`` float32 array, k odd. Its ``size`` is a number of pixels and need not be whole: it is the
kernel's side, and at 1 every kernel is a single 1, so that blur can fade to nothing.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from opir_lightning.degradations.base import numpy_generator
from opir_lightning.errors import UserError


def _radius(size: float) -> float:
    if size < 1:
        raise UserError(f"a blur kernel of size {size:g} pixels; the size is the kernel's side, from 1 (no blur).")
    return (size - 1) / 2


def _from_path(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Let a point of light run along a path at its own pace; each position falls on its four nearest pixels.

    Sharing by bilinear weights keeps the centroid exactly where the path has it.
    """
    reach = math.ceil(radius - 1e-9)
    side = 2 * reach + 1
    x, y = x + reach, y + reach
    left, top = np.floor(x).clip(0, max(side - 2, 0)), np.floor(y).clip(0, max(side - 2, 0))
    if side == 1:
        return np.ones((1, 1), dtype=np.float32)
    right_share, low_share = x - left, y - top
    index = (top * side + left).astype(np.int64)
    corners = np.concatenate([index, index + 1, index + side, index + side + 1])
    weights = np.concatenate(
        [
            (1 - right_share) * (1 - low_share),
            right_share * (1 - low_share),
            (1 - right_share) * low_share,
            right_share * low_share,
        ]
    )
    kernel = np.bincount(corners, weights=weights, minlength=side * side).reshape(side, side)
    return (kernel / kernel.sum()).astype(np.float32)


def shake_kernel(size: float, *, generator: torch.Generator) -> np.ndarray:
    """Camera shake: the path of a hand that trembles while the shutter is open.

    Each axis is a straight drift plus four slow sine waves of random phase, amplitude falling with frequency; one axis
    is usually weaker, and both are turned by a random angle. The light dwells where the hand turns back, as in the
    measured kernels of Levin et al. (CVPR 2009), which are 13 to 27 pixels wide.

    Args:
        size: side of the kernel in pixels, at least 1: the path is scaled to touch it and not leave it.
        generator: the only source of randomness.
    """
    radius = _radius(size)
    rng = numpy_generator(generator)
    time = np.linspace(0.0, 1.0, 64 + 8 * math.ceil(size))
    frequency = np.array([0.4, 0.8, 1.4, 2.3])[:, None] * rng.uniform(0.7, 1.4, size=(2, 4, 1))
    amplitude = rng.normal(size=(2, 4, 1)) / frequency
    phase = rng.uniform(0.0, 2 * math.pi, size=(2, 4, 1))
    path = (amplitude * np.sin(2 * math.pi * frequency * time + phase)).sum(axis=1)
    path += rng.normal(0.0, 1.5, size=(2, 1)) * time
    path[1] *= rng.uniform(0.15, 1.0)
    turn = rng.uniform(0.0, 2 * math.pi)
    x = math.cos(turn) * path[0] - math.sin(turn) * path[1]
    y = math.sin(turn) * path[0] + math.cos(turn) * path[1]
    x, y = x - x.mean(), y - y.mean()
    scale = radius / max(np.abs(x).max(), np.abs(y).max(), 1e-9)
    return _from_path(x * scale, y * scale, radius)


def motion_kernel(size: float, *, angle: float) -> np.ndarray:
    """Straight, even motion over ``size - 1`` pixels; ``angle`` in degrees from the x axis, clockwise on the screen."""
    radius = _radius(size)
    step = np.linspace(-radius, radius, 4 * math.ceil(size) + 1)
    return _from_path(step * math.cos(math.radians(angle)), step * math.sin(math.radians(angle)), radius)


def defocus_kernel(size: float) -> np.ndarray:
    """The even disk of a lens out of focus, ``size`` pixels in diameter, its rim anti-aliased."""
    reach = math.ceil(_radius(size) - 1e-9)
    # Share of each pixel that is inside, from 5 x 5 points in it with a rim one fifth of a pixel soft.
    fine = (np.arange(5 * (2 * reach + 1)) - (5 * (2 * reach + 1) - 1) / 2) / 5
    distance = np.hypot(fine[:, None], fine[None, :])
    inside = np.clip((size / 2 - distance) * 5 + 0.5, 0, 1)
    disk = inside.reshape(2 * reach + 1, 5, 2 * reach + 1, 5).sum(axis=(1, 3))
    return (disk / disk.sum()).astype(np.float32)


def gaussian_kernel(size: float) -> np.ndarray:
    """Gaussian of deviation ``(size - 1) / 6``: three deviations fit into the kernel on either side."""
    radius = _radius(size)
    if radius < 1e-3:
        return np.ones((1, 1), dtype=np.float32)
    reach = math.ceil(radius - 1e-9)
    line = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (radius / 3)) ** 2)
    kernel = np.outer(line, line)
    return (kernel / kernel.sum()).astype(np.float32)
