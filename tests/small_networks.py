"""The smallest network that has all its parts, for tests of what is around it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from opir_lightning.models import OPIR


def small_network(tasks: Sequence[str], brighter: Sequence[float] | None = None) -> OPIR:
    """An identity at its start, always the same one.

    Args:
        tasks: names of its classes.
        brighter: what is added to every pixel where a task is named, in image units, one number for each.
    """
    torch.manual_seed(0)
    net = OPIR(tasks=tasks, width=4, encoder_blocks=[1], middle_blocks=1, decoder_blocks=[1], features=4, code_crop=16)
    if brighter is not None:
        with torch.no_grad():  # the offsets of stage 1; stage 2 starts as an identity
            net.task_parameters[0].affine.weight[:, 1, -3:] = torch.tensor(brighter)[:, None]
    return net
