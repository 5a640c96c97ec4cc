"""What a file does to any picture: most photographs that people have are JPEG, and so is the damage in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import torch
from torch import Tensor

from opir_lightning.degradations.base import (
    Batched,
    Degradation,
    Range,
    as_interval,
    as_share,
    check_image,
    numpy_generator,
)
from opir_lightning.errors import UserError

BLOCK = 16  # pixels: where colour has half the resolution, blocks of it are as large as four of brightness


class JpegDraw(NamedTuple):
    """What is drawn for one picture: the draw of the degradation, and the file: ``quality`` 0 is none.

    ``top`` and ``left`` are the place of the picture's corner in a block.
    """

    inner: Any
    quality: int
    halved: bool
    top: int
    left: int


def compress(image: Tensor, *, quality: int, halved: bool = True, top: int = 0, left: int = 0) -> Tensor:
    """A picture as it comes out of a JPEG file, by libjpeg.

    Args:
        image: ``(3, H, W)`` float32 RGB in [0, 1] on any device; the file is made on the CPU.
        quality: 1 to 100, as libjpeg counts it.
        halved: colour at half the resolution (4:2:0), as cameras and web sites do; otherwise 4:4:4.
        top, left: rows and columns of the first block that lie outside, as in a crop from a larger picture.

    Returns:
        ``(3, H, W)`` in [0, 1], 8-bit steps, on the same device.
    """
    height, width = image.shape[-2:]
    pixels = (image * 255).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    around = cv2.copyMakeBorder(pixels[..., ::-1], top, 0, left, 0, cv2.BORDER_REPLICATE)
    sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420 if halved else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    decoded = cv2.imdecode(cv2.imencode(".jpg", around, settings)[1], cv2.IMREAD_COLOR)
    assert decoded is not None
    cut = np.ascontiguousarray(decoded[top : top + height, left : left + width, ::-1])
    return torch.from_numpy(cut).permute(2, 0, 1).to(image).div_(255)


class Jpeg(Batched):
    """A degradation, and then for a share of the pictures a JPEG file of the result.

    Noise that went through a file is another: fine grain is gone, and what is left has the shape of blocks. A model
    that has never seen it takes it for texture. A picture that gets no file is what the degradation alone gives, bit
    for bit.

    Args:
        degradation: what comes before the file; a function of :class:`Degradation`'s form will do.
        share: probability of a file.
        quality: range of the file's quality, 1 to 100, drawn uniformly whatever the severity.
        halved_share: probability that the colours of a file have half the resolution.

    Attributes:
        margin, takes_depth, batched, severity: those of the degradation.
    """

    def __init__(
        self,
        degradation: Degradation,
        *,
        share: float = 1.0,
        quality: Range = (70.0, 98.0),
        halved_share: float = 0.7,
    ) -> None:
        if not callable(degradation):
            raise UserError(f"Jpeg got {degradation!r}; it needs a degradation, such as ${{degradations.noise}}.")
        self.degradation = degradation
        self.share = as_share("share", share)
        self.quality = as_interval("quality", quality, low=1.0, high=100.0)
        self.halved_share = as_share("halved_share", halved_share)
        self.margin = getattr(degradation, "margin", 0)
        self.takes_depth = bool(getattr(degradation, "takes_depth", False))
        self.batched = bool(getattr(degradation, "batched", False))
        if hasattr(degradation, "severity"):  # a function without one is given a severity by its source
            self.severity = degradation.severity

    def draw(
        self, height: int, width: int, *, generator: torch.Generator, severity: float | None = None, **picture: Any
    ) -> JpegDraw:
        """As :class:`~opir_lightning.degradations.base.Batched`; ``picture`` goes on to the degradation."""
        inner = cast(Batched, self.degradation).draw(height, width, generator=generator, severity=severity, **picture)
        return self._file(inner, generator)

    def _file(self, inner: Any, generator: torch.Generator) -> JpegDraw:
        if self.share == 0:  # drawing takes time
            return JpegDraw(inner, 0, False, 0, 0)
        rng = numpy_generator(generator)
        wanted, quality = rng.random() < self.share, round(rng.uniform(*self.quality))
        halved, (top, left) = rng.random() < self.halved_share, rng.integers(BLOCK, size=2).tolist()
        return JpegDraw(inner, quality if wanted else 0, bool(halved), top, left)

    def apply(self, clean: Tensor, draws: Sequence[JpegDraw]) -> Tensor:
        """As :class:`~opir_lightning.degradations.base.Batched`."""
        images = cast(Batched, self.degradation).apply(clean, [draw.inner for draw in draws])
        if any(draw.quality for draw in draws):
            images = torch.stack([_filed(image, draw) for image, draw in zip(images, draws, strict=True)])
        return images

    def __call__(
        self, clean: Tensor, *, generator: torch.Generator, severity: float | None = None, **picture: Any
    ) -> Tensor:
        """As :class:`~opir_lightning.degradations.base.Degradation`."""
        if self.batched:
            return super().__call__(clean, generator=generator, severity=severity, **picture)
        check_image(clean)
        image = self.degradation(clean, generator=generator, severity=severity, **picture)
        return _filed(image, self._file(None, generator))


def _filed(image: Tensor, draw: JpegDraw) -> Tensor:
    if not draw.quality:
        return image
    return compress(image, quality=draw.quality, halved=draw.halved, top=draw.top, left=draw.left)
