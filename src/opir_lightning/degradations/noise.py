"""Noise: the Gaussian noise of the benchmarks, and the shot and read noise of a sensor."""

from __future__ import annotations

import zlib

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
from opir_lightning.degradations.colour import linear_to_srgb, srgb_to_linear
from opir_lightning.errors import UserError


def _check_units(sigma_255: float) -> None:
    if sigma_255 < 0 or 0 < sigma_255 < 1:
        raise UserError(
            f"sigma_255 is in 8-bit grey levels (15, 25, 50 in the benchmarks), got {sigma_255:g}. "
            f"If you meant a [0, 1] value, pass sigma_255={abs(sigma_255) * 255:g}."
        )


def add_gaussian_noise(clean: Tensor, *, sigma_255: float, generator: torch.Generator) -> Tensor:
    """Add white Gaussian noise; the result is neither clipped nor quantised.

    Args:
        clean: ``(C, H, W)`` RGB in [0, 1], on the generator's device.
        sigma_255: standard deviation in 8-bit grey levels (15, 25, 50 in the benchmarks); 0 or at least 1.
        generator: the only source of randomness; global random state is neither read nor moved.

    Raises:
        UserError: ``sigma_255`` is negative, or so small that a [0, 1] value must have been meant.
    """
    _check_units(sigma_255)
    return _add_gaussian(clean, sigma_255, generator)


def _add_gaussian(clean: Tensor, sigma_255: float, generator: torch.Generator) -> Tensor:
    noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype, device=clean.device)
    return clean + noise * (sigma_255 / 255)


def benchmark_noise(image_u8: np.ndarray, *, sigma_255: float, name: str) -> np.ndarray:
    """The noisy input of a denoising test: sigma * N(0, 1) on the 8-bit values, clipped, truncated to 8 bits.

    The field's habit since DnCNN, with one fixed pattern per picture and for every sigma, so that everybody scores the
    same input. On CBSD68 the inputs score 24.83 / 20.54 / 15.00 dB at sigma 15 / 25 / 50.

    Args:
        image_u8: ``(H, W, 3)`` uint8.
        sigma_255: standard deviation in 8-bit grey levels, 0 or at least 1.
        name: what the pattern hangs on: the file's name without its folder.

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        UserError: ``sigma_255`` is not in 8-bit grey levels.
        ValueError: the picture is not ``(H, W, 3)`` uint8.
    """
    _check_units(sigma_255)
    if image_u8.dtype != np.uint8 or image_u8.ndim != 3 or image_u8.shape[2] != 3:
        raise ValueError(f"expected (H, W, 3) uint8, got {image_u8.shape} {image_u8.dtype}")
    # crc32 is fixed by its definition (hash() of a string differs between processes), and numpy promises that the
    # numbers of RandomState stay the same in all versions, which it does not for Generator.
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    noisy = image_u8 + sigma_255 * rng.standard_normal(image_u8.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def sensor_noise(light: Tensor, *, electrons: float, read_electrons: float = 0.0, generator: torch.Generator) -> Tensor:
    r"""Shot and read noise in linear light; neither clipped nor quantised.

    .. math:: L' = (\mathrm{Poisson}(N L) + \sigma_r\, n) / N, \qquad n \sim \mathcal N(0, 1)

    Args:
        light: any shape, float32 linear light on the CPU, at least 0.
        electrons: N, the electrons that make white; positive. Less is noisier: the deviation at L is sqrt(L / N).
        read_electrons: sigma_r, deviation of the read noise in electrons.
        generator: the only source of randomness.

    Raises:
        UserError: ``electrons`` is not positive or ``read_electrons`` is negative.

    Source: the Poissonian-Gaussian model, Foi et al., IEEE TIP 2008.
    """
    if electrons <= 0 or read_electrons < 0:
        raise UserError(f"electrons must be positive and read_electrons >= 0, got {electrons:g} and {read_electrons:g}")
    rng = numpy_generator(generator)
    counts = rng.poisson(light.numpy() * electrons).astype(np.float32)
    if read_electrons > 0:
        counts += np.float32(read_electrons) * rng.standard_normal(counts.shape, dtype=np.float32)
    return torch.from_numpy(counts / np.float32(electrons))


def add_shot_noise(
    clean: Tensor, *, electrons: float, read_electrons: float = 0.0, generator: torch.Generator
) -> Tensor:
    """Signal-dependent noise of a sensor: :func:`sensor_noise` on the light that the sRGB values stand for.

    Args:
        clean: ``(C, H, W)`` float32 sRGB values in [0, 1] on the CPU.
        electrons: electrons that make white. At mid grey (0.5), 26 look like sigma 25 of 255 and 650 like sigma 5.
        read_electrons: deviation of the read noise in electrons.
        generator: the only source of randomness.

    Returns:
        Same shape, sRGB values, not quantised; light below 0 continues on the straight part of the curve.
    """
    light = srgb_to_linear(clean.clamp(0, 1))
    return linear_to_srgb(sensor_noise(light, electrons=electrons, read_electrons=read_electrons, generator=generator))


# Slope of the sRGB curve at mid grey, 1.055 / 2.4 * L ** (1 / 2.4 - 1), where the light is 0.2140.
MID_GREY_LIGHT, MID_GREY_SLOPE = 0.2140, 1.0803


def electrons_for_sigma(sigma_255: float, read_share: float) -> tuple[float, float]:
    """The sensor whose noise at mid grey has deviation ``sigma_255``, as ``(electrons, read_electrons)``.

    Args:
        sigma_255: deviation at sRGB 0.5 in 8-bit grey levels, positive.
        read_share: part of the variance at mid grey that is read noise, in [0, 1).
    """
    variance = (sigma_255 / 255 / MID_GREY_SLOPE) ** 2  # in light: L / N of shot noise and (r / N)^2 of read noise
    electrons = MID_GREY_LIGHT / (variance * (1 - read_share))
    return electrons, electrons * (variance * read_share) ** 0.5


class Noise:
    """Mostly the Gaussian noise of the benchmarks, sometimes that of a sensor.

    Args:
        sigma_255: deviation in 8-bit grey levels at severity 0 and at severity 1. Sensor noise has it at mid grey.
        shot_share: probability of sensor noise instead of Gaussian noise.
        read_share: range of the part of a sensor's noise at mid grey that is read noise, in [0, 0.9].
        severity: range that an unstated severity is drawn from, uniformly.
        quantise: 8 bits, Gaussian noise truncated as in the benchmarks, sensor noise rounded as a camera does.
    """

    margin = 0

    def __init__(
        self,
        sigma_255: Range = (0.0, 55.0),
        *,
        shot_share: float = 0.2,
        read_share: Range = (0.0, 0.5),
        severity: Range = (0.0, 1.0),
        quantise: bool = True,
    ) -> None:
        self.sigma_255 = as_interval("sigma_255", sigma_255, low=0.0, high=255.0)
        _check_units(max(self.sigma_255))
        self.shot_share = as_share("shot_share", shot_share)
        self.read_share = as_interval("read_share", read_share, low=0.0, high=0.9)
        self.severity = as_severity(severity)
        self.quantise = quantise

    def __call__(self, clean: Tensor, *, generator: torch.Generator, severity: float | None = None) -> Tensor:
        """As :class:`~opir_lightning.degradations.base.Degradation`."""
        check_image(clean)
        rng = numpy_generator(generator)
        sigma = between(self.sigma_255, pick_severity(severity, self.severity, rng))
        shot, read_share = rng.random() < self.shot_share, rng.uniform(*self.read_share)
        if sigma == 0:
            return finish(clean, quantise=self.quantise)
        if shot:
            electrons, read = electrons_for_sigma(max(sigma, 0.01), read_share)  # below, counts leave 64 bits
            noisy = add_shot_noise(clean, electrons=electrons, read_electrons=read, generator=generator)
            return finish(noisy, quantise=self.quantise)
        if not self.quantise:
            return finish(_add_gaussian(clean, sigma, generator), quantise=False)
        # As in the benchmarks: clipped, then truncated (half a level darker on average).
        return (_add_gaussian(clean, sigma, generator) * 255).clamp_(0, 255).floor_().div_(255)
