"""Samples and batches on their way to the network; a batch may be degraded where it is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from opir_lightning.degradations.base import Batched
from opir_lightning.types import Batch

ALL_HEARD = -1.0  # as `Batch.heard`


class Sample(NamedTuple):
    """One pair; see `Batch`."""

    degraded: Tensor
    clean: Tensor
    task: int
    label_given: bool
    heard: float
    name: str


class PairSample(NamedTuple):
    """One pair of bytes, ``(H, W, 3)`` uint8 each; a quarter of a `Sample` on its way to the device."""

    degraded: np.ndarray
    clean: np.ndarray
    task: int
    label_given: bool
    heard: float
    name: str


class CleanSample(NamedTuple):
    """A clean crop with its margin, and what is to be done to it.

    Attributes:
        pixels: ``(S, S, 3)`` uint8, S the side of the crop plus twice the margin.
        draw: what the degradation has drawn for it.
        source: number of its source.
        task, label_given, heard, name: see `Batch`.
    """

    pixels: np.ndarray
    draw: Any
    source: int
    task: int
    label_given: bool
    heard: float
    name: str


class Draws:
    """Draws of several pictures, opaque to the loader: what is in them goes to the device in one piece, later."""

    def __init__(self, draws: Sequence[Any]) -> None:
        self.draws = list(draws)


class CleanGroup(NamedTuple):
    """The clean samples of one source in a batch.

    Attributes:
        places: ``(n,)`` int64, where in the batch they belong.
        pixels: ``(n, 3, S, S)`` uint8.
        draws: one for each.
        source: its number.
    """

    places: Tensor
    pixels: Tensor
    draws: Draws
    source: int


class PendingBatch(NamedTuple):
    """A batch of which some pictures are still to be degraded.

    Attributes:
        task, label_given, heard, name: of all its pictures, see `Batch`.
        pairs: ``(n, 2, 3, H, W)`` uint8, degraded and clean, of those from files.
        pair_places: ``(n,)`` int64, where these belong.
        finished: ``(m, 2, 3, H, W)`` float32, of those that could only be degraded one by one.
        finished_places: ``(m,)`` int64.
        groups: the others, source by source.
    """

    task: Tensor
    label_given: Tensor
    heard: Tensor
    name: list[str]
    pairs: Tensor
    pair_places: Tensor
    finished: Tensor
    finished_places: Tensor
    groups: list[CleanGroup]


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one size into a batch."""
    return Batch(
        degraded=torch.stack([s.degraded for s in samples]),
        clean=torch.stack([s.clean for s in samples]),
        task=torch.tensor([s.task for s in samples]),
        label_given=torch.tensor([s.label_given for s in samples]),
        heard=torch.tensor([s.heard for s in samples]),
        name=[s.name for s in samples],
    )


class CollatePending:
    """Stack samples of which some are still to be degraded.

    Args:
        crop: side of the finished crops in pixels.
    """

    def __init__(self, crop: int) -> None:
        self.crop = crop

    def __call__(self, samples: Sequence[Sample | PairSample | CleanSample]) -> PendingBatch:
        waiting: dict[int, list[tuple[int, CleanSample]]] = {}
        pairs: list[tuple[int, PairSample]] = []
        finished: list[tuple[int, Sample]] = []
        for place, sample in enumerate(samples):
            if isinstance(sample, CleanSample):
                waiting.setdefault(sample.source, []).append((place, sample))
            elif isinstance(sample, PairSample):
                pairs.append((place, sample))
            else:
                finished.append((place, sample))
        side = self.crop
        pair_bytes = np.empty((len(pairs), 2, 3, side, side), np.uint8)
        for into, (_, pair) in zip(pair_bytes, pairs, strict=True):
            into[0], into[1] = pair.degraded.transpose(2, 0, 1), pair.clean.transpose(2, 0, 1)
        both = [torch.stack([sample.degraded, sample.clean]) for _, sample in finished]
        groups = [
            CleanGroup(
                places=_places(members),
                pixels=torch.from_numpy(np.stack([sample.pixels.transpose(2, 0, 1) for _, sample in members])),
                draws=Draws([sample.draw for _, sample in members]),
                source=source,
            )
            for source, members in waiting.items()
        ]
        return PendingBatch(
            task=torch.tensor([s.task for s in samples]),
            label_given=torch.tensor([s.label_given for s in samples]),
            heard=torch.tensor([s.heard for s in samples]),
            name=[s.name for s in samples],
            pairs=torch.from_numpy(pair_bytes),
            pair_places=_places(pairs),
            finished=torch.stack(both) if both else torch.zeros(0, 2, 3, side, side),
            finished_places=_places(finished),
            groups=groups,
        )


def _places(members: Sequence[tuple[int, Any]]) -> Tensor:
    return torch.tensor([place for place, _ in members], dtype=torch.int64)


def degrade_pending(pending: PendingBatch, degradations: Mapping[int, Batched], crop: int) -> Batch:
    """Finish a batch on the device that it is on.

    Args:
        pending: what the loader made.
        degradations: by the number of the source.
        crop: side of the finished crops in pixels.
    """
    degraded = pending.finished.new_empty(len(pending.name), 3, crop, crop)
    clean = torch.empty_like(degraded)
    pairs = pending.pairs.float().div_(255)
    for both, places in ((pairs, pending.pair_places), (pending.finished, pending.finished_places)):
        degraded[places], clean[places] = both[:, 0], both[:, 1]
    for group in pending.groups:
        pixels = group.pixels.float().div_(255)
        clean[group.places] = centre(pixels, crop)
        degraded[group.places] = centre(degradations[group.source].apply(pixels, group.draws.draws), crop)
    return Batch(degraded, clean, pending.task, pending.label_given, pending.heard, pending.name)


def centre(image: Tensor, side: int) -> Tensor:
    """The middle square ``(..., side, side)`` of a larger one."""
    margin = (image.shape[-1] - side) // 2
    return image[..., margin : margin + side, margin : margin + side].contiguous()
