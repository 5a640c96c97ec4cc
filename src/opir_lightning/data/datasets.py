"""The training mixture and the evaluation sets as datasets, and the sampler that numbers the samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import NamedTuple

import albumentations as A
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from opir_lightning.data.images import ImageStore, to_tensor
from opir_lightning.data.sources import Item, Source, evaluation_pair, read_pair
from opir_lightning.types import Batch


class Sample(NamedTuple):
    """One pair; see `Batch`."""

    degraded: Tensor
    clean: Tensor
    task: int
    label_given: bool
    name: str


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one size into a batch."""
    return Batch(
        degraded=torch.stack([s.degraded for s in samples]),
        clean=torch.stack([s.clean for s in samples]),
        task=torch.tensor([s.task for s in samples]),
        label_given=torch.tensor([s.label_given for s in samples]),
        name=[s.name for s in samples],
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Loader workers run on one thread; the main process must sum in the same order when it makes samples itself."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Mixture(Dataset[Sample]):
    """Random crops from several sources, drawn by weight.

    The sample with the number n (n = epoch x samples per epoch + index) depends on (seed, n) alone: not on workers,
    ranks, order, or what was drawn before.

    Args:
        sources: by name, with their items.
        tasks: names of the task classes; the label is the position.
        store: decoded pictures.
        crop: side of the crops in pixels.
        seed: of the run.
        label_share: share of the samples for which the label may be used instead of the estimated code.
        jitter: brightness, contrast and saturation of a clean picture vary by up to this share before it is degraded.
            A few photographs are all alike in this; without it, any pale picture soon counts as hazy.
    """

    def __init__(
        self,
        sources: Mapping[str, tuple[Source, Sequence[Item]]],
        *,
        tasks: Sequence[str],
        store: ImageStore,
        crop: int,
        seed: int,
        label_share: float,
        jitter: float = 0.0,
    ) -> None:
        self.sources = list(sources.values())
        weights = np.array([source.weight for source, _ in self.sources], dtype=float)
        self.cumulative = np.cumsum(weights / weights.sum())
        self.labels = [list(tasks).index(source.task) for source, _ in self.sources]
        self.store, self.crop, self.seed, self.label_share = store, crop, seed, label_share
        both = {"degraded": "image"}
        self.augmentations = {
            "d4": A.Compose([A.D4(p=1)], additional_targets=both, seed=0),
            "flip": A.Compose([A.HorizontalFlip(p=0.5)], additional_targets=both, seed=0),
        }
        around = (1 - jitter, 1 + jitter)
        tone = A.ColorJitter(brightness=around, contrast=around, saturation=around, hue=(0, 0), p=0.5)
        self.tone = A.Compose([tone], seed=0) if jitter else None

    def __getitem__(self, number: int) -> Sample:
        random = np.random.default_rng(np.random.SeedSequence([self.seed, number]))
        # Rounding may leave the last cumulative weight a hair below 1.
        index = min(int(np.searchsorted(self.cumulative, random.random(), side="right")), len(self.sources) - 1)
        source, items = self.sources[index]
        item = items[int(random.integers(len(items)))]
        clean, degraded = self._crops(source, item, random)
        with _one_thread():
            clean_tensor = to_tensor(clean)
            if degraded is None:
                generator = torch.Generator().manual_seed(int(random.integers(2**63)))
                degraded_tensor = source.degrade(clean_tensor, item, generator, None)
                clean_tensor = self._centre(clean_tensor)
                degraded_tensor = self._centre(degraded_tensor)
            else:
                degraded_tensor = to_tensor(degraded)
        return Sample(
            degraded=degraded_tensor,
            clean=clean_tensor,
            task=self.labels[index],
            label_given=bool(random.random() < self.label_share),
            name=item.name,
        )

    def _crops(self, source: Source, item: Item, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
        """A random window with the source's margin around it, augmented; a small picture is mirrored at its border."""
        pair = [pixels for pixels in read_pair(item, self.store) if pixels is not None]
        side = self.crop + 2 * source.margin
        height, width = pair[0].shape[:2]
        if height < side or width < side:
            pad = ((0, max(side - height, 0)), (0, max(side - width, 0)), (0, 0))
            pair = [np.pad(pixels, pad, mode="symmetric") for pixels in pair]
            height, width = pair[0].shape[:2]
        top, left = random.integers(height - side + 1), random.integers(width - side + 1)
        pair = [pixels[top : top + side, left : left + side] for pixels in pair]
        if source.augmentation != "none":
            augment = self.augmentations[source.augmentation]
            augment.set_random_seed(int(random.integers(2**31)))
            out = augment(image=pair[0], **({"degraded": pair[1]} if len(pair) == 2 else {}))
            pair = [out["image"], *([out["degraded"]] if len(pair) == 2 else [])]
        if len(pair) == 2:
            return pair[0], pair[1]
        if self.tone is not None:
            self.tone.set_random_seed(int(random.integers(2**31)))
            pair = [self.tone(image=pair[0])["image"]]
        return pair[0], None

    def _centre(self, image: Tensor) -> Tensor:
        margin = (image.shape[-1] - self.crop) // 2
        return image[..., margin : margin + self.crop, margin : margin + self.crop].contiguous()


class SampleNumbers(Sampler[int]):
    """The numbers of each epoch's samples for one rank, from where a resumed run left off.

    Its length stays that of a whole epoch: the trainer counts the batches that were done before a resume as well.

    Args:
        count: samples of an epoch, over all ranks.
        epoch: the epoch that comes next.
        skip: samples of that epoch, over all ranks, that were used before a resume.
        rank, world: this process and how many there are; rank r takes every world-th number.
    """

    def __init__(self, *, count: int, epoch: int = 0, skip: int = 0, rank: int = 0, world: int = 1) -> None:
        self.count, self.epoch, self.rank, self.world = count, epoch, rank, world
        self._resumed_epoch, self._skip = epoch, skip

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        skip = self._skip if self.epoch == self._resumed_epoch else 0
        first = self.epoch * self.count
        return iter(range(first + skip + self.rank, first + self.count, self.world))

    def __len__(self) -> int:
        return self.count // self.world


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
        with _one_thread():
            degraded, clean = evaluation_pair(self.source, item, self.store, severity)
        if self.centre is not None:
            degraded, clean = _centre_square(degraded, self.centre), _centre_square(clean, self.centre)
        return Sample(degraded, clean, self.label, self.label >= 0, item.name)


def _centre_square(image: Tensor, side: int) -> Tensor:
    height, width = image.shape[-2:]
    top, left = max(height - side, 0) // 2, max(width - side, 0) // 2
    return image[..., top : top + side, left : left + side]
