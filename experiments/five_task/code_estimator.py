"""Train the estimator of a network's code alone, on far more pictures than a training of everything has time for.

python experiments/five_task/code_estimator.py gather BANK data.root=DIR [overrides] [--minutes M]
python experiments/five_task/code_estimator.py train WEIGHTS BANK... --check BANK -o FILE [--epochs N] [--width W]

The estimator is a small part that judges a picture by statistics of its crops. So first, on all cores, damaged pictures
are made and their statistics gathered, and then the estimator goes over them N times. It learns two things: to name the
damage, and to say of a picture that went through a JPEG file, or of one that is dark by nature, what the given weights
say of it without. The rest of the network stays as it is; the estimator's hidden layers may get wider.

Overrides are settings of experiment=five_task; data.crop is the side of the pictures that are gathered, of which as
many crops are taken as in use: 256 makes sixteen.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from opir_lightning.checkpoints import load_model, save_weights
from opir_lightning.config import check_keys, config_dir, register_schemas
from opir_lightning.data.mixture import Mixture
from opir_lightning.data.workers import begin_worker
from opir_lightning.degradations import compress
from opir_lightning.models import OPIR
from opir_lightning.models.degradation_code import CodeEstimator, native_crops
from opir_lightning.models.growth import grow
from opir_lightning.models.image_statistics import image_statistics
from opir_lightning.provenance import provenance

PIECE = 64  # side of the part of a picture that is restored
FILED_SHARE = 0.6  # of the pictures go through a file
QUALITY = (60, 98)  # of it; 40 rainy photographs and PolyU, which nothing was trained on, are of quality 75
DARK_SHARE = 0.35  # of the undamaged, and half as many of the noisy ones, are dark by nature: black things, shade
DARKEST = 0.08  # of their light, as sRGB values
HARM = {"none": 2.0, "noise": 1.5}  # of a wrong name, in units of the others': a good photograph is spoilt
HARM_DARK = 3.0  # times that where it is dark by nature: lit up, it is spoilt most
AVERAGED = 0.995  # as the weights of a training are: each step counts that much less than the next


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
    """

    def __init__(self, mixture: Mixture, tasks: list[str], *, side: int, per_side: int) -> None:
        self.mixture, self.side, self.per_side = mixture, side, per_side
        self.dark = {tasks.index("none"): DARK_SHARE, tasks.index("noise"): DARK_SHARE / 2}

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
    """Batches in the order of ``numbers``; of the statistics the crops come first, as `CodeEstimator.judge` takes them."""
    for chosen in numbers.split(size):
        plain, met = (statistics[chosen].float().transpose(0, 1) for statistics in (bank.plain, bank.met))
        yield Statistics(plain, met, bank.piece[chosen].float(), bank.good[chosen] / 255, bank.task[chosen])


@torch.no_grad()
def wanted(estimator: CodeEstimator, bank: Statistics) -> Tensor:
    """What the estimator says of the severity of all pictures as damaged, ``(N, S)``."""
    everything = torch.arange(len(bank.task))
    return torch.cat([estimator.judge(batch.plain).severity for batch in batches(bank, everything, 1024)])


@torch.no_grad()
def measure(estimator: CodeEstimator, bank: Statistics, severity: Tensor) -> dict[str, float]:
    """Shares that are named rightly, as damaged and as met, and the root-mean-square error of the severity as met."""
    right_plain, right_met, square = [], [], []
    everything = torch.arange(len(bank.task))
    for batch, target in zip(batches(bank, everything, 1024), severity.split(1024), strict=True):
        right_plain.append(estimator.judge(batch.plain).task_logits.argmax(1) == batch.task)
        code = estimator.judge(batch.met)
        right_met.append(code.task_logits.argmax(1) == batch.task)
        square.append((code.severity - target).square().mean(1))
    return {
        "plain": torch.cat(right_plain).float().mean().item(),
        "met": torch.cat(right_met).float().mean().item(),
        "severity": torch.cat(square).mean().sqrt().item(),
    }


def train(
    estimator: CodeEstimator,
    bank: Statistics,
    severity: Tensor,
    *,
    epochs: int,
    harm: Sequence[float],
    lr: float = 2e-3,
    batch_size: int = 512,
    severity_weight: float = 300.0,
) -> Iterator[CodeEstimator]:
    """Train a copy.

    Args:
        estimator: where it starts.
        bank: what it sees.
        severity: what it shall say of each picture, ``(N, S)``.
        epochs: how often it sees them.
        harm: weights of the classes in the cross-entropy.
        lr: largest learning rate.
        batch_size: pictures.
        severity_weight: of the mean square error of the severity, beside the cross-entropy.

    Yields:
        After each epoch the estimator with averaged weights, always the same object.
    """
    weights = torch.tensor(harm)
    learning, averaged = deepcopy(estimator), deepcopy(estimator)
    optimizer = torch.optim.AdamW(learning.mlp.parameters(), lr=lr, weight_decay=1e-3)
    steps = epochs * -(-len(bank.task) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    crops = bank.plain.shape[1]
    counts = [n for n in (1, 2, 4, 9, 16) if n <= crops]
    for _ in range(epochs):
        order = torch.randperm(len(bank.task))
        for batch, chosen in zip(batches(bank, order, batch_size), order.split(batch_size), strict=True):
            # Small pictures have few crops, and what is said of all of them has to hold for some.
            heard = torch.randperm(crops)[: counts[int(torch.randint(len(counts), ()))]]
            loss, dark = torch.zeros(()), batch.dark().float()
            for statistics in (batch.plain, batch.met):
                code = learning.judge(statistics[heard])
                harmed = weights[batch.task] * (1 + (HARM_DARK - 1) * (dark if statistics is batch.met else 0))
                loss = loss + (harmed * F.cross_entropy(code.task_logits, batch.task, reduction="none")).sum() / harmed.sum()
                loss = loss + severity_weight * (code.severity - severity[chosen]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for mean, value in zip(averaged.mlp.parameters(), learning.mlp.parameters(), strict=True):
                    mean.lerp_(value, 1 - AVERAGED)
        yield averaged


def pictures_of(overrides: list[str]) -> Pictures:
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
    return Pictures(mixture, data.tasks, side=estimator.crop, per_side=estimator.crops_per_side)


def read(banks: list[Path]) -> Statistics:
    """All of them as one."""
    parts = [Statistics(**torch.load(path, weights_only=True)) for path in banks]
    return Statistics(*(torch.cat(part) for part in zip(*parts, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    gathering = commands.add_parser("gather")
    gathering.add_argument("bank", type=Path)
    gathering.add_argument("overrides", nargs="*", help="data.root=DIR data.crop=256")
    gathering.add_argument("--minutes", type=float, default=30)
    fitting = commands.add_parser("train")
    fitting.add_argument("weights")
    fitting.add_argument("banks", nargs="+", type=Path)
    fitting.add_argument("-o", "--output", type=Path, required=True)
    fitting.add_argument("--check", type=Path, required=True, help="a bank of other photographs")
    fitting.add_argument("--epochs", type=int, default=14)
    fitting.add_argument("--width", type=int, help="of the hidden layers, if it is to be more than it was")
    arguments = parser.parse_args()
    if arguments.command == "gather":
        torch.save(gather(pictures_of(arguments.overrides), arguments.minutes)._asdict(), arguments.bank)
        return
    torch.manual_seed(0)
    model, header = load_model(arguments.weights)
    bank, check = read(arguments.banks), read([arguments.check])
    severity, checked = wanted(model.code_estimator, bank), wanted(model.code_estimator, check)
    scores = [measure(model.code_estimator, check, checked)]
    if arguments.width is not None:
        wider = OPIR.from_settings({**model.settings, "code_width": arguments.width})
        grow(model, wider)
        model = wider
    harm = [HARM.get(task, 1.0) for task in model.tasks]
    training = train(model.code_estimator, bank, severity, epochs=arguments.epochs, harm=harm)
    for estimator in (bar := tqdm(training, total=arguments.epochs, desc="epochs")):
        scores.append(measure(estimator, check, checked))
        bar.set_postfix({name: f"{value:.4f}" for name, value in scores[-1].items()})
    model.code_estimator.load_state_dict(estimator.state_dict())
    about = {"pictures": len(bank.task), "epochs": arguments.epochs, "before": scores[0], "after": scores[-1]}
    save_weights(arguments.output, model.eval(), {**header.metadata, "code": about | provenance()})


if __name__ == "__main__":
    main()
