"""Settings of a training whose range no constructor of this package checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from opir_lightning.errors import UserError

# Of Lightning's trainer, which takes any number and fails, or does something else, later. -1 is no limit.
_AT_LEAST = {"accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "log_every_n_steps": 0, "gradient_clip_val": 0}
_LENGTHS = ("max_steps", "max_epochs", "limit_train_batches")


def check_ranges(plain: Mapping[str, Any]) -> None:
    """Hold the settings at the root of a training, and those of its trainer, against their ranges.

    Args:
        plain: the resolved configuration, its values of the right kinds.

    Raises:
        UserError: a setting is out of its range.
    """
    if plain["task_code"] not in ("blind", "label"):
        raise UserError(f"task_code is '{plain['task_code']}'; it must be blind or label.")
    if not 0 <= plain["seed"] < 2**32:
        raise UserError(f"seed is {plain['seed']}; it must be from 0 to {2**32 - 1}.")
    if not 0 <= plain["task_lr_factor"] < math.inf:
        raise UserError(f"task_lr_factor is {plain['task_lr_factor']:g}; it must be 0 or more.")
    trainer = plain["trainer"]
    for name, least in _AT_LEAST.items():
        value = trainer.get(name)
        if value is not None and value < least:
            raise UserError(f"trainer.{name} is {value:g}; it must be {least} or more.")
    for name in _LENGTHS:
        if trainer.get(name) == 0:
            raise UserError(f"trainer.{name} is 0; it must be more than 0, or no step would be taken.")
