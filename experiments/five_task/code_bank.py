"""Gather a bank of damaged pictures: what the estimator of a network's code sees of each, and a part of it to restore.

python experiments/five_task/code_bank.py BANK data.root=DIR [overrides] [--minutes M] [--dark SHARE]

On all cores, M minutes long. Overrides are settings of experiment=five_task; data.crop is the side of the pictures, of
which as many crops are taken as in use: 256 makes sixteen. `code_estimator.py` trains on banks.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from opir_lightning.config import check_keys, config_dir, register_schemas
from opir_lightning.data.mixture import Mixture
from opir_lightning.data.workers import begin_worker
from opir_lightning.degradations import compress
from opir_lightning.models.degradation_code import native_crops
from opir_lightning.models.image_statistics import image_statistics

PIECE = 64  # side of the part of a picture that is restored
FILED_SHARE = 0.6  # of the pictures go through a file
QUALITY = (60, 98)  # of it; 40 rainy photographs and PolyU, which nothing was trained on, are of quality 75
DARKEST = 0.08  # of their light, as sRGB values


class Statistics(NamedTuple):
    """What the estimator sees of one picture, or of many with a first dimension more.

    Attributes:
        plain: ``(n, STATISTICS)`` float16, of its crops as damaged.
        met: the same of the picture as it is met: dark by nature, through a file, or as it is.
        piece: ``(3, PIECE, PIECE)`` float16, a part of the picture as it is met.
        good: the same of what it should be, uint8.
        task: its label.
    """

    plain: Tensor
    met: Tensor
    piece: Tensor
    good: Tensor
    task: Tensor

    def dark(self) -> Tensor:
        """Whether it is met darker than it was, for a batch: ``(B,)`` bool."""
        plain, met = (statistics[..., :3].mean((0, 2)) for statistics in (self.plain, self.met))
        return met < 0.9 * plain  # the first three are the mean colours


class Pictures(Dataset[Statistics]):
    """Statistics of the mixture's samples; they depend on the number alone, as the samples do.

    Args:
        mixture: hands out finished samples.
        tasks: its classes.
        side, per_side: of the crops, as `native_crops` takes them.
        dark_share: of the undamaged and noisy pictures, which are met dark by nature: black things, shade.
    """

    def __init__(self, mixture: Mixture, tasks: list[str], *, side: int, per_side: int, dark_share: float) -> None:
        self.mixture, self.side, self.per_side = mixture, side, per_side
        self.dark = {tasks.index("none"): dark_share, tasks.index("noise"): dark_share}

    def __getitem__(self, number: int) -> Statistics:
        sample = self.mixture[number]
        plain = self._statistics(sample.degraded)
        random = np.random.default_rng(np.random.SeedSequence([self.mixture.seed, number, 4]))
        met, good = sample.degraded, sample.clean
        if random.random() < self.dark.get(sample.task, 0):
            light, contrast = DARKEST ** random.uniform(0.1, 1), random.uniform(0.9, 1.3)
            met, good = (((each * light).clamp(0, 1) ** contrast * 255).round() / 255 for each in (met, good))
        if random.random() < FILED_SHARE:
            top, left = random.integers(16, size=2).tolist()
            quality, halved = int(random.integers(QUALITY[0], QUALITY[1] + 1)), bool(random.random() < 0.7)
            met = compress(met, quality=quality, halved=halved, top=top, left=left)
        top, left = random.integers(met.shape[-1] - PIECE + 1, size=2).tolist()
        piece, good = (each[:, top : top + PIECE, left : left + PIECE] for each in (met, good))
        of_met = plain if met is sample.degraded else self._statistics(met)
        return Statistics(plain, of_met, piece.half(), (good * 255).round().byte(), torch.tensor(sample.task))

    def _statistics(self, picture: Tensor) -> Tensor:
        return image_statistics(native_crops(picture[None], self.side, self.per_side)[0]).half()


def gather(pictures: Pictures, minutes: float) -> Statistics:
    """The statistics of as many pictures as can be made in so many minutes."""
    cv2.setNumThreads(1)
    loader = DataLoader(
        pictures,
        sampler=itertools.count(),
        batch_size=32,
        num_workers=os.cpu_count() or 1,
        worker_init_fn=begin_worker,
    )
    end, gathered = time.monotonic() + 60 * minutes, []
    with tqdm(total=round(60 * minutes), unit="s", desc="pictures") as bar:
        for batch in loader:
            gathered.append(Statistics(*batch))
            bar.n = round(60 * minutes - max(end - time.monotonic(), 0))
            bar.set_postfix(pictures=32 * len(gathered))
            if time.monotonic() > end:
                break
    return Statistics(*(torch.cat(parts) for parts in zip(*gathered, strict=True)))


def batches(bank: Statistics, numbers: Tensor, size: int) -> Iterator[Statistics]:
    """Batches in the order of ``numbers``; their statistics have the crops first, as `CodeEstimator.judge` wants."""
    for chosen in numbers.split(size):
        plain, met = (statistics[chosen].float().transpose(0, 1) for statistics in (bank.plain, bank.met))
        yield Statistics(plain, met, bank.piece[chosen].float(), bank.good[chosen] / 255, bank.task[chosen])


def pictures_of(overrides: list[str], *, dark_share: float) -> Pictures:
    """The training mixture of five_task, without files."""
    register_schemas()
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        config = compose("train", ["experiment=five_task", "run_dir=.", "data.jpeg_share=0", *overrides])
    checked = check_keys(config)
    data: Any = instantiate(checked["data"], _convert_="all")
    data.prepare_sets()
    mixture: Mixture = data.mixture
    mixture.pending = False
    estimator = instantiate(checked["model"], _convert_="all").code_estimator
    sides = {"side": estimator.crop, "per_side": estimator.crops_per_side}
    return Pictures(mixture, data.tasks, **sides, dark_share=dark_share)


def read(banks: list[Path]) -> Statistics:
    """All of them as one."""
    parts = [Statistics(**torch.load(path, weights_only=True, mmap=True)) for path in banks]
    return Statistics(*(torch.cat(part) for part in zip(*parts, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bank", type=Path)
    parser.add_argument("overrides", nargs="*", help="data.root=DIR data.crop=256")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--dark", type=float, default=0.35, help="share of undamaged and noisy ones in dim light")
    arguments = parser.parse_args()
    pictures = pictures_of(arguments.overrides, dark_share=arguments.dark)
    torch.save(gather(pictures, arguments.minutes)._asdict(), arguments.bank)


if __name__ == "__main__":
    main()
