"""Train the estimator of a network's code alone, on far more pictures than a training of everything has time for.

python experiments/five_task/code_estimator.py name WEIGHTS BANK... --check BANK -o FILE [--epochs N] [--width W]
python experiments/five_task/code_estimator.py restore WEIGHTS BANK... --check BANK -o FILE [--steps N] [--told]

The estimator is a small part that judges a picture by statistics of its crops; `code_bank.py` gathers them. The rest of
the network stays as it is.

`name` goes over them N times with nothing else. It learns to name the damage, and to say of a picture that went through
a JPEG file, or of one that is dark by nature, what the given weights say of it without. The estimator's hidden layers
may get wider.

`restore` learns what comes out best: the fixed network restores a part of every picture with the code, and the error of
that is the loss, beside the names. A severity that is learned by itself is a mean over what cannot be told apart, as
likely as not good for none of it. With --told nothing changes but what a given label says to the severity.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from code_bank import Statistics, batches, read
from torch import Tensor
from tqdm import tqdm

from opir_lightning.checkpoints import load_model, save_weights
from opir_lightning.models import OPIR
from opir_lightning.models.degradation_code import CodeEstimator
from opir_lightning.models.growth import grow
from opir_lightning.provenance import provenance
from opir_lightning.types import Code

HARM = {"none": 2.0, "noise": 1.5}  # of a wrong name, in units of the others': a good photograph is spoilt
HARM_DARK = 3.0  # times that where it is dark by nature: lit up, it is spoilt most
AVERAGED = 0.995  # as the weights of a training are: each step counts that much less than the next
STEEPEST = 8.0  # norm of a picture's gradient at its code, in the median 5: one in a hundred has over 60
FLOOR = 1e-5  # of the mean square error, 50 dB: beyond, undamaged pictures would draw the gradient to themselves


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


def learn_names(
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
                loss = (
                    loss
                    + (harmed * F.cross_entropy(code.task_logits, batch.task, reduction="none")).sum() / harmed.sum()
                )
                loss = loss + severity_weight * (code.severity - severity[chosen]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for mean, value in zip(averaged.mlp.parameters(), learning.mlp.parameters(), strict=True):
                    mean.lerp_(value, 1 - AVERAGED)
        yield averaged


def restoration_loss(model: OPIR, code: Code, batch: Statistics, harm: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """How well the pieces are restored with this code.

    Args:
        model: with both stages connected, and its weights fixed.
        code: of the pictures.
        batch: these.
        harm: what each counts, ``(B,)``.

    Returns:
        Logarithm of the mean square error of each piece, ``(B,)``, without a gradient; and a scalar whose gradient at
        the code is that of its mean, weighted, but with no picture's own above `STEEPEST`.
    """
    task, severity = code.task.detach().requires_grad_(), code.severity.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        restored = model(batch.piece, code._replace(task=task, severity=severity)).refined.float()
    loss = ((restored.clamp(-0.2, 1.2) - batch.good).square().mean((1, 2, 3)) + FLOOR).log()
    slopes = torch.autograd.grad(loss.sum(), (task, severity))
    norm = torch.cat(slopes, 1).norm(dim=1, keepdim=True)
    of_task, of_severity = (slope * (STEEPEST / norm).clamp(max=1) for slope in slopes)
    pull = (of_task * code.task).sum(1) + (of_severity * code.severity).sum(1)
    return loss.detach(), (harm * pull).mean()


@torch.no_grad()
def restored_psnr(model: OPIR, estimator: CodeEstimator, bank: Statistics, *, told: bool = False) -> float:
    """Mean PSNR of the pieces in dB, at most 60; with their labels given or without."""
    values = []
    for batch in batches(bank, torch.arange(len(bank.task)), 100):
        with torch.autocast("cpu", torch.bfloat16):
            code = estimator.judge(batch.met, batch.task if told else None)
            restored = model(batch.piece, code).refined.float().clamp(0, 1)
        values.append(-10 * ((restored - batch.good).square().mean((1, 2, 3)) + 1e-6).log10())
    return torch.cat(values).mean().item()


def learn_restoring(
    model: OPIR,
    bank: Statistics,
    *,
    steps: int,
    every: int,
    harm: Sequence[float],
    harm_dark: float = 1.0,
    dark_share: float = 1.0,
    told: bool = False,
    lr: float = 4e-4,
    batch_size: int = 64,
    names_weight: float = 0.5,
) -> Iterator[CodeEstimator]:
    """Train a copy of a network's estimator by what the network makes of its code.

    Args:
        model: stays as it is.
        bank: what the estimator sees, and what is restored.
        steps: how many.
        every: yield after so many, and at the end.
        harm: weights of the classes.
        harm_dark: factor of those that are dark by nature.
        dark_share: so many of these are taken. They look like those in low light, and the more there are, the more of
            the latter are left dark.
        told: the labels are given, and only what they say to the severity is learned.
        lr: largest learning rate.
        batch_size: pictures.
        names_weight: of the cross-entropy of the names, as damaged and as met, beside the logarithm of the error.

    Yields:
        The estimator with averaged weights, always the same object.
    """
    behind = deepcopy(model).eval().requires_grad_(False)
    behind.detach_between_stages = False  # else the code would not learn what it does in stage 1
    learning, averaged = deepcopy(behind.code_estimator), deepcopy(behind.code_estimator)
    part = "label" if told else "mlp"
    parameters = list(learning.get_submodule(part).requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-3)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, step / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps) + 0.01)
    )
    crops = bank.plain.shape[1]
    counts = [n for n in (1, 2, 4, 9, 16, 16) if n <= crops]
    weights = torch.tensor(harm)
    numbers = torch.arange(len(bank.task))
    dark = torch.cat([batch.dark() for batch in batches(bank, numbers, 1024)])
    numbers = numbers[~dark | (torch.rand(len(dark)) < dark_share)]
    for step in range(1, steps + 1):
        chosen = numbers[torch.randint(len(numbers), (batch_size,))]
        (batch,) = batches(bank, chosen, batch_size)
        heard = torch.randperm(crops)[: counts[int(torch.randint(len(counts), ()))]]
        met = learning.judge(batch.met[heard], batch.task if told else None)
        harmed = weights[batch.task] * (1 + (harm_dark - 1) * dark[chosen])
        harmed = harmed / harmed.mean()
        loss = restoration_loss(behind, met, batch, harmed)[1]
        for code in () if told else (met, learning.judge(batch.plain[heard])):
            wrong = F.cross_entropy(code.task_logits, batch.task, reduction="none")
            loss = loss + names_weight * (harmed * wrong).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rate.step()
        with torch.no_grad():
            for mean, value in zip(averaged.get_submodule(part).parameters(), parameters, strict=True):
                mean.lerp_(value, 1 - min(0.998, step / (step + 10)))
        if step % every == 0 or step == steps:
            yield averaged


def grown(model: OPIR, **settings: Any) -> OPIR:
    """The same function as a network with these settings."""
    larger = OPIR.from_settings({**model.settings, **settings})
    grow(model, larger)
    return larger.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    naming, restoring = commands.add_parser("name"), commands.add_parser("restore")
    for command in (naming, restoring):
        command.add_argument("weights")
        command.add_argument("banks", nargs="+", type=Path)
        command.add_argument("-o", "--output", type=Path, required=True)
        command.add_argument("--check", type=Path, required=True, help="a bank of other photographs")
    naming.add_argument("--epochs", type=int, default=14)
    naming.add_argument("--width", type=int, help="of the hidden layers, if it is to be more than it was")
    restoring.add_argument("--steps", type=int, default=2000)
    restoring.add_argument("--harm", type=float, default=1.2, help="what undamaged and noisy pictures count")
    restoring.add_argument("--harm-dark", type=float, default=1.0, help="times that for those dark by nature")
    restoring.add_argument("--dark", type=float, default=1.0, help="share of these that is taken")
    restoring.add_argument(
        "--lr", type=float, default=4e-4, help="largest learning rate; with --told take 50 times that"
    )
    restoring.add_argument("--told", action="store_true", help="learn what a given label says, and nothing else")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model, header = load_model(arguments.weights)
    model.eval()
    bank, check = read(arguments.banks), read([arguments.check])
    old, checked = model.code_estimator, wanted(model.code_estimator, check)
    if arguments.command == "name":
        severity = wanted(old, bank)
        if arguments.width is not None:
            model = grown(model, code_width=arguments.width)
        harm = [HARM.get(task, 1.0) for task in model.tasks]
        epochs = arguments.epochs
        training = learn_names(model.code_estimator, bank, severity, epochs=epochs, harm=harm)
        total, about = epochs, {"epochs": epochs}
    else:
        if arguments.told:
            model = grown(model, label_aware=True)
        chosen = {name: getattr(arguments, name) for name in ("steps", "harm_dark", "told", "lr")}
        harm = [arguments.harm if task in HARM else 1.0 for task in model.tasks]
        training = learn_restoring(model, bank, every=300, harm=harm, dark_share=arguments.dark, **chosen)
        total, about = -(-arguments.steps // 300), {**chosen, "harm": arguments.harm, "dark": arguments.dark}

    def scores(estimator: CodeEstimator) -> dict[str, float]:
        psnr = {"psnr": restored_psnr(model, estimator, check)}
        if arguments.command == "restore" and arguments.told:
            psnr["told"] = restored_psnr(model, estimator, check, told=True)
        return {**measure(estimator, check, checked), **psnr}

    before = after = scores(model.code_estimator)
    print(before)
    for estimator in (bar := tqdm(training, total=total)):
        after = scores(estimator)
        bar.set_postfix({name: f"{value:.4f}" for name, value in after.items()})
    model.code_estimator.load_state_dict(estimator.state_dict())
    code = {"pictures": len(bank.task), **about, "before": before, "after": after, **provenance()}
    past = header.metadata.get("code", [])
    metadata = {**header.metadata, "code": [*past, code]}
    save_weights(arguments.output, model, metadata)


if __name__ == "__main__":
    main()
