"""The code: what a picture suffers from, and how much, from statistics of a few native-resolution crops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opir_lightning.types import Code

_LUMA = (0.299, 0.587, 0.114)
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
    luma = (image * image.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    parts = [
        _colour_statistics(image, luma),
        _fine_statistics(image, luma),
        _block_statistics(image, luma),
        _colour_correlations(image),
        _colour_correlations(_halve(image)),
        _autocorrelations(_laplacian(luma)),
    ]
    scale = luma
    for level in range(_SCALES):
        if level:
            scale = _halve(scale)
        parts.extend(_difference_statistics(d) for d in _differences(scale))
    return torch.cat(parts, dim=1)


def _halve(x: Tensor) -> Tensor:
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


class Standardise(nn.Module):
    """Subtract the mean and divide by the deviation seen at the start of the training; ``(B, F)`` to the same shape.

    Batch normalisation would do in training what it does not do in use: with eight samples of six tasks a batch, its
    mean is another one in every step. An estimator that was trained so named severe haze with a probability of 0.4.

    Args:
        features: F.
        samples: after about this many samples mean and deviation stay as they are.
    """

    def __init__(self, features: int, samples: int = 4096) -> None:
        super().__init__()
        self.samples = samples
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("square", torch.ones(features))
        self.count: Tensor
        self.mean: Tensor
        self.square: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.count < self.samples:
            with torch.no_grad():
                self.count += len(x)
                share = len(x) / self.count
                self.mean += share * (x.mean(0) - self.mean)
                self.square += share * (x.square().mean(0) - self.square)
        deviation = (self.square - self.mean.square()).clamp_min(1e-4).sqrt()
        # Beyond five deviations lies what the training has not seen; the answer stays that of its border.
        return ((x - self.mean) / deviation).clamp(-5, 5)


class CodeEstimator(nn.Module):
    """Estimate the code of a picture from statistics of crops that look like the training crops.

    A downscaled copy would hide noise and blur, and the whole picture has other statistics than the crops of the
    training; so evenly spaced native-resolution crops are taken. Their severities are averaged. Their logits add up, as
    those of independent witnesses do: averaged, sixteen crops were no surer than one, and a fifth of another task's
    operator cost a hazy validation picture 1.5 dB and rain and low light 0.4 dB.

    Args:
        tasks: number of task classes T.
        severity_size: length S of the severity vector.
        crop: side of a crop in pixels; at most that of the training crops.
        crops_per_side: at most this many crops along each side of the picture.
        hidden: width of the two hidden layers.
    """

    def __init__(self, *, tasks: int, severity_size: int, crop: int, crops_per_side: int, hidden: int = 96) -> None:
        super().__init__()
        self.tasks, self.crop, self.crops_per_side = tasks, crop, crops_per_side
        self.outputs = tasks + severity_size
        self.norm = Standardise(STATISTICS)
        self.mlp = nn.Sequential(
            nn.Linear(STATISTICS, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, self.outputs),
        )

    def forward(self, image: Tensor, task: Tensor | None = None) -> Code:
        """Code of each picture.

        Args:
            image: ``(B, 3, H, W)``, RGB in [0, 1], any size.
            task: ``(B,)`` int64 task index where the degradation is known, -1 where it is to be estimated.

        Returns:
            The code; where a label is given, its task distribution is the label's one-hot vector.
        """
        if torch.compiler.is_exporting():
            crops, weights = crops_of_open_size(image, self.crop, self.crops_per_side)
            out = self.mlp(self.norm(image_statistics(crops)))
            out = out.view(len(weights), -1, out.shape[-1])
            total = (out * (weights > 0).to(out)[:, None, None]).sum(0)
            out = (out * weights[:, None, None]).sum(0)
        else:
            return self.hear(*native_crops(image, self.crop, self.crops_per_side), task)
        return self._code(total, out, task)

    def hear(self, crops: Tensor, per_image: int, task: Tensor | None = None) -> Code:
        """The code from crops that were cut elsewhere, for pictures that do not fit into memory.

        Args:
            crops: ``(per_image * B, 3, h, w)``, as `native_crops` orders them.
            per_image: number of crops of each picture.
            task: as in `forward`.
        """
        total = self.mlp(self.norm(image_statistics(crops))).view(per_image, -1, self.outputs).sum(0)
        return self._code(total, total / per_image, task)

    def windows(self, height: int, width: int) -> list[tuple[slice, slice]]:
        """Rows and columns of the crops that a picture of this size is judged by, in the order of `native_crops`."""
        rows, columns = (_starts(length, self.crop, self.crops_per_side) for length in (height, width))
        return [
            (slice(top, min(top + self.crop, height)), slice(left, min(left + self.crop, width)))
            for top in rows
            for left in columns
        ]

    def _code(self, total: Tensor, out: Tensor, task: Tensor | None) -> Code:
        """Sums of the logits, and means of everything, ``(B, T + S)`` each, to the code."""
        # Softsign and not sigmoid: that one was driven to its flat ends within 1,000 steps and never came back.
        logits, severity = total[:, : self.tasks], F.softsign(out[:, self.tasks :])
        distribution = logits.softmax(1)
        if task is not None:
            given = F.one_hot(task.clamp_min(0), self.tasks).to(distribution)
            distribution = torch.where((task >= 0)[:, None], given, distribution)
        return Code(task=distribution, severity=severity, task_logits=logits)


def native_crops(image: Tensor, side: int, per_side: int) -> tuple[Tensor, int]:
    """Evenly spaced crops at native resolution, corners included.

    Args:
        image: ``(B, 3, H, W)``.
        side: wished side of the crops; a smaller picture is taken whole, and one below 16 pixels is repeated at its
            edges up to 16, which the statistics need.
        per_side: at most this many along each side.

    Returns:
        ``(n * B, 3, h, w)``, crop by crop with the pictures inside, and n.
    """
    height, width = image.shape[-2:]
    if height < 16 or width < 16:
        image = F.pad(image, (0, max(16 - width, 0), 0, max(16 - height, 0)), mode="replicate")
        height, width = image.shape[-2:]
    rows, columns = _starts(height, side, per_side), _starts(width, side, per_side)
    crops = [image[..., top : top + side, left : left + side] for top in rows for left in columns]
    return torch.cat(crops), len(crops)


def _starts(length: int, side: int, most: int) -> list[int]:
    count = min(most, -(-length // side))
    if count == 1:
        return [max((length - side) // 2, 0)]
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def crops_of_open_size(image: Tensor, side: int, per_side: int) -> tuple[Tensor, Tensor]:
    """The crops of `native_crops` for a program that is to take pictures of many sizes: ``per_side ** 2``, always.

    Where `native_crops` takes fewer along a side, the last one is repeated with a weight of 0, so that the weighted sum
    is the mean. No branch and no number of operations depends on the size.

    Args:
        image: ``(B, 3, H, W)`` with sides of at least ``side``; a gather refuses smaller ones.
        side: of the crops, in pixels, at least 16.
        per_side: as in `native_crops`.

    Returns:
        ``(per_side ** 2 * B, 3, side, side)``, crop by crop with the pictures inside, and the weights
        ``(per_side ** 2,)``, which add up to 1.
    """
    counts = []
    for axis in (2, 4):  # the first turns one axis into two
        starts, counted = _starts_of_open_size(image.shape[axis], side, per_side, image.device)
        pixels = starts[:, None] + torch.arange(side, device=image.device)
        image = image.index_select(axis, pixels.flatten())
        image = image.unflatten(axis, (per_side, side))
        counts.append(counted.float() / counted.sum())
    crops = image.permute(2, 4, 0, 1, 3, 5).flatten(0, 2)
    return crops, (counts[0][:, None] * counts[1]).flatten()


def _starts_of_open_size(length: int, side: int, most: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`_starts` as ``(most,)`` int64, the last one repeated; and which of them count, ``(most,)`` bool."""
    size = torch.full((), length, dtype=torch.int64, device=device)
    index, count = torch.arange(most, device=device), ((size + side - 1) // side).clamp(max=most)
    room = (size - side).clamp(min=0)
    # float64 holds the quotient as Python does, and its rounding too goes to the even neighbour.
    spread = (torch.minimum(index, count - 1) * room).double() / (count - 1).clamp(min=1)
    return torch.where(count == 1, room // 2, spread.round().long()), index < count
