"""Residual histograms, real against synthetic: ``plot.py`` draws results.json again as residuals.png."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from pairs import BINS, HALF_BIN

HERE = Path(__file__).resolve().parent
# Okabe and Ito's palette, and line styles that stay apart in grey print.
REAL, SYNTHETIC = {"color": "#0072B2", "linestyle": "-"}, {"color": "#D55E00", "linestyle": "--"}
COLUMNS = 4
LEAST = 1e-6  # shares below are drawn at the lower edge


def draw(sets: Mapping[str, Any], path: Path) -> None:
    """One panel a set: the residuals of its pairs, and of the synthetic degradation on its clean pictures."""
    rows = -(-len(sets) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(3.3 * COLUMNS, 2.3 * rows), squeeze=False, sharey=True)
    middles = (np.arange(BINS) + 0.5) * 2 * HALF_BIN - 256
    for axis in axes.flat[len(sets) :]:
        axis.axis("off")
    for axis, (name, result) in zip(axes.flat, sets.items(), strict=False):
        for kind, label, style in (("real", "real", REAL), ("synthetic", "synthetic", SYNTHETIC)):
            axis.plot(middles, np.maximum(result["histogram"][kind], LEAST), label=label, linewidth=1.4, **style)
        axis.set_yscale("log")
        axis.set_ylim(LEAST, 1)
        axis.set_title(f"{name} ({result['role']}): {result['task'].replace('_', ' ')}", fontsize=9)
        fitted = "" if result["matched_severity"] is not None else ", PSNR not reached"
        axis.text(
            0.03, 0.9, f"severity {result['matched']['severity']:.2f}{fitted}", transform=axis.transAxes, fontsize=8
        )
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
    for axis in axes[:, 0]:
        axis.set_ylabel("share of values", fontsize=8)
    for column in range(COLUMNS):
        axes[(len(sets) - 1 - column) // COLUMNS if column < len(sets) else 0, column].set_xlabel(
            "degraded - clean, 8-bit levels", fontsize=8
        )
    axes.flat[0].legend(fontsize=8, loc="center left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    draw(json.loads((HERE / "results.json").read_text())["sets"], HERE / "residuals.png")
