"""What taking haze off does to a picture varies slowly over it, because haze does.

By the scattering model, I = J t + A (1 - t), a clear picture is an affine function of the hazy one wherever the
transmission t is the same, and t changes with the distance alone. A network that estimates both anew for every pixel
draws bands into a sky that shows nothing. So what it made of a hazy picture is replaced by the affine functions that
come nearest to it around every pixel: a guided filter, whose guide is the picture itself, on small copies of both.

And it is kept to what haze can do: t is at most 1, so that contrast never shrinks, and no air is brighter than white,
so that what got darker gained contrast. A network that is wrong about fog against the light leaves it dark and flat.

Scores are computed without it: it belongs to the files that people look at, as rounding does.

Sources: He, Sun and Tang, Guided Image Filtering, TPAMI 2013; on small copies: He and Sun, arXiv 1505.00996.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from opir_lightning.errors import UserError
from opir_lightning.types import Code, Task

HazeMode = Literal["smooth", "raw"]

LONGEST = 256  # cells on the longer side of the small copies
REACH = 1 / 16  # of the longer side: half a window. See experiments/five_task
FLAT = 1e-4  # variance below which a window says little about what became of its contrast
DENSEST = 4.0  # contrast that is gained at most where haze asks for it: a transmission of a quarter
LEAST = 0.02  # share of haze in the code below which nothing is done


def check_haze(haze: str) -> None:
    """Raise `UserError` unless it is ``"smooth"`` or ``"raw"``."""
    if haze not in get_args(HazeMode):
        raise UserError(f"haze is '{haze}'; use one of {', '.join(get_args(HazeMode))}.")


class SmoothHaze:
    """The affine functions of one picture: shown both pictures some rows at a time, then applied alike.

    Args:
        height, width: of the picture, in pixels.
        share: of haze in its code, in [0, 1]: how far a result goes from the network's to the smooth one.
        reach: half a window, as a part of the longer side.
    """

    def __init__(self, height: int, width: int, share: float, *, reach: float = REACH) -> None:
        self.share, self.reach = share, reach
        self.step = -(-max(height, width) // LONGEST)
        self._sums = torch.zeros(2, 3, -(-height // self.step), -(-width // self.step))
        self._counts = torch.zeros(self._sums.shape[2])
        self._fitted: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(
        cls, tasks: Sequence[str], code: Code, height: int, width: int, *, reach: float = REACH
    ) -> SmoothHaze | None:
        """For a picture with this code; None if haze is not what it suffers from."""
        share = code.task[0, list(tasks).index(Task.HAZE)].item() if Task.HAZE in tasks else 0.0
        return cls(height, width, share, reach=reach) if share >= LEAST else None

    def watch(self, rows: slice, image: Tensor, restored: Tensor) -> None:
        """Take rows ``(3, h, W)`` float32 of the picture and of what the network made of it; every row once."""
        cells = torch.arange(rows.start, rows.stop) // self.step
        for sums, part in zip(self._sums, (image, restored), strict=True):
            sums.index_add_(1, cells, F.avg_pool1d(part, self.step, ceil_mode=True))
        self._counts.index_add_(0, cells, torch.ones(len(cells)))

    def smooth(self, rows: slice, image: Tensor, restored: Tensor) -> Tensor:
        """The same rows as they shall be, ``(3, h, W)`` float32, not clamped; after all rows have been watched."""
        if self._fitted is None:
            before, after = self._sums / self._counts[:, None]
            self._fitted = fit_affine(before, after, reach=max(1, round(self.reach * max(before.shape[1:]))))
        gain, offset = (self._between_cells(cells, rows, image.shape[2]) for cells in self._fitted)
        return restored + self.share * (gain * image + offset - restored)

    def _between_cells(self, cells: Tensor, rows: slice, width: int) -> Tensor:
        """Bilinear between the centres of the cells, for these rows ``(3, h, width)``."""
        place = ((torch.arange(rows.start, rows.stop) + 0.5) / self.step - 0.5).clamp(0, cells.shape[1] - 1)
        above = place.floor().long()
        below = (above + 1).clamp(max=cells.shape[1] - 1)
        weight = (place - above)[:, None]
        mixed = cells[:, above] * (1 - weight) + cells[:, below] * weight
        return F.interpolate(mixed, scale_factor=float(self.step), mode="linear")[..., :width]


def fit_affine(before: Tensor, after: Tensor, *, reach: int) -> tuple[Tensor, Tensor]:
    r"""The affine functions that turn a hazy picture into the other, around every pixel.

    With means over a window, the gain is

    .. math:: g = \max\left(\frac{\mathrm{cov}(I, J) + e}{\mathrm{var}(I) + e},\ 1,\
        \frac{1 - \bar J}{1 - \bar I}\right)

    the last of which is at most 4 and counts where the window got darker: it is what the scattering model has with air
    of brightness 1. The offset leaves the mean of J as it is.

    Args:
        before, after: I and J, ``(C, H, W)`` float32; each channel has functions of its own.
        reach: half a window, in pixels; at the edges windows are smaller.

    Returns:
        Gain and offset, ``(C, H, W)`` each, means over the windows that a pixel is in.
    """
    mean_before, mean_after = _window_mean(before, reach), _window_mean(after, reach)
    variance = _window_mean(before * before, reach) - mean_before * mean_before
    covariance = _window_mean(before * after, reach) - mean_before * mean_after
    gain = ((covariance + FLAT) / (variance + FLAT)).clamp(min=1)
    of_white_air = ((1 - mean_after) / (1 - mean_before).clamp(min=0.01)).clamp(max=DENSEST)
    gain = torch.where(mean_after < mean_before, torch.maximum(gain, of_white_air), gain)
    offset = mean_after - gain * mean_before
    return _window_mean(gain, reach), _window_mean(offset, reach)


def _window_mean(values: Tensor, reach: int) -> Tensor:
    side = 2 * reach + 1
    rows = F.avg_pool2d(values, (side, 1), stride=1, padding=(reach, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, side), stride=1, padding=(0, reach), count_include_pad=False)
