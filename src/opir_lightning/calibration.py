"""Does the uncertainty map mean what it says: the error that it predicts against the true one, in bins."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Per decade of the predicted error four bins, from far below one 8-bit level to the whole range.
LOWEST, HIGHEST, PER_DECADE = 1e-4, 1.0, 4


class Bin(NamedTuple):
    """The pixels whose predicted error lies between two edges.

    Attributes:
        low, high: the edges, in image units; the first and the last bin also hold what lies beyond them.
        pixels: how many there are.
        predicted, true: their mean predicted and mean true error, in image units; NaN where there are none.
    """

    low: float
    high: float
    pixels: int
    predicted: float
    true: float


class Calibration:
    """Sums of predicted and true errors by bins of the predicted one, over any number of pictures.

    The bins are always the same, so that curves of different steps and runs can be compared. Nothing is read back from
    the device before the curve is asked for.
    """

    def __init__(self) -> None:
        decades = torch.tensor(HIGHEST / LOWEST, dtype=torch.float64).log10()
        self.edges = torch.logspace(0, float(decades), round(float(decades) * PER_DECADE) + 1, dtype=torch.float64)
        self.edges *= LOWEST
        self.sums = torch.zeros(3, len(self.edges) - 1, dtype=torch.float64)  # pixels, predicted, true

    def add(self, uncertainty: Tensor, error: Tensor) -> None:
        """Take part of the pixels of some pictures.

        Args:
            uncertainty: ``(B, 1, H, W)``, the predicted absolute error in image units.
            error: ``(B, 1, H, W)``, the true one; for RGB the mean over the colours, as the map is trained.

        Raises:
            ValueError: the shapes disagree.
        """
        if uncertainty.shape != error.shape:
            raise ValueError(f"expected maps of one shape, got {tuple(uncertainty.shape)} and {tuple(error.shape)}")
        predicted, true = (x.detach().double().flatten() for x in (uncertainty, error))
        self.sums, self.edges = self.sums.to(predicted.device), self.edges.to(predicted.device)
        place = torch.bucketize(predicted, self.edges[1:-1], right=True)
        self.sums.index_add_(1, place, torch.stack([torch.ones_like(predicted), predicted, true]))

    def merged(self, other: Calibration) -> Calibration:
        """The pixels of both."""
        both = Calibration()
        both.sums = self.sums.cpu() + other.sums.cpu()
        return both

    def curve(self) -> list[Bin]:
        """All bins, in rising order."""
        pixels, predicted, true = self.sums.cpu()
        edges = self.edges.tolist()
        means = torch.stack([predicted, true]) / pixels  # 0 / 0 is NaN
        return [
            Bin(edges[i], edges[i + 1], int(pixels[i]), float(means[0, i]), float(means[1, i]))
            for i in range(len(pixels))
        ]

    def error(self) -> float:
        r"""Expected calibration error in image units; NaN without pixels.

        .. math:: \sum_b \frac{n_b}{n} \left| \bar u_b - \bar e_b \right|

        Source: Naeini et al., AAAI 2015, there for probabilities.
        """
        pixels, predicted, true = self.sums.cpu()
        return float((predicted - true).abs().sum() / pixels.sum())
