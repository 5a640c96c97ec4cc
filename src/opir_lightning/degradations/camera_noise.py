"""The noise of a camera's files: as deep as its tone curve makes it, and in grains, where a sensor's noise is white."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from opir_lightning.degradations.filters import gaussian_taps, soften

# Slope of the sRGB curve at mid grey, 1.055 / 2.4 * L ** (1 / 2.4 - 1), where the light is 0.2140.
MID_GREY_LIGHT, MID_GREY_SLOPE = 0.2140, 1.0803


class Camera(NamedTuple):
    """How a camera treats the noise of its sensor.

    Attributes:
        gains: white balance, red, green and blue: the weaker a colour's light, the more its noise is amplified.
        contrast: part of the tone curve that is a smooth step, from 0 (the sRGB curve) to 1; it flattens the ends,
            where noise then shows less.
        luma_share: part of the variance that all three colours have in common. White noise has a third.
        luma, chroma: deviation in pixels of the Gaussian that makes the grain of brightness and of colour.
        blotch_share: part of the variance that is far coarser, as from noise reduction and JPEG.
        blotch: deviation in pixels of that.
    """

    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)
    contrast: float = 0.0
    luma_share: float = 1 / 3
    luma: float = 0.0
    chroma: float = 0.0
    blotch_share: float = 0.0
    blotch: float = 0.0


STEEPEST = 4.5  # of the curve that a camera applies at black, that of Rec. 709


def noise_levels(sigma_255: float, read_share: float, camera: Camera) -> np.ndarray:
    r"""Deviation of a camera's noise at each of the 256 grey levels, the noise level function.

    .. math:: \sigma_c(T(L)) = T'(L) \sqrt{a\, g_c L + b\, g_c^2}, \qquad T = (1-k)\, s + k\, s^2 (3 - 2 s), \;
        s = \mathrm{sRGB}(L)

    The slope of the sRGB curve counts as 4.5 at most: with its 12.92 the noise of blacks would be twice that of mid
    grey, and it is less than that in PolyU.

    Args:
        sigma_255: root mean square of the three colours' deviations at grey level 127.5, in grey levels.
        read_share: part of the variance there that is read noise (b) and not shot noise (a), in [0, 1].
        camera: its gains g and contrast k are used.

    Returns:
        ``(3, 256)`` float32, in units of white.

    Source: Liu, Szeliski, Kang, Zitnick and Freeman, IEEE TPAMI 2008; the noise is Foi's, IEEE TIP 2008.
    """
    k, fine = camera.contrast, np.linspace(0.0, 1.0, 1025)
    # The last of these is the level that the deviation is stated for.
    encoded = np.interp([*np.linspace(0.0, 1.0, 256), 0.5], (1 - k) * fine + k * fine**2 * (3 - 2 * fine), fine)
    light = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    slope = np.minimum(STEEPEST, 1.055 / 2.4 * np.maximum(light, 1e-9) ** (1 / 2.4 - 1))
    slope *= 1 - k + 6 * k * encoded * (1 - encoded)
    gains = np.array(camera.gains)[:, None]
    levels = slope * np.sqrt((1 - read_share) * gains * light / MID_GREY_LIGHT + read_share * gains**2)
    scale = sigma_255 / 255 / np.sqrt(np.mean(levels[:, -1] ** 2))
    return np.asarray(levels[:, :-1] * scale, dtype=np.float32)


def grain(noise: Tensor, camera: Camera) -> Tensor:
    """White noise as it looks after demosaicing, noise reduction and compression: coarse, and coarser in colour.

    Args:
        noise: ``(3, H, W)`` float32, the three colours independent, of any deviation that varies slowly.
        camera: its shares and the sizes of grains are used.

    Returns:
        ``(3, H, W)``: the variance is kept on average over the colours.
    """
    wide = gaussian_taps(max(camera.blotch, camera.luma, camera.chroma))
    blotches = soften(noise, wide) if camera.blotch_share > 0 else torch.zeros_like(noise)
    grey, grey_blotches = noise.mean(dim=0, keepdim=True), blotches.mean(dim=0, keepdim=True)
    luma = _mixed(grey, grey_blotches, gaussian_taps(camera.luma), wide, camera.blotch_share)
    chroma = _mixed(noise - grey, blotches - grey_blotches, gaussian_taps(camera.chroma), wide, camera.blotch_share)
    return luma * (3 * camera.luma_share) ** 0.5 + chroma * (1.5 * (1 - camera.luma_share)) ** 0.5


def _mixed(noise: Tensor, blotches: Tensor, taps: np.ndarray, wide: np.ndarray, share: float) -> Tensor:
    """The noise filtered by ``taps``, and its blotches, weighed so that the sum has the deviation of the noise."""
    pad = (len(wide) - len(taps)) // 2
    # Energies of the two-dimensional filters, and what they share.
    own, wide_own, shared = (float(a @ b) ** 2 for a, b in ((taps, taps), (wide, wide), (np.pad(taps, pad), wide)))
    weight, wide_weight = ((1 - share) / own) ** 0.5, (share / wide_own) ** 0.5
    total = (1 + 2 * weight * wide_weight * shared) ** 0.5
    return soften(noise, taps) * (weight / total) + blotches * (wide_weight / total)


def add_camera_noise(
    clean: Tensor, *, sigma_255: float, read_share: float, camera: Camera, generator: torch.Generator
) -> Tensor:
    """The noise of a camera's file: `noise_levels` deep, and in `grain`; neither clipped nor quantised.

    Args:
        clean: ``(3, H, W)`` float32 sRGB values in [0, 1], on the generator's device.
        sigma_255: deviation at mid grey in 8-bit grey levels.
        read_share: part of its variance that is read noise, in [0, 1].
        camera: how it treats the noise.
        generator: the only source of randomness.
    """
    levels = torch.from_numpy(noise_levels(sigma_255, read_share, camera)).to(clean.device)
    at = (clean.clamp(0, 1) * 255).round_().long()
    deviation = torch.stack([row.take(index) for row, index in zip(levels, at, strict=True)])
    white = torch.randn(clean.shape, generator=generator, dtype=clean.dtype, device=clean.device)
    return clean + grain(deviation * white, camera)
