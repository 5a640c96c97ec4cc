"""Benchmark of the operator convolution and of predict-and-apply, on the CPU or on one CUDA device.

``python experiments/bench_operator_conv/bench.py`` measures, writes ``results-<device>.json`` beside this file after
every series, and prints the figures that have a target. ``plot.py`` makes tables and a figure of such files. The exit
status is 1 where something failed parity and was therefore not timed, or failed altogether.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from opir_lightning.threads import limit_spinning

# Both are read when torch is imported.
limit_spinning()  # as the commands do
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler, which counts memory, prints two lines a case

import clock  # noqa: E402
import machine  # noqa: E402
import tables  # noqa: E402
import torch  # noqa: E402
from cases import choose, series_for  # noqa: E402
from runner import Run  # noqa: E402

HERE = Path(__file__).resolve().parent
# Load of the last minute. Other busy processes slow ``shifted``, which waits for all threads after every tap, by far
# more than the baselines: seen were 900 ms instead of some 30, on two cores with a load of 4.
QUIET = 0.5
SECONDS = {"cpu": 0.5, "cuda": 0.15}  # for each case


def main(arguments: list[str] | None = None) -> int:
    """Parse, measure, print; the exit status."""
    options = parse(arguments)
    if options.list:
        for one in series_for(options.device):
            print(f"{one.name:10} {one.title}: {len(one.settings)} settings, {', '.join(one.ways)}")
        return 0
    try:
        chosen = choose(options.device, options.series, quick=options.quick, side=options.side)
    except ValueError as error:
        print(f"bench.py: {error}", file=sys.stderr)
        return 2
    prepare(options.device, options.threads)
    meta = machine.meta(options.device)
    meta["copy_bytes_per_second"] = clock.copy_bandwidth(options.device, options.seconds)
    print(f"{meta['device']}, {meta['processor']}, copy {meta['copy_bytes_per_second'] / 1e9:.1f} GB/s", flush=True)
    if meta["load"] > QUIET:
        print(f"NOT QUIET: the load of the last minute is {meta['load']:.1f}, numbers will be wrong", file=sys.stderr)
    run = Run(options.device, options.seconds, options.minutes, options.out, meta)
    run.series(chosen)
    meta["copy_bytes_per_second_at_the_end"] = clock.copy_bandwidth(options.device, options.seconds)
    run.write()
    print(f"\n{tables.targets(run.results)}\n\nwritten: {options.out}")
    for case in run.wrong:
        print(f"{case['status']}: {case['way']}, {case['quantity']}: {case['reason']}", file=sys.stderr)
    return 1 if run.wrong else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, with what depends on the device filled in."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--series", nargs="+", default=[], metavar="NAME", help="only these; --list names them")
    parser.add_argument("--list", action="store_true", help="list the series and stop")
    parser.add_argument("--quick", action="store_true", help="two settings of each of the first three series")
    parser.add_argument("--minutes", type=float, default=8, help="what is left after these is skipped (8)")
    parser.add_argument("--seconds", type=float, help="for each case (0.5 on the CPU, 0.15 on CUDA)")
    parser.add_argument("--side", type=int, help="height and width of every picture, to try the script")
    parser.add_argument("--threads", type=int, help="of the CPU (torch's default)")
    parser.add_argument("--out", type=Path, help="file of the results (results-<device>.json beside this script)")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device")
    options.seconds = options.seconds or SECONDS[options.device]
    options.out = options.out or HERE / f"results-{machine.slug(options.device)}.json"
    return options


def prepare(device: str, threads: int | None) -> None:
    """Settings of torch that decide what is measured."""
    if threads:
        torch.set_num_threads(threads)
    # Float32 means float32: the matrix units' shorter form of it would fail parity.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    clock.peak_memory(lambda: torch.ones(1, device=device), device)  # the profiler's first use takes seconds


if __name__ == "__main__":
    sys.exit(main())
