"""Hand-made numbers of a picture in which the degradations differ."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114
_SCALES = 3
_DIRECTIONS = 4
_PER_DIRECTION = 5
_LAGS = (1, 2, 3, 4, 6, 8)  # pixels; the kernels of the training's blur are up to 25 wide, most of them far less
_POWERS = (-2.0, -0.5, 0.5, 2.0)
_BLOCK = 4
STATISTICS = 27 + 3 * len(_POWERS) + 6 + _DIRECTIONS * len(_LAGS) + _SCALES * _DIRECTIONS * _PER_DIRECTION


def image_statistics(image: Tensor) -> Tensor:
    """Hand-made numbers in which the degradations differ; no gradient flows into the picture.

    Colours tell haze and low light (mean, deviation, dark channel, He et al., CVPR 2009); the distribution of the
    differences in four directions at three scales tells noise (heavy at the finest scale, the same in all directions),
    rain (skewed, in one direction), blur (light at the finest scale) and clean texture apart. The smoothest blocks tell
    how much noise there is where texture hides it elsewhere; the colours of noise go their own ways, those of texture
    together; and the autocorrelation of a blurred picture's Laplacian is nearly that of the kernel (Goldstein and
    Fattal, ECCV 2012): its size and direction. A small convolutional net needs far longer to find these out.

    Args:
        image: ``(B, 3, H, W)``, RGB in [0, 1], sides of at least 16.

    Returns:
        ``(B, STATISTICS)`` float32, of the order of one.
    """
    image = image.detach().float().clamp(0, 1)
    # Numbers, not a tensor of three: to hand one to a GPU, the host would wait for all that it has been given before.
    luma = image[:, :1] * _RED + image[:, 1:2] * _GREEN + image[:, 2:] * _BLUE
    parts = [
        _colour_statistics(image, luma),
        _fine_statistics(image, luma),
        _block_statistics(image, luma),
        _colour_correlations(image),
        _colour_correlations(halve(image)),
        _autocorrelations(_laplacian(luma)),
    ]
    scale = luma
    for level in range(_SCALES):
        if level:
            scale = halve(scale)
        parts.extend(_difference_statistics(d) for d in _differences(scale))
    return torch.cat(parts, dim=1)


def halve(x: Tensor) -> Tensor:
    """``F.avg_pool2d(x, 2)``, bit for bit, with its order of summation spelt out for whoever runs an exported model.

    The differences of grey 8-bit pictures at the coarser scales are quarters of a level, and many lie right on the
    threshold of 1.5 levels: summed in another order, a hundred times the rounding error comes out in the end.
    """
    height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
    upper, lower = x[..., 0:height:2, :width], x[..., 1:height:2, :width]
    return (upper[..., 0::2] + upper[..., 1::2] + lower[..., 0::2] + lower[..., 1::2]) / 4


def _colour_statistics(image: Tensor, luma: Tensor) -> Tensor:
    """Mean, deviation and extremes of the colours, dark channel, saturation, share of clipped pixels: 22 numbers."""
    smooth = F.avg_pool2d(image, 4)  # the extremes of single pixels only tell the noise
    chroma = smooth.amax(1) - smooth.amin(1)
    saturation = chroma / (smooth.amax(1) + 0.02)
    log_luma = luma.clamp_min(1 / 255).log()
    dark = -F.max_pool2d(-image.amin(1, keepdim=True), 7, stride=2)
    return torch.cat(
        [
            image.mean((2, 3)),
            image.std((2, 3)),
            smooth.amin((2, 3)),
            smooth.amax((2, 3)),
            dark.mean((2, 3)),
            dark.amax((2, 3)),
            (luma < 2.5 / 255).float().mean((2, 3)),
            (luma > 252.5 / 255).float().mean((2, 3)),
            (luma.mean((2, 3)) + 1e-3).log(),
            log_luma.mean((2, 3)),
            log_luma.std((2, 3)),
            torch.stack([chroma.mean((1, 2)), saturation.mean((1, 2)), saturation.amax((1, 2))], dim=1),
        ],
        dim=1,
    )


def _fine_statistics(image: Tensor, luma: Tensor) -> Tensor:
    """Laplacian of the luminance and of a colour difference at the finest scale: 5 numbers."""
    laplacian = _laplacian(luma).abs()
    chroma = image[:, :1] - image[:, 1:2]  # texture is mostly grey, sensor noise is not
    chroma_difference = (chroma[..., 1:] - chroma[..., :-1]).abs()
    mean = laplacian.mean((2, 3))
    return torch.cat(
        [
            (mean + 1e-3).log(),
            ((laplacian.square().mean((2, 3)) + 1e-8).sqrt() + 1e-3).log(),
            (laplacian < 0.3 * mean[..., None, None]).float().mean((2, 3)),
            (chroma_difference.mean((2, 3)) + 1e-3).log(),
            (chroma_difference < 1.5 / 255).float().mean((2, 3)),
        ],
        dim=1,
    )


def _laplacian(x: Tensor) -> Tensor:
    """What a pixel has more than its four neighbours on average; ``(B, C, H, W)`` to ``(B, C, H - 2, W - 2)``."""
    around = x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]
    return x[..., 1:-1, 1:-1] - around / 4


def _block_statistics(image: Tensor, luma: Tensor) -> Tensor:
    """Deviation within blocks of brightness and two colour differences, averaged in several powers: 12 numbers.

    The power -2 asks the smoothest blocks, where there is nothing but noise, the power 2 the strongest edges.
    """
    planes = torch.cat([luma, image[:, :1] - image[:, 1:2], image[:, 2:] - image[:, 1:2]], dim=1)
    height, width = (side // _BLOCK * _BLOCK for side in planes.shape[-2:])
    blocks = F.pixel_unshuffle(planes[..., :height, :width], _BLOCK).unflatten(1, (3, _BLOCK**2))
    variance = (blocks - blocks.mean(2, keepdim=True)).square().mean(2).flatten(2) + (0.2 / 255) ** 2
    return torch.cat([variance.pow(power / 2).mean(2).log() / power for power in _POWERS], dim=1)


def _colour_correlations(image: Tensor) -> Tensor:
    """Correlation of the Laplacians of each two colours: 3 numbers in [-1, 1]."""
    red, green, blue = _laplacian(image).unbind(1)
    pairs = []
    for one, other in ((red, green), (green, blue), (red, blue)):
        scale = (one.square().mean((1, 2)) + 1e-8).sqrt() * (other.square().mean((1, 2)) + 1e-8).sqrt()
        pairs.append((one * other).mean((1, 2)) / scale)
    return torch.stack(pairs, dim=1)


def _autocorrelations(x: Tensor) -> Tensor:
    """Autocorrelation in four directions: 24 numbers in [-1, 1]."""
    power = x.square().mean((2, 3)) + 1e-8
    products = []
    for lag in _LAGS:
        products += [
            x[..., lag:] * x[..., :-lag],
            x[..., lag:, :] * x[..., :-lag, :],
            x[..., lag:, lag:] * x[..., :-lag, :-lag],
            x[..., lag:, :-lag] * x[..., :-lag, lag:],
        ]
    return torch.cat([product.mean((2, 3)) / power for product in products], dim=1)


def _differences(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Signed differences to the right, below, and along both diagonals."""
    return (
        x[..., 1:] - x[..., :-1],
        x[..., 1:, :] - x[..., :-1, :],
        x[..., 1:, 1:] - x[..., :-1, :-1],
        x[..., 1:, :-1] - x[..., :-1, 1:],
    )


def _difference_statistics(d: Tensor) -> Tensor:
    """Shape of a distribution of differences: scale, small shares, asymmetry, heaviness of the tail."""
    size = d.abs()
    mean = size.mean((2, 3))
    rms = (d.square().mean((2, 3)) + 1e-8).sqrt()
    return torch.cat(
        [
            (mean + 1e-3).log(),
            (size < 0.3 * mean[..., None, None]).float().mean((2, 3)),
            (size < 1.5 / 255).float().mean((2, 3)),
            (d.pow(3).mean((2, 3)) / rms.pow(3)).clamp(-5, 5),
            mean / rms,
        ],
        dim=1,
    )
