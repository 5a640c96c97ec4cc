"""Plots that can be told apart in print and by colour-blind people: every group has a colour, a marker and a hatch."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from opir_lightning.comparison.costs import Cost
from opir_lightning.comparison.groups import Group
from opir_lightning.comparison.scores import SetKey
from opir_lightning.comparison.statistics import Metric, Summary, damaged_sets, mean_summary, summary

# Okabe and Ito, "Color Universal Design", 2008; yellow, which is faint on white, comes late.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "ooo", "---")
LINES = ("-", "--", "-.", ":")
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "opir-lightning",  # the same plot gives the same file
    "hatch.linewidth": 0.6,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
}
_LEGEND_WIDTH = 34  # characters of one entry


class Plot(NamedTuple):
    """A drawing.

    Attributes:
        name: for a file.
        title: what it shows.
        text: the same in words, for those who cannot see it.
        svg: the drawing.
        pdf: the drawing, for print.
    """

    name: str
    title: str
    text: str
    svg: bytes
    pdf: bytes


def bars(groups: Sequence[Group], keys: Sequence[SetKey], profile: str, metric: Metric) -> Plot | None:
    """A bar per group and set, with the standard deviation over the runs; None without any finite score."""
    table = {g.name: [summary(g, key, profile, metric.key) for key in keys] for g in groups}
    finite = [s.mean for row in table.values() for s in row if s is not None and math.isfinite(s.mean)]
    if not finite:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(max(5.0, 1.1 * len(keys) * max(1.0, len(groups) / 4)), 3.4), layout="constrained")
        axes = figure.subplots()
        width = 0.8 / len(groups)
        for number, (name, row) in enumerate(table.items()):
            there = [(i, s) for i, s in enumerate(row) if s is not None and math.isfinite(s.mean)]
            axes.bar(
                [i + (number - (len(groups) - 1) / 2) * width for i, _ in there],
                [s.mean for _, s in there],
                width,
                yerr=[s.std or 0.0 for _, s in there] if any(s.std for _, s in there) else None,
                color=COLOURS[number % len(COLOURS)],
                hatch=HATCHES[(number + number // len(COLOURS)) % len(HATCHES)],
                edgecolor="black",
                linewidth=0.6,
                capsize=2,
                label=plain(name),
            )
        # Bars of PSNR from 0 would hide every difference; the axis says where it begins.
        spread = max(finite) - min(finite)
        axes.set_ylim(bottom=max(0.0, min(finite) - 0.15 * spread - 0.02 * abs(min(finite))))
        axes.set_xticks(range(len(keys)), [plain(key.name) for key in keys], rotation=20 if len(keys) > 6 else 0)
        axes.set_ylabel(metric.title)
        axes.grid(axis="y", alpha=0.3)
        _legend(figure, axes)
        title = f"{metric.title}, {keys[0].origin}"
        text = f"Bars of {metric.title} for each set and group; the numbers stand in the table of that score."
        return drawn_as(figure, f"bars-{metric.key}-{keys[0].origin.replace(' ', '-')}", title, text)


def curves(groups: Sequence[Group]) -> Plot | None:
    """PSNR of the validations over the steps: the mean of the runs, and a band from the worst to the best of them."""
    drawn = [group for group in groups if any(len(run.curve) > 1 for run in group.runs)]
    if not drawn:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        ends = []
        for number, group in enumerate(groups):
            if group not in drawn:
                continue
            steps, mean, low, high = _band([run.curve for run in group.runs if len(run.curve) > 1])
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(
                steps,
                mean,
                color=colour,
                linestyle=LINES[number % len(LINES)],
                marker=MARKERS[number % len(MARKERS)],
                markevery=max(1, len(steps) // 12),
                markersize=5,
                markeredgecolor="black",
                markeredgewidth=0.4,
                label=plain(group.name),
            )
            axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
            ends.append(f"{group.name}: {mean[-1]:.2f} dB at step {steps[-1]}")
        axes.set(xlabel="steps", ylabel="validation PSNR in dB, stage 2")
        axes.grid(alpha=0.3)
        _legend(figure, axes)
        return drawn_as(figure, "curves", "Validation while training", f"Lines of PSNR over steps. {'; '.join(ends)}.")


def _band(curves_: Sequence[list[tuple[int, float]]]) -> tuple[Any, Any, Any, Any]:
    """Steps at which all runs were validated, or could be seen to lie between; mean, lowest and highest there."""
    first, last = max(c[0][0] for c in curves_), min(c[-1][0] for c in curves_)
    steps = np.array(sorted({step for curve in curves_ for step, _ in curve if first <= step <= last}))
    if not len(steps):  # runs that share no time: the longest alone
        curves_ = [max(curves_, key=len)]
        steps = np.array([step for step, _ in curves_[0]])
    pairs = [np.array(curve, float).T for curve in curves_]
    values = np.array([np.interp(steps, taken, psnr) for taken, psnr in pairs])
    return steps, values.mean(0), values.min(0), values.max(0)


def pareto(
    groups: Sequence[Group],
    keys: Sequence[SetKey],
    profile: str,
    metric: Metric,
    costs: Sequence[Cost],
    *,
    against: str,
) -> Plot | None:
    """PSNR, the mean of the damaged sets, against ``macs`` or ``latency``; those that nothing beats are joined."""
    averaged = damaged_sets(groups, keys, profile)
    points: list[tuple[int, float, Summary]] = []
    for number, (group, cost) in enumerate(zip(groups, costs, strict=True)):
        mean = mean_summary(group, averaged, profile, metric.key)
        price = (cost.macs / 1e9 if cost.macs else None) if against == "macs" else cost.latency_ms
        if mean is not None and price is not None and math.isfinite(mean.mean):
            points.append((number, price, mean))
    if not points:
        return None
    label = "MACs at 256x256 in G" if against == "macs" else "latency at 256x256 in ms"
    with rc_context(STYLE):
        figure = Figure(figsize=(5.4, 3.6), layout="constrained")
        axes = figure.subplots()
        for number, price, mean in points:
            axes.errorbar(
                price,
                mean.mean,
                yerr=mean.std,
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                markersize=8,
                markeredgecolor="black",
                markeredgewidth=0.5,
                capsize=3,
                linestyle="none",
                label=plain(groups[number].name),
            )
        front = _front([(price, mean.mean) for _, price, mean in points])
        if len(front) > 1:
            axes.plot(*zip(*front, strict=True), color="0.4", linewidth=0.8, linestyle="--", zorder=0)
        prices = [price for _, price, _ in points]
        if max(prices) > 3 * min(prices) > 0:
            axes.set_xscale("log")
        elif max(prices) < 1.05 * min(prices):  # as good as equal: an axis of their last digits would mislead
            axes.set_xlim(0.8 * min(prices), 1.2 * max(prices))
        axes.set(xlabel=label, ylabel=f"{metric.title}\nmean of the damaged sets")
        axes.grid(alpha=0.3, which="both")
        _legend(figure, axes)
        said = "; ".join(f"{groups[n].name}: {mean.mean:.2f} dB for {price:.2f}" for n, price, mean in points)
        title = f"PSNR against {'MACs' if against == 'macs' else 'latency'}, {keys[0].origin} sets"
        name = f"pareto-{against}-{keys[0].origin.replace(' ', '-')}"
        return drawn_as(figure, name, title, f"Points of PSNR against {label}. {said}.")


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one beats in price and score, by price."""
    return sorted(
        {
            (price, score)
            for price, score in points
            if not any(p <= price and s >= score and (p, s) != (price, score) for p, s in points)
        }
    )


def _legend(figure: Figure, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, int(figure.get_figwidth() * 14 // max(min(len(label), _LEGEND_WIDTH) + 8 for label in labels)))
    figure.legend(handles, labels, loc="outside upper left", ncols=min(columns, len(labels)), frameon=False)


def plain(text: str) -> str:
    """Text that is drawn as it is: a pair of dollars would set mathematics, a line break tear the legend apart."""
    return "".join(c if c.isprintable() else " " for c in text).replace("$", r"\$")


def drawn_as(figure: Figure, name: str, title: str, text: str) -> Plot:
    """The figure as files that are the same whenever the same is drawn."""
    files = {}
    for kind, metadata in (("svg", {"Date": None}), ("pdf", {"CreationDate": None})):
        file = io.BytesIO()
        figure.savefig(file, format=kind, metadata=metadata)
        files[kind] = file.getvalue()
    return Plot(name, title, text, files["svg"], files["pdf"])
