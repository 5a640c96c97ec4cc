"""Does what a training holds grow from epoch to epoch, once the loader's processes are new?

``python experiments/memory/renewals.py experiments/memory/samples.csv``

A worker's memory rises while it lives, because it writes to pages that it shared with its parent; the next epoch's
workers begin anew. Only what is left over at a beginning can add up. A beginning is where what the workers hold falls
by more than 8 MiB; the level is the median of the looks from 10 to 60 seconds after it.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from scipy.stats import theilslopes

FALL = 8.0  # MiB
LEVEL = (10.0, 60.0)  # seconds after a beginning
WARM_UP = 600.0  # seconds


def main() -> None:
    rows = list(csv.DictReader(Path(sys.argv[1]).read_text().splitlines()))
    seconds, own, first = (np.array([float(row[name]) for row in rows]) for name in ("seconds", "own_mib", "main_mib"))
    workers = own - first
    falls = seconds[1:][np.diff(workers) < -FALL]
    begins = [at for before, at in zip([-np.inf, *falls], falls, strict=False) if at - before > LEVEL[1]]
    found = []
    for at in begins:
        looks = (seconds >= at + LEVEL[0]) & (seconds < at + LEVEL[1]) & (workers > 0)
        if at > WARM_UP and looks.any():
            found.append((at / 3600, float(np.median(own[looks]))))
    hours, levels = (np.array(column) for column in zip(*found, strict=True))
    slope, _, low, high = theilslopes(levels, hours)
    print(f"{len(found)} beginnings from minute {hours[0] * 60:.0f} to {hours[-1] * 60:.0f}")
    print("MiB:", " ".join(f"{level:.0f}" for level in levels))
    print(f"slope {slope:+.1f} MiB an hour (95 %: {low:+.1f} to {high:+.1f}), deviation {levels.std():.1f} MiB")


if __name__ == "__main__":
    main()
