"""Plots of a search: in all of them complete trials are blue, the best one is orange, and pruned ones red."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from opir_lightning.comparison.plots import COLOURS, STYLE, Plot, drawn_as, plain
from opir_lightning.comparison.search_table import shown
from opir_lightning.comparison.searches import PRUNED, Search, Trial, is_complete

_COMPLETE, _BEST, _PRUNED = COLOURS[0], COLOURS[1], COLOURS[5]
_MOST = 6  # settings in one plot, the most important ones
_WIDE = 6.4  # inches
Pairs = list[tuple[float, float]]


def search_plots(search: Search, prefix: str) -> list[Plot]:
    """What can be drawn of a search, ``prefix`` before the names of the files."""
    drawn = (history(search), validations(search), importances(search), slices(search), coordinates(search))
    return [plot._replace(name=f"{prefix}-{plot.name}") for plot in drawn if plot is not None]


def history(search: Search) -> Plot | None:
    """The value of each complete trial, and the best of those before it."""
    points = [(t.number, t.value) for t in search.trials if is_complete(t) and t.value is not None]
    if not points:
        return None
    best = [max(value for _, value in points[: n + 1]) for n in range(len(points))]
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDE, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.step([n for n, _ in points], best, where="post", color=_BEST, label="best so far", zorder=2)
        axes.plot(*zip(*points, strict=True), "o", color=_COMPLETE, label="complete trial", zorder=3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="trial", ylabel=plain(search.metric))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        text = f"Points of {search.metric} over trials; the best went from {best[0]:.3f} to {best[-1]:.3f}."
        return drawn_as(figure, "history", "Value of each trial, and the best so far", text)


def validations(search: Search) -> Plot | None:
    """The curve of every trial over its validations; those that were pruned end in a cross."""
    there = [trial for trial in search.trials if trial.validations]
    if not there:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDE, 3.4), layout="constrained")
        axes = figure.subplots()
        for trial in there:
            colour, label = _role(search, trial)
            numbers = [number + 1 for number in trial.validations]
            values = list(trial.validations.values())
            axes.plot(
                numbers,
                values,
                color=colour,
                linewidth=2 if colour == _BEST else 1,
                alpha=1 if colour in (_BEST, _PRUNED) else 0.7,
                marker="." if colour != _PRUNED else "",
                zorder=3 if colour == _BEST else 2,
                label=label,
            )
            if trial.state == PRUNED:
                axes.plot(numbers[-1:], values[-1:], "x", color=colour, zorder=4)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="validation", ylabel=plain(search.metric))
        axes.grid(alpha=0.3)
        _one_of_each(axes)
        pruned = [trial for trial in there if trial.state == PRUNED]
        ends = ", ".join(f"trial {t.number} after validation {max(t.validations) + 1}" for t in pruned)
        text = f"Lines of {search.metric} over validations, one a trial. Pruned: {ends or 'none'}."
        return drawn_as(figure, "validations", "Trials while they trained; a cross ends one that was pruned", text)


def importances(search: Search) -> Plot | None:
    """How much of the differences each setting explains."""
    if not search.importances:
        return None
    shares = sorted(search.importances.items(), key=lambda item: item[1])
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDE, 0.9 + 0.35 * len(shares)), layout="constrained")
        axes = figure.subplots()
        bars = axes.barh([plain(name) for name, _ in shares], [share for _, share in shares], color=_COMPLETE)
        axes.bar_label(bars, [f"{share:.0%}" for _, share in shares], padding=3)
        axes.set(xlabel="share of the differences that it explains", xlim=(0, 1.12 * max(s for _, s in shares) or 1))
        said = ", ".join(f"{name} {share:.0%}" for name, share in reversed(shares))
        return drawn_as(figure, "importances", "Importance of the settings (PED-ANOVA)", f"Bars of importance: {said}.")


def slices(search: Search) -> Plot | None:
    """The values over each setting."""
    names = search.parameters()[:_MOST]
    there = [
        trial for trial in search.trials if trial.value is not None and (is_complete(trial) or trial.state == PRUNED)
    ]
    if not names or not there:
        return None
    columns = min(3, len(names))
    lines = math.ceil(len(names) / columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDE, 0.6 + 2.1 * lines), layout="constrained")
        all_axes = figure.subplots(lines, columns, sharey=True, squeeze=False)
        for axes, name in zip(all_axes.flat, names, strict=False):
            place, marks = _scale(search, name)
            for trial in sorted(there, key=lambda t: _role(search, t)[0] == _BEST):
                if name in trial.parameters:
                    colour, label = _role(search, trial)
                    marker = {_BEST: "*", _PRUNED: "x"}.get(colour, "o")
                    size = 11 if marker == "*" else 5
                    axes.plot(
                        place(trial.parameters[name]), trial.value, marker, color=colour, markersize=size, label=label
                    )
            axes.set_xticks(*zip(*marks, strict=True))
            axes.set_xlabel(plain(name))
            axes.grid(alpha=0.3)
        for axes in all_axes.flat[len(names) :]:
            axes.set_visible(False)
        for row in all_axes:
            row[0].set_ylabel(plain(search.metric))
        _one_of_each(all_axes[0, 0], figure)
        text = f"Points of {search.metric} over each of {', '.join(names)}; the numbers stand in the table of trials."
        return drawn_as(
            figure, "slices", "Value over each setting; of pruned trials that of their last validation", text
        )


def coordinates(search: Search) -> Plot | None:
    """A line for each trial through its settings to its value."""
    names = search.parameters()[:_MOST]
    there = [trial for trial in search.trials if is_complete(trial) and all(name in trial.parameters for name in names)]
    if len(names) < 2 or len(there) < 2:
        return None
    values = [trial.value or 0.0 for trial in there]
    low, high = min(values), max(values)
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDE, 3.4), layout="constrained")
        axes = figure.subplots()
        scales = [_scale(search, name) for name in names]
        ends: list[Pairs] = [[(at, 0.0) for at, _ in marks] for _, marks in scales]
        spans = [(min(at for at, _ in pairs), max(at for at, _ in pairs)) for pairs in ends]
        for trial, value in sorted(zip(there, values, strict=True), key=lambda pair: pair[1]):
            heights = [
                _share(place(trial.parameters[name]), *span)
                for name, (place, _), span in zip(names, scales, spans, strict=True)
            ]
            colour, label = _role(search, trial)
            share = _share(value, low, high)
            strength = 1.0 if colour == _BEST else 0.15 + 0.65 * share  # the better, the darker
            axes.plot(
                [*heights, share], color=colour, alpha=strength, linewidth=2.5 if colour == _BEST else 1.4, label=label
            )
        marks = [*(found for _, found in scales), [(low, f"{low:.2f}"), (high, f"{high:.2f}")]]
        for column, (found, span) in enumerate(zip(marks, [*spans, (low, high)], strict=True)):
            axes.axvline(column, color="0.6", linewidth=0.8, zorder=1)
            for at, text in found:
                axes.annotate(
                    text, (column, _share(at, *span)), (3, 0), textcoords="offset points", fontsize=7, va="center"
                )
        axes.set_xticks(range(len(names) + 1), [*map(_short, names), plain(search.metric)], fontsize=8)
        axes.set_xlim(-0.1, len(names) + 0.4)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        _one_of_each(axes, figure)
        text = f"A line per complete trial through {', '.join(names)} to {search.metric}, from {low:.3f} to {high:.3f}."
        return drawn_as(figure, "coordinates", "Complete trials through their settings; the better, the darker", text)


def _role(search: Search, trial: Trial) -> tuple[str, str]:
    """Colour and name of what a trial is to the search."""
    if search.best is not None and trial.number == search.best.number:
        return _BEST, "best"
    if trial.state == PRUNED:
        return _PRUNED, "pruned"
    return (_COMPLETE, "complete") if is_complete(trial) else ("0.6", "failed or unfinished")


def _scale(search: Search, name: str) -> tuple[Callable[[Any], float], list[tuple[float, str]]]:
    """Where a value of a setting stands on its axis, and the marks of the axis.

    Choices that are no numbers stand side by side; settings that were drawn in equal ratios are logarithmic.
    """
    values = [trial.parameters[name] for trial in search.trials if name in trial.parameters]
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        words = list(dict.fromkeys(map(shown, values)))
        return lambda value: float(words.index(shown(value))), [(float(n), plain(w)) for n, w in enumerate(words)]
    place = math.log10 if name in search.logarithmic else float
    distinct = sorted(set(values))
    if len(distinct) > 4:
        ends = [place(distinct[0]), place(distinct[-1])]
        at = [ends[0], sum(ends) / 2, ends[1]]
        return place, [(x, f"{10**x if place is math.log10 else x:.2g}") for x in at]
    return place, [(place(value), shown(value)) for value in distinct]


def _share(value: float, low: float, high: float) -> float:
    """Height between the two ends, from 0 to 1; in the middle where they are the same."""
    return (value - low) / (high - low) if high > low else 0.5


def _short(name: str) -> str:
    """The last two parts of a path, one below the other."""
    return plain(".".join(name.split(".")[-2:])).replace(".", ".\n")


def _one_of_each(axes: Any, figure: Figure | None = None) -> None:
    """A legend without repetitions, beside the plots where there are several."""
    found = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if figure is None:
        axes.legend(found.values(), found.keys(), frameon=False)
    else:
        figure.legend(found.values(), found.keys(), loc="outside upper left", ncols=len(found), frameon=False)


def parts(searches: Sequence[Search]) -> list[list[Plot]]:
    """Plots of each search; the names of their files differ."""
    return [search_plots(s, "search" if len(searches) == 1 else f"search-{n}") for n, s in enumerate(searches, 1)]
