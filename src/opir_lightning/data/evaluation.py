"""Evaluation sets: whole pictures with their degraded partners."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

from torch import Tensor
from torch.utils.data import Dataset

from opir_lightning.data.mixture import one_thread
from opir_lightning.data.pair_pixels import evaluation_pair
from opir_lightning.data.samples import ALL_HEARD, Sample
from opir_lightning.data.sources import Item, Source
from opir_lightning.data.store import ImageStore

VAL_SEVERITY = (0.3, 1.0)  # of the validation while and after training


class EvaluationSet(Dataset[Sample]):
    """Whole pictures with their degraded partners, always the same.

    Args:
        name: of the set, as in tables.
        source: where the pairs come from.
        items: its pictures.
        tasks: names of the task classes.
        store: decoded pictures.
        severity: lowest and highest; the pictures, in order, get evenly spaced ones. None: drawn by the degradation.
        centre: score only the centre square of this side; None: all of the picture.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        items: Sequence[Item],
        *,
        tasks: Sequence[str],
        store: ImageStore,
        severity: tuple[float, float] | None = None,
        centre: int | None = None,
    ) -> None:
        self.name, self.source, self.items, self.store = name, source, list(items), store
        self.label = list(tasks).index(source.task) if source.task in tasks else -1
        self.severity, self.centre = severity, centre

    def whole(self) -> EvaluationSet:
        """The same set with whole pictures."""
        other = copy(self)
        other.centre = None
        return other

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        severity = None
        if self.severity is not None:
            low, high = self.severity
            severity = low + (high - low) * (index / max(len(self.items) - 1, 1))
        item = self.items[index]
        with one_thread():
            degraded, clean = evaluation_pair(self.source, item, self.store, severity)
        if self.centre is not None:
            degraded, clean = _centre_square(degraded, self.centre), _centre_square(clean, self.centre)
        return Sample(degraded, clean, self.label, self.label >= 0, ALL_HEARD, item.name)


def _centre_square(image: Tensor, side: int) -> Tensor:
    height, width = image.shape[-2:]
    top, left = max(height - side, 0) // 2, max(width - side, 0) // 2
    return image[..., top : top + side, left : left + side]
