"""How many threads torch has, and how they wait for each other."""

from __future__ import annotations

import os

from opir_lightning.errors import UserError


def limit_spinning() -> None:
    """Let waiting OpenMP threads sleep after a short while; call before torch is imported, it is read only then.

    By default GNU's OpenMP spins for long. Where another process wants one of two cores, the spinning thread takes it
    from the one it waits for: a training step of opir_tiny took 3.2 s instead of 0.1 s so, and 0.3 s with this limit,
    which costs an undisturbed step 1 %. Whoever sets one of the variables keeps it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def use_threads(count: int | None) -> None:
    """Let torch compute with this many threads; None leaves its choice.

    Raises:
        UserError: there are none.
    """
    import torch

    if count is None:
        return
    if count < 1:
        raise UserError(f"threads is {count}; it must be 1 or more, or null.")
    torch.set_num_threads(count)
