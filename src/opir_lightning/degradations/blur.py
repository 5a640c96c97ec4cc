"""Blur: camera shake, motion, defocus and moving objects, which mix light and therefore act on linear light."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
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
    new_seed,
    numpy_generator,
    pick_severity,
    seeded,
)
from opir_lightning.degradations.blur_kernels import (
    defocus_kernel,
    gaussian_kernel,
    measured_kernel,
    motion_kernel,
    read_kernels,
    rolling_shake_kernels,
    shake_kernel,
)
from opir_lightning.degradations.colour import linear_to_srgb, srgb_to_linear
from opir_lightning.degradations.filters import convolve
from opir_lightning.errors import UserError

KNOTS = 5  # of the random field on each axis whose highest part is the moving object
EDGE = 0.15  # of the field's deviation: the object's outline fades over some pixels
LEAST = 0.01  # of the background is left behind an object, so that the place it leaves is not empty


class Layer(NamedTuple):
    """A part of the picture that moves as one.

    Attributes:
        kernel: ``(k, k)`` float32, k odd, sum 1.
        share: ``(H, W)`` float32, the part of each pixel's light that moves by this kernel; ``None`` is all.
    """

    kernel: np.ndarray
    share: np.ndarray | None = None


def blur(clean: Tensor, kernel: np.ndarray) -> Tensor:
    r"""Convolve the light of a picture with a kernel; not quantised.

    .. math:: I = \mathrm{sRGB}\big(k * \mathrm{sRGB}^{-1}(J)\big)

    Args:
        clean: ``(3, H, W)`` float32 sRGB values in [0, 1].
        kernel: ``(k, k)`` float32, k odd, sum 1. It is a convolution: a point of light becomes the kernel.

    Returns:
        ``(3, H, W)`` sRGB values. The border is reflected, the edge pixel not repeated.

    Raises:
        ValueError: the kernel is not square and odd.
    """
    # Above 11 x 11 OpenCV goes through a Fourier transform, which leaves black at -1e-8.
    return linear_to_srgb(convolve(srgb_to_linear(clean)[None], [kernel])[0].clamp(0, 1)).contiguous()


def move_layers(images: Tensor, layers: Sequence[Sequence[Layer]]) -> Tensor:
    r"""Average what an exposure sees of pictures whose parts move differently.

    .. math:: I = \frac{\sum_i k_i * (m_i J)}{\sum_i k_i * m_i}

    Args:
        images: ``(B, C, H, W)`` float32 light.
        layers: for each picture its kernels k and shares m. A single layer without a share is a convolution.

    Returns:
        ``(B, C, H, W)`` light in [0, 1].
    """
    alone = [i for i, parts in enumerate(layers) if len(parts) == 1]
    if len(alone) == len(layers):
        return convolve(images, [parts[0].kernel for parts in layers]).clamp_(0, 1)
    moved = torch.empty_like(images)
    if alone:
        moved[alone] = convolve(images[alone], [layers[i][0].kernel for i in alone])
    parts = [(i, part) for i, several in enumerate(layers) if len(several) > 1 for part in several]
    shares = torch.stack([_share_of(part, images) for _, part in parts])[:, None]
    weighed = torch.cat([images[[i for i, _ in parts]] * shares, shares], dim=1)
    sums = convolve(weighed, [part.kernel for _, part in parts])
    for i, several in enumerate(layers):
        if len(several) > 1:
            own, sums = sums[: len(several)].sum(dim=0), sums[len(several) :]
            torch.div(own[:-1], own[-1:].clamp_min(1e-6), out=moved[i])
    return moved.clamp_(0, 1)


def _share_of(layer: Layer, like: Tensor) -> Tensor:
    return like.new_ones(like.shape[-2:]) if layer.share is None else torch.from_numpy(layer.share).to(like.device)


class BlurDraw(NamedTuple):
    """What is drawn for one picture: its layers, whether sRGB values are averaged, and noise in units of white."""

    layers: tuple[Layer, ...]
    values: bool
    noise: float
    noise_seed: int


class Blur(Batched):
    """Blur from a sharp picture to strong shake, all over it or of an object in it.

    Args:
        size: side of the kernel of shake and motion in pixels, at severity 0 and 1; 1 is no blur.
        compact: the size of disks and Gaussians relative to ``size - 1``: they spread in two dimensions and destroy
            far more at the same width.
        motion_share, defocus_share, gaussian_share, measured_share: probabilities of the four; the rest is camera
            shake.
        kernels: picture files of measured kernels, or folders of them, for ``measured_share``. They are read once,
            and scaled to the size as the others are.
        turned: measured kernels are turned by any angle, and half of them mirrored.
        roll_share: probability that camera shake differs over the picture, because the camera rolls.
        roll: range of the movement of the picture's ends by roll, relative to that of the camera.
        object_share: probability that an object, an irregular part of the picture, moves by itself: straight and by
            the size stated, while everything else is blurred by up to as much.
        value_share: probability that sRGB values are averaged and not light, as in sets that average a film's frames
            as the camera stores them (Nah et al., CVPR 2017, publish GoPro both ways).
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
        measured_share: float = 0.0,
        kernels: Sequence[str | Path] | str | Path = (),
        turned: bool = True,
        roll_share: float = 0.15,
        roll: Range = (0.2, 1.0),
        object_share: float = 0.1,
        value_share: float = 0.25,
        noise_255: Range = (0.0, 1.5),
        severity: Range = (0.0, 1.0),
        quantise: bool = True,
    ) -> None:
        self.size = as_interval("size", size, low=1.0, high=255.0)
        self.compact = as_share("compact", compact)
        shares = {
            "motion_share": motion_share,
            "defocus_share": defocus_share,
            "gaussian_share": gaussian_share,
            "measured_share": measured_share,
        }
        self.kinds = {name.removesuffix("_share"): as_share(name, share) for name, share in shares.items()}
        if sum(self.kinds.values()) > 1 + 1e-9:
            raise UserError(
                f"blur: {', '.join(f'{name} {share:g}' for name, share in shares.items())} add up to more than 1; "
                "what is left of 1 is camera shake."
            )
        self.measured = read_kernels([kernels] if isinstance(kernels, str | Path) else kernels)
        if measured_share > 0 and not self.measured:
            raise UserError(f"blur: measured_share is {measured_share:g}, but kernels names no files of kernels.")
        self.turned = turned
        self.roll_share = as_share("roll_share", roll_share)
        self.roll = as_interval("roll", roll, low=0.0, high=10.0)
        self.object_share = as_share("object_share", object_share)
        self.value_share = as_share("value_share", value_share)
        self.noise_255 = as_interval("noise_255", noise_255, low=0.0, high=255.0)
        self.severity = as_severity(severity)
        self.quantise = quantise
        self.margin = math.ceil((max(self.size) - 1) / 2)

    def draw(self, height: int, width: int, *, generator: torch.Generator, severity: float | None = None) -> BlurDraw:
        """As :class:`~opir_lightning.degradations.base.Batched`."""
        rng = numpy_generator(generator)
        amount = pick_severity(severity, self.severity, rng)
        size = between(self.size, amount)
        apart, slower, angle = rng.random() < self.object_share, rng.random(), rng.uniform(0.0, 180.0)
        if apart:
            share = _object(height, width, rng)
            rest = self._kernel(1 + (size - 1) * slower, rng, generator)
            layers = [Layer(motion_kernel(size, angle=angle), share), Layer(rest, np.maximum(1 - share, LEAST))]
        else:
            layers = self._layers(height, width, size, rng, generator)
        values, noise = rng.random() < self.value_share, between(self.noise_255, rng.random()) * amount / 255
        return BlurDraw(tuple(layers), bool(values), noise, new_seed(generator))

    def _layers(
        self, height: int, width: int, size: float, rng: np.random.Generator, generator: torch.Generator
    ) -> list[Layer]:
        """One layer, or the three of a rolling camera."""
        rolls, roll, upright = rng.random() < self.roll_share, rng.uniform(*self.roll), rng.random() < 0.5
        kind = self._kind(rng)
        if kind != "shake" or not rolls:
            return [Layer(self._kernel(size, rng, generator, kind))]
        kernels = rolling_shake_kernels(size, roll=roll, generator=generator)
        place = np.linspace(-1.0, 1.0, height if upright else width, dtype=np.float32)
        place = np.broadcast_to(place[:, None] if upright else place, (height, width))
        shares = [np.maximum(-place, 0), 1 - np.abs(place), np.maximum(place, 0)]
        return [Layer(k.T.copy() if upright else k, share) for k, share in zip(kernels, shares, strict=True)]

    def _kind(self, rng: np.random.Generator) -> str:
        place = rng.random()
        for kind, share in self.kinds.items():
            if place < share:
                return kind
            place -= share
        return "shake"

    def _kernel(
        self, size: float, rng: np.random.Generator, generator: torch.Generator, kind: str | None = None
    ) -> np.ndarray:
        kind = self._kind(rng) if kind is None else kind
        angle, which, mirrored = rng.uniform(0.0, 360.0), rng.random(), rng.random() < 0.5
        compact = 1 + self.compact * (size - 1)
        if kind == "motion":
            return motion_kernel(size, angle=angle)
        if kind == "defocus":
            return defocus_kernel(compact)
        if kind == "gaussian":
            return gaussian_kernel(compact)
        if kind == "measured":
            kernel = self.measured[int(which * len(self.measured))]
            return measured_kernel(kernel, size, angle=angle * self.turned, mirrored=self.turned and mirrored)
        return shake_kernel(size, generator=generator)

    def apply(self, clean: Tensor, draws: Sequence[BlurDraw]) -> Tensor:
        """As :class:`~opir_lightning.degradations.base.Batched`."""
        values = torch.tensor([draw.values for draw in draws], device=clean.device)[:, None, None, None]
        some, every = any(draw.values for draw in draws), all(draw.values for draw in draws)
        image = clean if every else srgb_to_linear(clean)
        moved = move_layers(torch.where(values, clean, image) if some else image, [draw.layers for draw in draws])
        blurred = moved if every else linear_to_srgb(moved)
        blurred = torch.where(values, moved, blurred) if some else blurred
        for image, draw in zip(blurred, draws, strict=True):
            if draw.noise > 0:
                generator = seeded(draw.noise_seed, clean.device)
                image += draw.noise * torch.randn(image.shape, generator=generator, device=clean.device)
        return finish(blurred, quantise=self.quantise)


def _object(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Where an object is, ``(H, W)`` float32 in [0, 1]: the highest 15 to 50 % of a smooth random field, edges soft."""
    knots = rng.standard_normal((KNOTS, KNOTS), dtype=np.float32)
    field = cv2.resize(knots, (width, height), interpolation=cv2.INTER_CUBIC)
    level = np.quantile(field[:: max(height // 32, 1), :: max(width // 32, 1)], rng.uniform(0.5, 0.85))
    return np.asarray(((field - level) / EDGE + 0.5).clip(0, 1), dtype=np.float32)
