"""Tables and a figure of results: ``plot.py results-cpu.json [more.json ...]`` prints Markdown, draws ``figure.png``.

Each file is a row of three panels: forward against K, forward + backward against K, and the default operator over
sizes as a multiple of the time in which its fewest bytes are copied.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import tables
from cases import (
    BOTH,
    CONV2D,
    EINSUM,
    FORWARD,
    IMAGE_GRADIENT,
    SHIFTED,
    SUM,
    TAPS_GRADIENT,
    TRITON,
    Setting,
    setting_of,
)
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

HERE = Path(__file__).resolve().parent
# Colour, marker and line: apart for colour-blind eyes (the palette of Okabe and Ito) and in grey print.
STYLES = {
    TRITON: ("#D55E00", "o", "-"),
    SHIFTED: ("#0072B2", "s", "-"),
    SUM: ("#009E73", "^", "--"),
    EINSUM: ("#000000", "v", ":"),
    CONV2D: ("#CC79A7", "D", "-."),
}
QUANTITY_STYLES = {
    FORWARD: ("#0072B2", "o", "-"),
    TAPS_GRADIENT: ("#009E73", "^", "--"),
    IMAGE_GRADIENT: ("#CC79A7", "v", ":"),
    BOTH: ("#D55E00", "s", "-."),
}


def main(arguments: list[str] | None = None) -> int:
    """Print the tables of every file and draw them all into one figure."""
    parser = argparse.ArgumentParser(description="Tables (printed) and a figure of results.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=HERE / "figure.png", help="(figure.png beside this script)")
    options = parser.parse_args(arguments)
    runs = [json.loads(path.read_text()) for path in options.files]
    for path, run in zip(options.files, runs, strict=True):
        print(f"## {path.name}\n\n{tables.document(run)}\n")
    draw(runs, options.out)
    print(f"drawn: {options.out}", file=sys.stderr)
    return 0


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """One row of panels for each run."""
    figure, rows = plt.subplots(
        len(runs), 3, figsize=(13, 4.2 * len(runs)), squeeze=False, layout="constrained", dpi=110
    )
    for axes, run in zip(rows, runs, strict=True):
        for ax, quantity in zip(axes, (FORWARD, BOTH), strict=False):
            _against_size_of_operator(ax, run, quantity)
        _over_sizes(axes[2], run)
        axes[0].annotate(
            run["meta"]["device"], (0, 1.12), xycoords="axes fraction", fontsize=12, fontweight="bold", va="bottom"
        )
    figure.savefig(path)
    plt.close(figure)


def _against_size_of_operator(ax: Axes, run: dict[str, Any], quantity: str) -> None:
    """Milliseconds against K, shared taps, one dilation, at the largest size at which most was measured."""
    cases = _timed(run, lambda s: not s.F and s.C == 3 and s.G == 1 and s.dilations == (1,))
    cases = [case for case in cases if case["series"].startswith("k-") and case["quantity"] == quantity]
    sides = [case["setting"]["H"] for case in cases]
    side = max(sides, key=lambda side: (sides.count(side), side), default=0)
    cases = [case for case in cases if case["setting"]["H"] == side]
    for way, (colour, marker, line) in STYLES.items():
        points = sorted((case["setting"]["K"], case["median_ms"]) for case in cases if case["way"] == way)
        if points:
            ax.plot(*zip(*points, strict=True), color=colour, marker=marker, linestyle=line, label=way)
    ax.set(title=f"{quantity}, {f'3 x {side} x {side}, ' if side else ''}shared taps", xlabel="K", ylabel="ms")
    _finish(ax, sorted({case["setting"]["K"] for case in cases}))


def _over_sizes(ax: Axes, run: dict[str, Any]) -> None:
    """Time over the copy of the fewest bytes against megapixels, default operator, the fastest backend."""
    way = TRITON if run["meta"]["kind"] == "cuda" else SHIFTED
    cases = [case for case in _timed(run) if case["series"] == "default" and case["way"] == way]
    for quantity, (colour, marker, line) in QUANTITY_STYLES.items():
        points = sorted((case["setting"]["H"], case["copy_ratio"]) for case in cases if case["quantity"] == quantity)
        if points:
            ax.plot(*zip(*points, strict=True), color=colour, marker=marker, linestyle=line, label=quantity)
    ax.axhline(1, color="0.5", linewidth=0.8)
    ax.set(title=f"default operator, {way}", xlabel="side in pixels", ylabel="time / time to copy its bytes")
    ax.set_xscale("log")
    _finish(ax, sorted({case["setting"]["H"] for case in cases}))


def _finish(ax: Axes, ticks: Sequence[int]) -> None:
    ax.set_yscale("log")
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.grid(True, which="both", color="0.9")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if ticks:
        ax.legend(fontsize=8)
    else:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center")


def _timed(run: dict[str, Any], keep: Callable[[Setting], bool] = lambda s: True) -> list[dict[str, Any]]:
    return [case for case in run["cases"] if case["status"] == "timed" and keep(setting_of(case["setting"]))]


if __name__ == "__main__":
    sys.exit(main())
