"""Blur kernels: camera shake, straight motion, defocus, Gaussian, and measured ones from files.

All sum to 1 and have their centroid in the middle.

A kernel is a ``(k, k)`` float32 array, k odd. Its ``size`` is a number of pixels and need not be whole: it is the
kernel's side, and at 1 every kernel is a single 1, so that blur can fade to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from opir_lightning.degradations.base import numpy_generator
from opir_lightning.errors import UserError


def _radius(size: float) -> float:
    if size < 1:
        raise UserError(f"a blur kernel of size {size:g} pixels; the size is the kernel's side, from 1 (no blur).")
    return (size - 1) / 2


def _from_path(x: np.ndarray, y: np.ndarray, radius: float, light: np.ndarray | None = None) -> np.ndarray:
    """Let a point of light run along a path at its own pace; each position falls on its four nearest pixels.

    Sharing by bilinear weights keeps the centroid exactly where the path has it. ``light`` is how much falls at each
    position; ``None`` is everywhere the same.
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
    if light is not None:
        weights *= np.tile(light, 4)
    kernel = np.bincount(corners, weights=weights, minlength=side * side).reshape(side, side)
    return (kernel / kernel.sum()).astype(np.float32)


def _shake_path(size: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times from 0 to 1, and the hand's position along x and y, of any scale."""
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
    return time, x, y


def shake_kernel(size: float, *, generator: torch.Generator) -> np.ndarray:
    """Camera shake: the path of a hand that trembles while the shutter is open.

    Each axis is a straight drift plus four slow sine waves of random phase, amplitude falling with frequency; one axis
    is usually weaker, and both are turned by a random angle. The light dwells where the hand turns back, as in measured
    kernels.

    Args:
        size: side of the kernel in pixels, at least 1: the path is scaled to touch it and not leave it.
        generator: the only source of randomness.
    """
    radius = _radius(size)
    _, x, y = _shake_path(size, numpy_generator(generator))
    x, y = x - x.mean(), y - y.mean()
    scale = radius / max(np.abs(x).max(), np.abs(y).max(), 1e-9)
    return _from_path(x * scale, y * scale, radius)


def rolling_shake_kernels(size: float, *, roll: float, generator: torch.Generator) -> list[np.ndarray]:
    """Camera shake with roll: the kernels at three places of a line across the picture.

    A camera that also turns about its axis moves the picture's ends in opposite directions; here the line is horizontal
    and the roll moves its ends up and down. The path is that of `shake_kernel`.

    Args:
        size: side of the largest of the kernels in pixels, at least 1.
        roll: movement of the ends by roll relative to that of the camera.
        generator: the only source of randomness.

    Returns:
        The kernels at the left end, in the middle and at the right end.

    Source: kernels that change over the picture in a few smooth steps: Hirsch et al., ICCV 2011.
    """
    radius = _radius(size)
    rng = numpy_generator(generator)
    time, x, y = _shake_path(size, rng)
    turning = np.sin(2 * math.pi * rng.uniform(0.3, 1.2) * time + rng.uniform(0.0, 2 * math.pi))
    x, y, turning = x - x.mean(), y - y.mean(), turning - turning.mean()
    turning *= roll * np.hypot(x, y).max() / max(np.abs(turning).max(), 1e-9)
    ends = [y - turning, y, y + turning]
    scale = radius / max(np.abs(x).max(), *(np.abs(end).max() for end in ends), 1e-9)
    return [_from_path(x * scale, end * scale, radius) for end in ends]


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


KERNEL_FILES = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")
KERNEL_KINDS = ("PNG", "BMP", "TIFF", "JPEG")
LARGEST_KERNEL = 1024  # pixels of a side; measured kernels have some hundred, most of them black


def read_kernels(paths: Sequence[str | Path]) -> list[np.ndarray]:
    """Measured kernels from picture files, bright where the light was; folders stand for the pictures in them.

    Returns:
        ``(k, k)`` float32 arrays, k odd: the smallest square around all that is not black, sum 1. The sort of a folder
        is by name.

    Raises:
        UserError: a path is not there, a folder has no pictures, or a file is no picture, or a black one.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        inside = (
            sorted(file for file in path.glob("*") if file.suffix.lower() in KERNEL_FILES) if path.is_dir() else [path]
        )
        if not inside:
            raise UserError(f"kernels: the folder '{path}' has no pictures ({', '.join(KERNEL_FILES)}).")
        files += inside
    return [_read_kernel(file) for file in files]


def _read_kernel(path: Path) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"kernels: '{path}' is not there; it needs picture files of kernels, or folders of them.")
    try:
        with Image.open(path, formats=KERNEL_KINDS) as image:  # the header
            if max(image.size) > LARGEST_KERNEL:
                raise UserError(f"kernels: '{path}' has more than {LARGEST_KERNEL} pixels on a side.")
        pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    except UserError:
        raise
    except Exception:  # decoders raise whatever a broken file leads them to
        pixels = None
    if pixels is None:
        raise UserError(f"kernels: '{path}' cannot be read as a picture.")
    rows, columns = np.nonzero(pixels)
    if not rows.size:
        raise UserError(f"kernels: '{path}' is black all over; a kernel is bright where the light was.")
    part = pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].astype(np.float64)
    side = max(part.shape) // 2 * 2 + 1
    top, left = ((side - length) // 2 for length in part.shape)
    square = np.zeros((side, side), dtype=np.float32)
    square[top : top + part.shape[0], left : left + part.shape[1]] = part / part.sum()
    return square


def measured_kernel(measured: np.ndarray, size: float, *, angle: float = 0.0, mirrored: bool = False) -> np.ndarray:
    """A measured kernel turned and scaled; its centroid moves to the middle.

    Args:
        measured: ``(k, k)``, at least 0, not all 0.
        size: side of the result in pixels, at least 1, as far as its light reaches.
        angle: degrees, clockwise on the screen.
        mirrored: left and right exchanged, before it is turned.
    """
    radius = _radius(size)
    rows, columns = np.nonzero(measured)
    light = measured[rows, columns].astype(np.float64)
    # Nine points for each pixel, so that a larger kernel has no holes.
    offset = np.array([-1 / 3, 0, 1 / 3])
    x = (columns[:, None, None] + offset[None, :, None] + np.zeros((1, 1, 3))).reshape(-1)
    y = (rows[:, None, None] + np.zeros((1, 3, 1)) + offset[None, None, :]).reshape(-1)
    light = np.repeat(light / light.sum() / 9, 9)
    x, y = x - (light @ x), y - (light @ y)
    if mirrored:
        x = -x
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x, y = cosine * x - sine * y, sine * x + cosine * y
    scale = radius / max(np.abs(x).max(), np.abs(y).max(), 1e-9)
    return _from_path(x * scale, y * scale, radius, light)
