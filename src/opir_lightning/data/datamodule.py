"""Lightning's view of the data: which sources are there, the training mixture, the validation sets."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import cv2
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from opir_lightning.data.curriculum import Curriculum
from opir_lightning.data.evaluation import VAL_SEVERITY, EvaluationSet
from opir_lightning.data.mixture import Mixture, SampleNumbers, samples_used
from opir_lightning.data.samples import (
    CleanSample,
    CollatePending,
    PairSample,
    PendingBatch,
    Sample,
    collate,
    degrade_pending,
)
from opir_lightning.data.sources import CleanFolder, Item, Source
from opir_lightning.data.store import ImageStore, PackedStore, default_pack_folder
from opir_lightning.data.watched_loader import WatchedLoader
from opir_lightning.data.workers import begin_worker
from opir_lightning.degradations import Jpeg
from opir_lightning.degradations.base import Range, as_interval
from opir_lightning.errors import NothingFoundError, UserError
from opir_lightning.types import Batch, Task

log = logging.getLogger(__name__)
LARGEST_CROP = 4096  # pixels; a single one of this size already takes gigabytes while it is degraded and trained on
SMALLEST_CENTRE = 16  # pixels; what is scored is cut to multiples of it


class RestorationData(LightningDataModule):
    """Sources found under a data root, or the embedded photographs without one.

    Args:
        root: folder with the sets; None takes the embedded photographs.
        tasks: names of the run's task classes; sources of other tasks are left out.
        train: training sources by name. Those whose folders are not there are left out, and that is said.
        val: validation sources by name.
        val_severity: lowest and highest severity of the synthetic validation pairs, spread evenly over the pictures.
        val_pictures: at most this many pictures of each validation set.
        val_centre: validate on the centre square of this side in pixels; None: on whole pictures.
        crop: side of the training crops in pixels.
        batch_size: per device.
        epoch_samples: samples that count as an epoch, over all devices.
        workers: loader processes; None: one for every two cores.
        seed: the samples depend on this, the epoch and the index alone.
        label_share: share of the training samples for which the given label may replace the estimated code.
        heard_alone: share of the training samples whose code is estimated from one crop of them alone; see `Mixture`.
        jitter: share by which brightness, contrast and saturation of clean training pictures vary; see `Mixture`.
        grey_share: share of the clean training pictures whose colours are taken away; see `Mixture`.
        resize_share, resize: share of the clean training pictures that are resized, and to how many times their size;
            see `Mixture`.
        jpeg_share, jpeg: share of the degraded training pictures that go through a file, and the range of its quality;
            see `Jpeg`. Pairs from files stay as they are.
        curriculum: how severities and weights begin; None: as configured from the first sample.
        degrade_on: ``workers``: the loader's processes make finished pairs; ``device``: they hand out bytes and draws,
            and a batch is degraded where it is trained on; ``auto``: the device if it is not the CPU. The samples
            differ between the two only by the device's rounding and random numbers.
        packs: where decoded training pictures are kept: a folder, ``auto`` for one in the user's cache (only with a
            ``root``), or ``memory``.
        broken_share: a training picture that cannot be read is reported; a larger share of them than this stops.
        stalled_after: seconds without a training batch after which that is reported; None: never.
        stop_stalled_after: seconds without a training batch after which the training stops, where there are workers;
            None: it goes on waiting.

    Raises:
        UserError: a setting is out of its range.
    """

    def __init__(
        self,
        *,
        tasks: Sequence[str],
        train: Mapping[str, Source],
        val: Mapping[str, Source],
        root: str | None = None,
        val_severity: tuple[float, float] = VAL_SEVERITY,
        val_pictures: int | None = None,
        val_centre: int | None = None,
        crop: int = 64,
        batch_size: int = 8,
        epoch_samples: int = 8000,
        workers: int | None = None,
        seed: int = 0,
        label_share: float = 0.3,
        heard_alone: float = 0.0,
        jitter: float = 0.2,
        grey_share: float = 0.0,
        resize_share: float = 0.0,
        resize: Range = 1.0,
        jpeg_share: float = 0.0,
        jpeg: Range = (70.0, 98.0),
        curriculum: Curriculum | None = None,
        degrade_on: Literal["auto", "workers", "device"] = "auto",
        packs: str = "auto",
        broken_share: float = 0.0,
        stalled_after: float | None = 120.0,
        stop_stalled_after: float | None = None,
    ) -> None:
        super().__init__()
        if degrade_on not in ("auto", "workers", "device"):
            raise UserError(f"data.degrade_on is '{degrade_on}'; it must be auto, workers or device.")
        for name, seconds in (("stalled_after", stalled_after), ("stop_stalled_after", stop_stalled_after)):
            if seconds is not None and seconds <= 0:
                raise UserError(f"data.{name} is {seconds:g}; it must be more than 0 seconds, or null.")
        for name, count in (("crop", crop), ("batch_size", batch_size), ("epoch_samples", epoch_samples)):
            if count < 1:
                raise UserError(f"data.{name} is {count}; it must be 1 or more.")
        if crop > LARGEST_CROP:
            raise UserError(f"data.crop is {crop}; it must be {LARGEST_CROP} or less, or no memory holds a batch.")
        for name, most, least in (("val_pictures", val_pictures, 1), ("val_centre", val_centre, SMALLEST_CENTRE)):
            if most is not None and most < least:
                raise UserError(f"data.{name} is {most}; it must be {least} or more, or null.")
        if workers is not None and workers < 0:
            raise UserError(f"data.workers is {workers}; it must be 0 or more, or null.")
        shares = {"label_share": label_share, "heard_alone": heard_alone, "broken_share": broken_share}
        shares |= {"grey_share": grey_share, "resize_share": resize_share, "jpeg_share": jpeg_share}
        for name, share in (*shares.items(), ("jitter", jitter)):
            if not 0 <= share <= 1:
                raise UserError(f"data.{name} is {share:g}; it is a share and must be in [0, 1].")
        _check_weights("train", train)
        _check_weights("val", val)
        as_interval("data.val_severity", val_severity, low=0.0, high=1.0)
        as_interval("data.resize", resize, low=0.1, high=10.0)
        as_interval("data.jpeg", jpeg, low=1.0, high=100.0)
        self.stalled_after, self.stop_stalled_after = stalled_after, stop_stalled_after
        self.root = None if root is None else Path(root)
        self.tasks, self.train, self.val = list(tasks), dict(train), dict(val)
        self.val_severity, self.val_pictures, self.val_centre = val_severity, val_pictures, val_centre
        self.crop, self.batch_size, self.epoch_samples = crop, batch_size, epoch_samples
        self.workers = (os.cpu_count() or 1) // 2 if workers is None else workers
        self.seed, self.label_share, self.heard_alone = seed, label_share, heard_alone
        self.jitter, self.grey_share, self.broken_share = jitter, grey_share, broken_share
        self.resize_share, self.resize, self.jpeg_share, self.jpeg = resize_share, resize, jpeg_share, jpeg
        self.curriculum, self.degrade_on = curriculum, degrade_on
        if packs == "memory" or (packs == "auto" and root is None):
            self.store = ImageStore()
        else:
            self.store = PackedStore(default_pack_folder() if packs == "auto" else Path(packs))
        self.mixture: Mixture | None = None
        self.val_sets: list[EvaluationSet] = []
        self.found: dict[str, int] = {}

    def prepare_sets(self) -> None:
        """Find and decode everything; called by `setup`, or earlier to fail early and to know the names of the sets.

        Raises:
            UserError: the root is missing, nothing was found below it, or too many pictures cannot be read.
        """
        if self.mixture is not None:
            return
        if self.root is None:
            log.info("No data.root given: using the embedded photographs with synthetic degradations.")
        elif not self.root.is_dir():
            raise UserError(f"The data folder '{self.root}' does not exist; set data.root to the folder with the sets.")
        train = self._usable(self._find(self.train, "train"))
        if not train:
            raise NothingFoundError(self._nothing_found())
        self.found = {name: len(items) for name, (_, items) in train.items()}
        log.info("Training on %s.", ", ".join(f"{name} ({count})" for name, count in self.found.items()))
        self.mixture = Mixture(
            {name: (self._filed(source), items) for name, (source, items) in train.items()},
            tasks=self.tasks,
            store=self.store,
            crop=self.crop,
            seed=self.seed,
            label_share=self.label_share,
            heard_alone=self.heard_alone,
            jitter=self.jitter,
            grey_share=self.grey_share,
            resize=self.resize,
            resize_share=self.resize_share,
            curriculum=self.curriculum,
            pending=True,
        )
        self.val_sets = [
            EvaluationSet(
                name,
                source,
                items[: self.val_pictures],
                tasks=self.tasks,
                store=self.store,
                severity=self.val_severity,
                centre=self.val_centre,
            )
            for name, (source, items) in self._validation().items()
        ]

    def setup(self, stage: str) -> None:
        self.prepare_sets()

    def train_dataloader(self) -> DataLoader[Sample | PairSample | CleanSample]:
        """The numbered samples, from where a resumed run left off: its steps tell how many were used."""
        assert self.mixture is not None
        trainer = self.trainer
        rank, world = self._rank_and_world()
        on_cpu = trainer is None or trainer.strategy.root_device.type == "cpu"

        def place() -> tuple[int, int]:
            return (0, 0) if trainer is None else self._place(trainer.global_step)

        # Or every worker has a pool of as many threads as there are cores. Not in the workers: a forked process that
        # changes the number waits for threads of its parent's pool, which it does not have.
        cv2.setNumThreads(1)
        self.mixture.degrade_here = self.degrade_on == "workers" or (self.degrade_on == "auto" and on_cpu)
        return WatchedLoader(
            self.mixture,
            patience=self.stalled_after,
            limit=self.stop_stalled_after,
            batch_size=self.batch_size,
            sampler=SampleNumbers(count=self._epoch_count(), place=place, rank=rank, world=world),
            num_workers=self.workers,
            worker_init_fn=begin_worker,
            collate_fn=CollatePending(self.crop),
            persistent_workers=False,
            pin_memory=not on_cpu,
            drop_last=True,
        )

    def sample_numbers(self, step: int, batch_idx: int) -> list[int]:
        """Numbers of the samples of one of this process's batches: ``mixture[number]`` makes each of them anew.

        Args:
            step: of the optimizer that the batch belongs to, since the beginning.
            batch_idx: of the batch, in its epoch.
        """
        rank, world = self._rank_and_world()
        first = self._place(step)[0] * self._epoch_count() + batch_idx * self.batch_size * world + rank
        return list(range(first, first + self.batch_size * world, world))

    def source_of(self, number: int) -> str:
        """Name of the training source that a sample is drawn from."""
        assert self.mixture is not None
        return self.mixture.source_of(number)

    def _rank_and_world(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _epoch_count(self) -> int:
        """Samples of an epoch over all processes: whole batches only.

        Raises:
            UserError: there is not a single one.
        """
        global_batch = self.batch_size * self._rank_and_world()[1]
        if self.epoch_samples < global_batch:
            raise UserError(
                f"data.epoch_samples is {self.epoch_samples}, and a batch over all devices has {global_batch} samples: "
                "no step would be taken. Set a larger data.epoch_samples, or a smaller data.batch_size."
            )
        return self.epoch_samples // global_batch * global_batch

    def _place(self, step: int) -> tuple[int, int]:
        """The epoch that a step is in, and how many of its samples, over all processes, were used before it."""
        assert self.trainer is not None
        global_batch = self.batch_size * self._rank_and_world()[1]
        return samples_used(
            step,
            batches=self.epoch_samples // global_batch,
            accumulate=self.trainer.accumulate_grad_batches,
            global_batch=global_batch,
            limit=self.trainer.limit_train_batches,
        )

    def on_after_batch_transfer(self, batch: Batch | PendingBatch, dataloader_idx: int) -> Batch:
        """Finish, on the device, what the loader left to it."""
        if not isinstance(batch, PendingBatch):
            return batch
        assert self.mixture is not None
        return degrade_pending(batch, self.mixture.batched(), self.crop)

    def val_dataloader(self) -> list[DataLoader[Sample]]:
        return [DataLoader(val_set, batch_size=1, collate_fn=collate) for val_set in self.val_sets]

    def _find(self, sources: Mapping[str, Source], embedded: str) -> dict[str, tuple[Source, list[Item]]]:
        """Sources of the run's tasks whose pictures are there."""
        found: dict[str, tuple[Source, list[Item]]] = {}
        absent: list[str] = []
        for name, source in sources.items():
            if source.task not in self.tasks:
                if source.task not in list(Task):  # or a mistyped one would be left out unsaid
                    log.warning("%s is of the task '%s', which is none of the run's: left out.", name, source.task)
                continue
            items = source.items(self.root, embedded=embedded)
            if items and source.weight > 0:
                found[name] = (source, items)
            elif source.weight > 0:
                absent.append(name)
        if absent and self.root is not None:
            log.info("Not found under %s, left out: %s.", self.root, ", ".join(absent))
        return found

    def _filed(self, source: Source) -> Source:
        """The source with a share of its degraded pictures going through a file."""
        if not self.jpeg_share or not isinstance(source, CleanFolder):
            return source
        return replace(source, degradation=Jpeg(source.degradation, share=self.jpeg_share, quality=self.jpeg))

    def _validation(self) -> dict[str, tuple[Source, list[Item]]]:
        """The validation sets; where a root has none, the embedded held-out photographs with the same degradations."""
        found = self._find(self.val, "heldout")
        if found or self.root is None:
            return found
        embedded = {
            name: (source, source.items(None, embedded="heldout"))
            for name, source in self.val.items()
            if source.task in self.tasks and source.weight > 0
        }
        embedded = {name: (source, items) for name, (source, items) in embedded.items() if items}
        if embedded:
            log.info("No validation pictures under %s: validating on the embedded photographs.", self.root)
        return embedded

    def _usable(self, sources: dict[str, tuple[Source, list[Item]]]) -> dict[str, tuple[Source, list[Item]]]:
        """Decode the training pictures; leave out, by name, the few that cannot be read."""
        files = {file for _, items in sources.values() for item in items for file in item.files()}
        broken = self.store.load(files)
        for error in broken:
            log.warning("%s", error)
        if len(broken) > self.broken_share * len(files):
            raise UserError(
                f"{broken[0]} In all {len(broken)} of {len(files)} training pictures cannot be read; "
                f"data.broken_share ({self.broken_share:g}) is the share that may be passed over."
            )
        readable = {
            name: (source, [item for item in items if all(file in self.store for file in item.files())])
            for name, (source, items) in sources.items()
        }
        return {name: (source, items) for name, (source, items) in readable.items() if items}

    def _nothing_found(self) -> str:
        if self.root is None:
            return f"None of the training sources is of the tasks {', '.join(self.tasks)}; set `tasks` or `data.train`."
        wanted = sorted(
            {
                folder
                for source in self.train.values()
                if source.task in self.tasks
                for folder in (getattr(source, "folders", None) or [getattr(source, "degraded", "?")])
            }
        )
        return (
            f"No training pictures were found in '{self.root}'; expected at least one of the folders "
            f"{', '.join(wanted)} with pictures in it. Set data.root to the folder that holds them."
        )


def _check_weights(role: str, sources: Mapping[str, Source]) -> None:
    """`UserError` for a weight that is no share of a mixture: a negative one would leave the source out unsaid."""
    for name, source in sources.items():
        if not 0 <= source.weight < math.inf:
            raise UserError(
                f"data.{role}.{name}.weight is {source.weight:g}; it must be 0 or more, where 0 leaves the source out."
            )
