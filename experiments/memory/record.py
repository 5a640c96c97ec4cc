"""Does a long training keep its memory? Run a command, look at its processes' memory, fit a line.

``python experiments/memory/record.py -o FOLDER -- python -m opir_lightning.train experiment=five_task ...``

Memory is what the command with all its children holds of its own (Linux: ``Pss_Anon`` and ``Pss_Shmem`` of
``smaps_rollup``): pages that loader workers share with their parent count once, and those of mapped files not at all.
The packs of decoded pictures are such files; their pages are the system's cache, which grows as pictures are drawn, and
counts half as soon as another training maps the same pack. They are in a column of their own. The first minutes fill
caches, packs and the allocator's pools, so the line is fitted to what follows them, through the medians of whole
minutes; its slope is Theil and Sen's, which a few peaks (a validation, a checkpoint) do not bend.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import psutil
import torch
from scipy.stats import theilslopes
from tqdm import tqdm

from opir_lightning.provenance import provenance

mpl.use("agg")
import matplotlib.pyplot as plt


class Sample(NamedTuple):
    """Memory at one moment: of all processes of the command, and of the first one."""

    seconds: float
    own_mib: float
    main_mib: float
    with_files_mib: float
    processes: int


def watch(command: list[str], every: float, log: Path) -> tuple[int, list[Sample]]:
    """Run a command and look at its memory; its exit status and what was seen."""
    samples = []
    start = time.monotonic()
    with log.open("w") as output, tqdm(unit="look") as bar:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while child.poll() is None:
            if sample := _look(child.pid, time.monotonic() - start):
                samples.append(sample)
                bar.set_postfix_str(f"{sample.own_mib:.0f} MiB in {sample.processes} processes")
            bar.update()
            time.sleep(every)
    return child.returncode, samples


def _look(pid: int, seconds: float) -> Sample | None:
    try:
        main = psutil.Process(pid)
        sizes = []
        for process in [main, *main.children(recursive=True)]:
            with suppress(OSError):  # a worker that has just ended
                sizes.append(_held(process.pid))
    except psutil.NoSuchProcess:
        return None
    if not sizes:
        return None
    own, whole = (round(sum(column), 1) for column in zip(*sizes, strict=True))
    return Sample(round(seconds, 1), own, round(sizes[0][0], 1), whole, len(sizes))


def _held(pid: int) -> tuple[float, float]:
    """MiB of a process: its own, and with the pages of mapped files."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {name: float(value.split()[0]) for name, value in (line.split(":", 1) for line in lines)}
    return (kib["Pss_Anon"] + kib["Pss_Shmem"]) / 1024, kib["Pss"] / 1024


def fit(samples: list[Sample], warm_up: float) -> dict[str, float]:
    """The line through the medians of whole minutes after the warm-up (in seconds), in MiB and hours."""
    minutes: dict[int, list[float]] = {}
    for sample in samples:
        if sample.seconds >= warm_up:
            minutes.setdefault(int(sample.seconds // 60), []).append(sample.own_mib)
    hours = np.array(sorted(minutes)) / 60
    medians = np.array([np.median(minutes[minute]) for minute in sorted(minutes)])
    slope, intercept, low, high = theilslopes(medians, hours)
    noise = float(np.std(medians - (intercept + slope * hours)))
    return {
        "minutes": len(medians),
        "median_mib": round(float(np.median(medians)), 1),
        "peak_mib": max(sample.own_mib for sample in samples),
        "slope_mib_per_hour": round(float(slope), 2),
        "slope_low": round(float(low), 2),  # 95 % interval
        "slope_high": round(float(high), 2),
        "noise_mib": round(noise, 2),  # deviation of the minutes from the line
        "intercept_mib": round(float(intercept), 1),
    }


def draw(samples: list[Sample], line: dict[str, float], warm_up: float, path: Path) -> None:
    minutes = np.array([sample.seconds for sample in samples]) / 60
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    axes.plot(minutes, [s.with_files_mib for s in samples], color="#CC79A7", lw=1, label="with mapped files")
    axes.plot(minutes, [s.own_mib for s in samples], color="#0072B2", lw=1, label="all processes")
    axes.plot(minutes, [s.main_mib for s in samples], color="#E69F00", lw=1, label="the training process")
    fitted = np.array([warm_up / 60, minutes[-1]])
    label = f"{line['slope_mib_per_hour']:+.1f} MiB an hour ({line['slope_low']:+.1f} to {line['slope_high']:+.1f})"
    axes.plot(
        fitted, line["intercept_mib"] + line["slope_mib_per_hour"] * fitted / 60, color="black", ls="--", label=label
    )
    axes.set(xlabel="minutes", ylabel="MiB", ylim=(0, None))
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder for results.json, samples.csv, memory.png"
    )
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks (default: %(default)s)")
    parser.add_argument("--warm-up", type=float, default=600.0, help="seconds that the line leaves out (%(default)s)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the command to watch")
    args = parser.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        parser.error("name a command to watch, after --")
    args.output.mkdir(parents=True, exist_ok=True)
    status, samples = watch(command, args.every, args.output / "log.txt")
    with (args.output / "samples.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Sample._fields)
        writer.writerows(samples)
    if status or not samples or samples[-1].seconds < args.warm_up + 180:
        print(f"error: the command ended with status {status} too early for a line; see {args.output}/log.txt")
        return 1
    line = fit(samples, args.warm_up)
    draw(samples, line, args.warm_up, args.output / "memory.png")
    meta = {**provenance(), "torch": torch.__version__, "seconds": samples[-1].seconds, "warm_up": args.warm_up}
    (args.output / "results.json").write_text(json.dumps({"memory": line, "meta": meta}, indent=1) + "\n")
    print(json.dumps(line, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
