"""Blur: camera shake, motion and defocus, which mix light and therefore act on linear light."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from torch import Tensor

from opir_lightning.degradations.base import (
    Range,
    as_interval,
    as_severity,
    as_share,
    between,
    check_image,
    finish,
    numpy_generator,
    pick_severity,
)
from opir_lightning.degradations.blur_kernels import defocus_kernel, gaussian_kernel, motion_kernel, shake_kernel
from opir_lightning.degradations.colour import linear_to_srgb, srgb_to_linear
from opir_lightning.errors import UserError


def blur(clean: Tensor, kernel: np.ndarray) -> Tensor:
    r"""Convolve the light of a picture with a kernel; not quantised.

    .. math:: I = \mathrm{sRGB}\big(k * \mathrm{sRGB}^{-1}(J)\big)

    Args:
        clean: ``(3, H, W)`` float32 sRGB values in [0, 1] on the CPU.
        kernel: ``(k, k)`` float32, k odd, sum 1. It is a convolution: a point of light becomes the kernel.

    Returns:
        ``(3, H, W)`` sRGB values. The border is reflected, the edge pixel not repeated.

    Raises:
        ValueError: the kernel is not square and odd.
    """
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or kernel.shape[0] % 2 == 0:
        raise ValueError(f"expected a square kernel with an odd side, got {kernel.shape}")
    if kernel.shape[0] == 1:
        return clean.clone()
    light = srgb_to_linear(clean).permute(1, 2, 0).contiguous().numpy()
    flipped = np.ascontiguousarray(kernel[::-1, ::-1])  # filter2D correlates
    blurred = cv2.filter2D(light, -1, flipped, borderType=cv2.BORDER_REFLECT_101)
    # Above 11 x 11 OpenCV goes through a Fourier transform, which leaves black at -1e-8.
    return linear_to_srgb(torch.from_numpy(blurred).permute(2, 0, 1).clamp(0, 1)).contiguous()


class Blur:
    """Blur from a sharp picture to strong shake.

    Args:
        size: side of the kernel of shake and motion in pixels, at severity 0 and 1; 1 is no blur.
        compact: the size of disks and Gaussians relative to ``size - 1``: they spread in two dimensions and destroy
            far more at the same width.
        motion_share, defocus_share, gaussian_share: probabilities of the three; the rest is camera shake.
        noise_255: range of the deviation of Gaussian noise after the blur, in 8-bit grey levels, at severity 1.
        severity: range that an unstated severity is drawn from, uniformly.
        quantise: round to 8 bits.

    Attributes:
        margin: radius of the largest kernel.
    """

    def __init__(
        self,
        size: Range = (1.0, 25.0),
        *,
        compact: float = 0.45,
        motion_share: float = 0.2,
        defocus_share: float = 0.25,
        gaussian_share: float = 0.05,
        noise_255: Range = (0.0, 1.5),
        severity: Range = (0.0, 1.0),
        quantise: bool = True,
    ) -> None:
        self.size = as_interval("size", size, low=1.0, high=255.0)
        self.compact = as_share("compact", compact)
        self.motion_share = as_share("motion_share", motion_share)
        self.defocus_share = as_share("defocus_share", defocus_share)
        self.gaussian_share = as_share("gaussian_share", gaussian_share)
        if motion_share + defocus_share + gaussian_share > 1 + 1e-9:
            raise UserError(
                f"blur: motion_share {motion_share:g}, defocus_share {defocus_share:g} and gaussian_share "
                f"{gaussian_share:g} add up to more than 1; what is left of 1 is camera shake."
            )
        self.noise_255 = as_interval("noise_255", noise_255, low=0.0, high=255.0)
        self.severity = as_severity(severity)
        self.quantise = quantise
        self.margin = math.ceil((max(self.size) - 1) / 2)

    def __call__(self, clean: Tensor, *, generator: torch.Generator, severity: float | None = None) -> Tensor:
        """As :class:`~opir_lightning.degradations.base.Degradation`."""
        check_image(clean)
        rng = numpy_generator(generator)
        amount = pick_severity(severity, self.severity, rng)
        kernel = self._kernel(between(self.size, amount), rng, generator)
        noise = between(self.noise_255, rng.random()) * amount / 255
        blurred = blur(clean, kernel)
        if noise > 0:
            blurred += noise * torch.randn(blurred.shape, generator=generator)
        return finish(blurred, quantise=self.quantise)

    def _kernel(self, size: float, rng: np.random.Generator, generator: torch.Generator) -> np.ndarray:
        kind, angle = rng.random(), rng.uniform(0.0, 180.0)
        compact = 1 + self.compact * (size - 1)
        if kind < self.motion_share:
            return motion_kernel(size, angle=angle)
        if kind < self.motion_share + self.defocus_share:
            return defocus_kernel(compact)
        if kind < self.motion_share + self.defocus_share + self.gaussian_share:
            return gaussian_kernel(compact)
        return shake_kernel(size, generator=generator)
