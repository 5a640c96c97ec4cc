"""The training mixture as a dataset, and the sampler that numbers its samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.augmentations.geometric import functional as geometric
from albumentations.core.type_definitions import d4_group_elements
from torch.utils.data import Dataset, Sampler

from opir_lightning.data.curriculum import Curriculum
from opir_lightning.data.images import to_tensor
from opir_lightning.data.pair_pixels import read_pair
from opir_lightning.data.samples import ALL_HEARD, CleanSample, PairSample, Sample, centre
from opir_lightning.data.sources import CleanFolder, Item, Source
from opir_lightning.data.store import ImageStore
from opir_lightning.degradations.base import Batched, Range, as_interval, log_between
from opir_lightning.errors import UserError

TURNS = {"d4": d4_group_elements, "flip": ("e", "h"), "none": ("e",)}
"""The elements of the square's symmetry group that a crop may be turned by: all, the left-right flip, none."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Loader workers run on one thread; the main process must sum in the same order when it makes samples itself."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Mixture(Dataset[Sample | PairSample | CleanSample]):
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
        heard_alone: share of the samples whose code is estimated from one of their crops alone. The others then see a
            code that is not theirs, as the parts of a large picture do: a sky that of the dark below it.
        jitter: brightness, contrast and saturation of a clean picture vary by up to this share before it is degraded.
            A few photographs are all alike in this; without it, any pale picture soon counts as hazy.
        grey_share: share of the clean pictures whose colours are taken away before they are degraded.
        resize: range of the size that the crops of clean pictures are cut from, relative to the picture's own, in equal
            ratios. The pixels of a large photograph are softer, and hold less, than those of a small one.
        resize_share: share of the samples that are resized; the others are cut from the picture as it is, as are those
            with a depth map.
        curriculum: how severities and weights begin; None: as configured from the first sample.
        pending: hand out samples for `CollatePending`: pairs from files as bytes, a quarter of what there is to send.
        degrade_here: if not, and ``pending``, clean crops are handed out with what is drawn for them wherever the
            degradation can be applied to a batch.

    Raises:
        UserError: the curriculum names a source that is not there, or leaves none to begin with.
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
        heard_alone: float = 0.0,
        jitter: float = 0.0,
        grey_share: float = 0.0,
        resize: Range = 1.0,
        resize_share: float = 0.0,
        curriculum: Curriculum | None = None,
        pending: bool = False,
        degrade_here: bool = True,
    ) -> None:
        self.names, self.sources = list(sources), list(sources.values())
        self.weights = np.array([source.weight for source, _ in self.sources], dtype=float)
        self.cumulative = np.cumsum(self.weights / self.weights.sum())
        self.labels = [list(tasks).index(source.task) for source, _ in self.sources]
        self.store, self.crop, self.seed = store, crop, seed
        self.label_share, self.heard_alone, self.grey_share = label_share, heard_alone, grey_share
        self.resize, self.resize_share = as_interval("resize", resize, low=0.1, high=10.0), resize_share
        self.curriculum, self.pending, self.degrade_here = curriculum, pending, degrade_here
        self._check_curriculum()
        around = (1 - jitter, 1 + jitter)
        tone = A.ColorJitter(brightness=around, contrast=around, saturation=around, hue=(0, 0), p=0.5)
        self.tone = A.Compose([tone], seed=0) if jitter else None

    def batched(self) -> dict[int, Batched]:
        """Degradations that can be applied to a batch, by the number of their source."""
        found = {number: source.degradation for number, (source, _) in enumerate(self.sources)}
        return {number: each for number, each in found.items() if getattr(each, "batched", False)}  # type: ignore[misc]

    def __getitem__(self, number: int) -> Sample | PairSample | CleanSample:
        random = self._random(number)
        index = self._source(number, random.random())
        source, items = self.sources[index]
        item = items[int(random.integers(len(items)))]
        crops = self._crops(source, item, random, number)
        about = (self.labels[index], bool(random.random() < self.label_share), self._heard(number), item.name)
        if "degraded" in crops and self.pending:
            return PairSample(crops["degraded"], crops["image"], *about)
        if "degraded" in crops:
            return Sample(to_tensor(crops["degraded"]), to_tensor(crops["image"]), *about)
        severity = self._severity(source, number, random.random())
        generator = torch.Generator().manual_seed(int(random.integers(2**63)))
        depth = torch.from_numpy(np.ascontiguousarray(crops["depth"])) if "depth" in crops else None
        degradation = source.degradation
        if self.pending and not self.degrade_here and isinstance(degradation, Batched) and degradation.batched:
            more = {} if depth is None else {"depth": depth}
            side = crops["image"].shape[0]
            draw = degradation.draw(side, side, generator=generator, severity=severity, **more)
            return CleanSample(np.ascontiguousarray(crops["image"]), draw, index, *about)
        with one_thread():
            clean = to_tensor(crops["image"])
            degraded = source.degrade(clean, item, generator, severity, depth)
        return Sample(centre(degraded, self.crop), centre(clean, self.crop), *about)

    def source_of(self, number: int) -> str:
        """Name of the source that the sample with this number comes from."""
        return self.names[self._source(number, self._random(number).random())]

    def _heard(self, number: int) -> float:
        """As `Batch.heard`. Drawn apart, so that a run with this off has the samples that it had without it."""
        alone, place = np.random.default_rng(np.random.SeedSequence([self.seed, number, 1])).random(2)
        return float(place) if alone < self.heard_alone else ALL_HEARD

    def _random(self, number: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.seed, number]))

    def _source(self, number: int, drawn: float) -> int:
        cumulative = self.cumulative
        if self.curriculum is not None:
            weights = self.weights * [self.curriculum.factor(name, number) for name in self.names]
            cumulative = np.cumsum(weights / weights.sum())
        # Rounding may leave the last cumulative weight a hair below 1.
        return min(int(np.searchsorted(cumulative, drawn, side="right")), len(self.sources) - 1)

    def _severity(self, source: Source, number: int, drawn: float) -> float | None:
        """None leaves it to the degradation; after its end a curriculum does so too."""
        if self.curriculum is None or self.curriculum.position(number) == 1:
            return None
        low, high = getattr(source.degradation, "severity", (0.0, 1.0))
        return low + (high - low) * self.curriculum.severity(number, drawn)

    def _crops(self, source: Source, item: Item, random: np.random.Generator, number: int) -> dict[str, np.ndarray]:
        """A random window with the source's margin around it, augmented; a small picture is mirrored at its border.

        Returns:
            ``image``, and where there are such, ``degraded`` and ``depth``.
        """
        clean, degraded = read_pair(item, self.store)
        depth = source.depth(item, self.store)
        planes = {"image": clean, "degraded": degraded, "depth": depth}
        there = {name: pixels for name, pixels in planes.items() if pixels is not None}
        side = self.crop + 2 * source.margin
        height, width = clean.shape[:2]
        # Drawn apart, as who is heard: a run with this off has the samples that it had without it.
        apart = np.random.default_rng(np.random.SeedSequence([self.seed, number, 2]))
        cut = side
        if isinstance(source, CleanFolder) and depth is None and apart.random() < self.resize_share:
            low, high = self.resize if source.enlarged else (min(end, 1.0) for end in self.resize)
            cut = _cut(side, log_between((low, high), apart.random()), shortest=min(height, width))
        top, left = random.integers(max(height - cut, 0) + 1), random.integers(max(width - cut, 0) + 1)
        there = {name: _window(pixels, top, left, cut) for name, pixels in there.items()}
        if cut != side:
            how = cv2.INTER_AREA if cut > side else cv2.INTER_CUBIC
            there["image"] = cv2.resize(there["image"], (side, side), interpolation=how)
        turn = TURNS[source.augmentation][int(random.integers(len(TURNS[source.augmentation])))]
        there = {name: geometric.d4(pixels, turn) for name, pixels in there.items()}
        if degraded is None and self.tone is not None:
            self.tone.set_random_seed(int(random.integers(2**31)))
            there["image"] = self.tone(image=there["image"])["image"]
        if degraded is None and apart.random() < self.grey_share:
            there["image"] = np.repeat(cv2.cvtColor(there["image"], cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
        return there

    def _check_curriculum(self) -> None:
        if self.curriculum is None:
            return
        unknown = sorted(set(self.curriculum.weights) - set(self.names))
        if unknown:
            raise UserError(
                f"The curriculum has weights for {', '.join(unknown)}, and the sources are {', '.join(self.names)}."
            )
        if not any(w * self.curriculum.factor(n, 0) > 0 for w, n in zip(self.weights, self.names, strict=True)):
            raise UserError("The curriculum begins with no source at all: all its weights are 0.")


def _cut(side: int, size: float, *, shortest: int) -> int:
    """Side of the square that, resized to ``side``, shows the picture at ``size`` times its own; it never leaves a
    picture with the shortest side ``shortest`` that the square of ``side`` does not leave."""
    return min(max(round(side / size), 1), max(shortest, side))


def _window(pixels: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    window = pixels[top : top + side, left : left + side]
    missing = [(0, side - window.shape[0]), (0, side - window.shape[1])]
    if missing == [(0, 0), (0, 0)]:
        return window
    return np.pad(window, missing + [(0, 0)] * (window.ndim - 2), mode="symmetric")


class SampleNumbers(Sampler[int]):
    """The numbers of each epoch's samples for one rank, from where a resumed run left off.

    Its length stays that of a whole epoch: the trainer counts the batches that were done before a resume as well.

    Args:
        count: samples of an epoch, over all ranks.
        place: tells, each time that an epoch begins, which one it is, and how many of its samples, over all ranks, were
            used before a resume. It is asked, and the trainer does not say: the epoch that it would set is one too high
            for the rest of a run that was resumed at the end of an epoch.
        rank, world: this process and how many there are; rank r takes every world-th number.
    """

    def __init__(
        self, *, count: int, place: Callable[[], tuple[int, int]] = lambda: (0, 0), rank: int = 0, world: int = 1
    ) -> None:
        self.count, self.place, self.rank, self.world = count, place, rank, world

    def __iter__(self) -> Iterator[int]:
        epoch, skip = self.place()
        first = epoch * self.count
        return iter(range(first + skip + self.rank, first + self.count, self.world))

    def __len__(self) -> int:
        return self.count // self.world


def samples_used(
    steps: int, *, batches: int, accumulate: int, global_batch: int, limit: int | float | None = None
) -> tuple[int, int]:
    """The epoch that a run is in, and how many of its samples, over all ranks, it has used up, from its steps.

    Args:
        steps: of the optimizer, since the beginning.
        batches: of a whole epoch, on each rank.
        accumulate: batches per step; the last step of an epoch takes what is left.
        global_batch: samples of a batch over all ranks.
        limit: most batches of an epoch that are used, or their share where it is a float.
    """
    used = batches
    if limit is not None:
        used = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
    epoch, steps = divmod(steps, max(-(-used // accumulate), 1))
    return epoch, min(steps * accumulate, used) * global_batch
