"""Trainings of a few steps on two tasks, for the tests of what a run shows."""

from __future__ import annotations

from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from opir_lightning.config import check_keys, config_dir, register_schemas
from opir_lightning.train import assemble

SHORT = [
    "experiment=demo",
    "tasks=[none,noise]",
    "data.crop=32",
    "data.batch_size=2",
    "data.epoch_samples=4",
    "data.workers=0",
    "data.val_pictures=2",
    "data.val_centre=64",
    "model.width=8",
    "model.middle_blocks=1",
    "model.features=8",
    "optimizer.lr=0.02",
    "schedule.warmup=0",
    "trainer.max_time=null",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
    "callbacks.progress=null",
    "callbacks.ema.decay=0.5",
]


def prepared(run_dir: Path, *overrides: str):
    """Module, data and trainer of a run whose epochs have two steps."""
    register_schemas()
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        plain = check_keys(compose("train", [*SHORT, f"run_dir={run_dir}", *overrides]))
    module, data, trainer, _ = assemble(plain)
    return module, data, trainer


def sometimes_broken(clean: Tensor, *, generator: torch.Generator, severity: float) -> Tensor:
    """A degradation of one's own that leaves a pixel that is no number in one picture of three."""
    damaged = (clean + 0.1 * severity * torch.randn(clean.shape, generator=generator)).clamp(0, 1)
    if torch.rand((), generator=generator) < 1 / 3:
        damaged[0, 10, 10] = torch.nan
    return damaged
