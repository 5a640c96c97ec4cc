"""Noise: the Gaussian noise of the benchmarks, that of a sensor, and what is left of it in the files of a camera."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from opir_lightning.degradations.base import (
    Batched,
    Range,
    as_interval,
    as_severity,
    as_share,
    between,
    finish,
    log_between,
    new_seed,
    numpy_generator,
    pick_severity,
    seeded,
)
from opir_lightning.degradations.camera_noise import MID_GREY_LIGHT, MID_GREY_SLOPE, Camera, add_camera_noise
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
    return clean + _white(clean, generator) * (sigma_255 / 255)


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
        light: any shape, float32 linear light, at least 0, on the generator's device.
        electrons: N, the electrons that make white; positive. Less is noisier: the deviation at L is sqrt(L / N).
        read_electrons: sigma_r, deviation of the read noise in electrons.
        generator: the only source of randomness.

    Raises:
        UserError: ``electrons`` is not positive or ``read_electrons`` is negative.

    Source: the Poissonian-Gaussian model, Foi et al., IEEE TIP 2008.
    """
    if electrons <= 0 or read_electrons < 0:
        raise UserError(f"electrons must be positive and read_electrons >= 0, got {electrons:g} and {read_electrons:g}")
    counts = _poisson(light * electrons, generator)
    if read_electrons > 0:
        counts += read_electrons * _white(light, generator)
    return counts / electrons


def _white(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


FEW = 2.0  # electrons, below which the distribution is added up; above, 0.5 % of the probability at most is misplaced


def _poisson(mean: Tensor, generator: torch.Generator) -> Tensor:
    """Whole numbers of the Poisson distribution, alike on every device; three times as fast as numpy's on the CPU.

    A normal number z becomes the count by the first terms of Cornish and Fisher's expansion, which has the right mean,
    deviation (less a twelfth of the variance, which rounding adds) and skewness.
    """
    z = _white(mean, generator)
    counts = (mean + (mean - 1 / 12).clamp_min_(0).sqrt_() * z + (z * z - 1) / 6).round_().clamp_min_(0)
    few, mean, rank = mean < FEW, mean.clamp_max(FEW), torch.special.ndtr(z)
    if mean.device.type != "cpu":
        return torch.where(
            few, _add_up(torch.exp(-mean), mean, rank, torch.zeros_like(mean, dtype=torch.int8)).to(mean), counts
        )
    if bool(few.any()):  # a question that would make another device wait
        # numpy compares and adds three times as fast as torch.
        drawn = _add_up(torch.exp(-mean).numpy(), mean.numpy(), rank.numpy(), np.zeros(mean.shape, np.int8))
        np.copyto(counts.numpy(), drawn, where=few.numpy(), casting="unsafe")
    return counts


def _add_up(none: Any, mean: Any, rank: Any, counts: Any) -> Any:
    """The count whose place in the Poisson distribution is ``rank``, evenly distributed in [0, 1].

    All four are tensors, or all four are numpy arrays; ``none`` is the probability of 0. It, ``rank`` and ``counts``,
    which are whole numbers and begin at 0, are overwritten.
    """
    rank -= none
    counts += rank > 0
    for count in range(1, 12):  # more than 12 come once in 10 million pixels of mean 2
        none *= mean
        none *= 1 / count
        rank -= none
        counts += rank > 0
    return counts


def add_shot_noise(
    clean: Tensor, *, electrons: float, read_electrons: float = 0.0, generator: torch.Generator
) -> Tensor:
    """Signal-dependent noise of a sensor: :func:`sensor_noise` on the light that the sRGB values stand for.

    Args:
        clean: ``(C, H, W)`` float32 sRGB values in [0, 1], on the generator's device.
        electrons: electrons that make white. At mid grey (0.5), 26 look like sigma 25 of 255 and 650 like sigma 5.
        read_electrons: deviation of the read noise in electrons.
        generator: the only source of randomness.

    Returns:
        Same shape, sRGB values, not quantised; light below 0 continues on the straight part of the curve.
    """
    light = srgb_to_linear(clean.clamp(0, 1))
    return linear_to_srgb(sensor_noise(light, electrons=electrons, read_electrons=read_electrons, generator=generator))


def electrons_for_sigma(sigma_255: float, read_share: float) -> tuple[float, float]:
    """The sensor whose noise at mid grey has deviation ``sigma_255``, as ``(electrons, read_electrons)``.

    Args:
        sigma_255: deviation at sRGB 0.5 in 8-bit grey levels, positive.
        read_share: part of the variance at mid grey that is read noise, in [0, 1).
    """
    variance = (sigma_255 / 255 / MID_GREY_SLOPE) ** 2  # in light: L / N of shot noise and (r / N)^2 of read noise
    electrons = MID_GREY_LIGHT / (variance * (1 - read_share))
    return electrons, electrons * (variance * read_share) ** 0.5


class NoiseDraw(NamedTuple):
    """What is drawn for one picture; ``read_share`` is not for Gaussian noise, ``camera`` for a camera's only."""

    kind: Literal["gaussian", "sensor", "camera"]
    sigma_255: float
    read_share: float
    camera: Camera
    noise_seed: int


class Noise(Batched):
    """Mostly the Gaussian noise of the benchmarks, sometimes that of a sensor or of a camera's file.

    The ranges of a camera cover the 71 pairs of PolyU: their residual's deviation is 2.9 to 5.6 grey levels (10 to 90 %
    of them), the correlation of its brightness with the next pixel 0.41 to 0.68 and with the fourth 0.05 to 0.17, that
    of blue less brightness with the fourth 0.30 to 0.64; 0.68 to 0.86 of the variance is that of brightness.

    Args:
        sigma_255: deviation in 8-bit grey levels at severity 0 and at severity 1. Sensor noise has it at mid grey.
        shot_share: probability of a sensor's white noise instead of Gaussian noise.
        camera_share: probability of the correlated noise of a camera's file instead.
        camera_sigma_255: as ``sigma_255``, for a camera's file.
        read_share: range of the part of a sensor's noise at mid grey that is read noise, in [0, 0.9].
        white_balance: range of the gains of red and of blue relative to green, in equal ratios.
        contrast, luma_share, luma, chroma, blotch_share, blotch: ranges of what :class:`Camera` has of these names.
        severity: range that an unstated severity is drawn from, uniformly.
        quantise: 8 bits, Gaussian noise truncated as in the benchmarks, sensor noise rounded as a camera does.
    """

    def __init__(
        self,
        sigma_255: Range = (0.0, 55.0),
        *,
        shot_share: float = 0.1,
        camera_share: float = 0.25,
        camera_sigma_255: Range = (0.0, 20.0),
        read_share: Range = (0.0, 0.5),
        white_balance: Range = (1.0, 2.0),
        contrast: Range = (0.2, 1.0),
        luma_share: Range = (0.6, 0.9),
        luma: Range = (0.45, 0.8),
        chroma: Range = (1.2, 3.0),
        blotch_share: Range = (0.0, 0.2),
        blotch: Range = (2.0, 6.0),
        severity: Range = (0.0, 1.0),
        quantise: bool = True,
    ) -> None:
        self.sigma_255 = as_interval("sigma_255", sigma_255, low=0.0, high=255.0)
        self.camera_sigma_255 = as_interval("camera_sigma_255", camera_sigma_255, low=0.0, high=255.0)
        _check_units(max(self.sigma_255))
        _check_units(max(self.camera_sigma_255))
        self.shot_share = as_share("shot_share", shot_share)
        self.camera_share = as_share("camera_share", camera_share)
        if shot_share + camera_share > 1 + 1e-9:
            raise UserError(
                f"noise: shot_share {shot_share:g} and camera_share {camera_share:g} add up to more than 1; "
                "what is left of 1 is Gaussian noise."
            )
        self.read_share = as_interval("read_share", read_share, low=0.0, high=0.9)
        self.white_balance = as_interval("white_balance", white_balance, low=0.1, high=10.0)
        self.contrast = as_interval("contrast", contrast, low=0.0, high=1.0)
        self.luma_share = as_interval("luma_share", luma_share, low=0.0, high=1.0)
        self.luma = as_interval("luma", luma, low=0.0, high=10.0)
        self.chroma = as_interval("chroma", chroma, low=0.0, high=10.0)
        self.blotch_share = as_interval("blotch_share", blotch_share, low=0.0, high=1.0)
        self.blotch = as_interval("blotch", blotch, low=0.1, high=30.0)
        self.severity = as_severity(severity)
        self.quantise = quantise

    def draw(self, height: int, width: int, *, generator: torch.Generator, severity: float | None = None) -> NoiseDraw:
        """As :class:`~opir_lightning.degradations.base.Batched`."""
        rng = numpy_generator(generator)
        amount = pick_severity(severity, self.severity, rng)
        share = rng.random()
        kind: Literal["gaussian", "sensor", "camera"] = "gaussian"
        if share < self.shot_share + self.camera_share:
            kind = "sensor" if share < self.shot_share else "camera"
        sigma = between(self.camera_sigma_255 if kind == "camera" else self.sigma_255, amount)
        camera = self._camera(rng) if kind == "camera" else Camera()
        return NoiseDraw(kind, sigma, rng.uniform(*self.read_share), camera, new_seed(generator))

    def _camera(self, rng: np.random.Generator) -> Camera:
        return Camera(
            gains=(log_between(self.white_balance, rng.random()), 1.0, log_between(self.white_balance, rng.random())),
            contrast=rng.uniform(*self.contrast),
            luma_share=rng.uniform(*self.luma_share),
            luma=rng.uniform(*self.luma),
            chroma=rng.uniform(*self.chroma),
            blotch_share=rng.uniform(*self.blotch_share),
            blotch=log_between(self.blotch, rng.random()),
        )

    def apply(self, clean: Tensor, draws: Sequence[NoiseDraw]) -> Tensor:
        """As :class:`~opir_lightning.degradations.base.Batched`."""
        return torch.stack([self._damage(image, draw) for image, draw in zip(clean, draws, strict=True)])

    def _damage(self, clean: Tensor, draw: NoiseDraw) -> Tensor:
        if draw.sigma_255 == 0:
            return finish(clean, quantise=self.quantise)
        generator = seeded(draw.noise_seed, clean.device)
        if draw.kind == "sensor":
            electrons, read = electrons_for_sigma(max(draw.sigma_255, 0.01), draw.read_share)  # or counts leave floats
            noisy = add_shot_noise(clean, electrons=electrons, read_electrons=read, generator=generator)
        elif draw.kind == "camera":
            noisy = add_camera_noise(
                clean, sigma_255=draw.sigma_255, read_share=draw.read_share, camera=draw.camera, generator=generator
            )
        else:
            noisy = _add_gaussian(clean, draw.sigma_255, generator)
            if self.quantise:  # as in the benchmarks: clipped, then truncated (half a level darker on average)
                return (noisy * 255).clamp_(0, 255).floor_().div_(255)
        return finish(noisy, quantise=self.quantise)
