"""Memory of a group of processes, from the kernel's own accounts (Linux)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Memory(NamedTuple):
    """Of all processes together, in MiB; a page that several have is counted once, by its shares.

    Attributes:
        own: what the processes have allocated.
        mapped: pages of mapped files that are in memory, packs and libraries; the kernel takes them back at need.
        passed: shared memory, in which workers hand over batches.
    """

    own: float
    mapped: float
    passed: float


def memory_of(processes: Sequence[int]) -> Memory:
    """Sum over processes that are alive."""
    sums = [0.0, 0.0, 0.0]
    for process in processes:
        account = Path(f"/proc/{process}/smaps_rollup")
        if account.exists():
            fields = dict(re.findall(r"^(\w+):\s+(\d+) kB", account.read_text(), re.M))
            sums = [
                s + int(fields[f"Pss_{kind}"]) / 1024 for s, kind in zip(sums, ("Anon", "File", "Shmem"), strict=True)
            ]
    return Memory(*(round(s, 1) for s in sums))
