"""Filters with a kernel for each picture, by the library that is fast where the pixels are.

The border is reflected and the edge pixel not repeated, however small the picture is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def convolve(images: Tensor, kernels: Sequence[np.ndarray]) -> Tensor:
    """Convolve each picture with its own kernel: a point of light becomes the kernel.

    Args:
        images: ``(B, C, H, W)`` float32.
        kernels: B square float32 kernels of odd sides, which may differ.

    Returns:
        ``(B, C, H, W)``: by OpenCV on the CPU, several times faster there, by kornia elsewhere; to 1e-5
        the same.

    Raises:
        ValueError: a kernel is not square and odd.
    """
    for kernel in kernels:
        if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or kernel.shape[0] % 2 == 0:
            raise ValueError(f"expected a square kernel with an odd side, got {kernel.shape}")
    if images.device.type != "cpu":
        return convolve_together(images, kernels)
    return torch.stack([_by_opencv(image, kernel) for image, kernel in zip(images, kernels, strict=True)])


def _by_opencv(image: Tensor, kernel: np.ndarray) -> Tensor:
    if kernel.shape[0] == 1:
        return image * float(kernel[0, 0])
    flipped = np.ascontiguousarray(kernel[::-1, ::-1])  # filter2D correlates
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    filtered = cv2.filter2D(pixels, -1, flipped, borderType=cv2.BORDER_REFLECT_101)
    return torch.from_numpy(filtered.reshape(pixels.shape)).permute(2, 0, 1)


def convolve_together(images: Tensor, kernels: Sequence[np.ndarray]) -> Tensor:
    """As :func:`convolve`, all pictures in one call of kornia, on any device."""
    from kornia.filters import filter2d  # five seconds of import, for those who need it

    reach = max(kernel.shape[0] for kernel in kernels) // 2
    padded = np.stack([np.pad(kernel, reach - kernel.shape[0] // 2) for kernel in kernels])
    flipped = np.ascontiguousarray(padded[:, ::-1, ::-1], dtype=np.float32)  # filter2d correlates as well
    return filter2d(reflect_pad(images, reach), torch.from_numpy(flipped).to(images.device), padding="valid")


def reflect_pad(images: Tensor, reach: int) -> Tensor:
    """``reach`` pixels more on every side of ``(..., H, W)``; torch's own padding refuses more than the picture has."""
    for axis in (-2, -1):
        side = images.shape[axis]
        at = np.arange(-reach, side + reach) % max(2 * side - 2, 1)
        images = images.index_select(axis, torch.from_numpy(np.minimum(at, 2 * side - 2 - at)).to(images.device))
    return images


def gaussian_taps(deviation: float) -> np.ndarray:
    """A line of ``(k,)`` float64 with sum 1, k odd, three deviations to either side; a single 1 for deviation 0."""
    at = np.arange(-math.ceil(3 * deviation), math.ceil(3 * deviation) + 1)
    taps = np.exp(-0.5 * (at / max(deviation, 1e-6)) ** 2)
    return np.asarray(taps / taps.sum())


def soften(image: Tensor, taps: np.ndarray) -> Tensor:
    """Filter ``(C, H, W)`` float32 with the same symmetric taps along rows and columns."""
    if len(taps) == 1:
        return image
    if image.device.type != "cpu":
        return soften_by_torch(image, taps)
    planes = [cv2.sepFilter2D(plane, -1, taps, taps, borderType=cv2.BORDER_REFLECT_101) for plane in image.numpy()]
    return torch.from_numpy(np.stack(planes))


def soften_by_torch(image: Tensor, taps: np.ndarray) -> Tensor:
    """As :func:`soften`, on any device."""
    channels = image.shape[0]
    line = torch.from_numpy(taps).to(image).expand(channels, 1, 1, -1)
    soft = F.conv2d(reflect_pad(image, len(taps) // 2)[None], line, groups=channels)
    return F.conv2d(soft, line.transpose(2, 3), groups=channels)[0]
