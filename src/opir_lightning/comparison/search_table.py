"""A search in words and numbers: what was tried, and what came of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from opir_lightning.comparison.csv_text import csv_text
from opir_lightning.comparison.searches import Search, Trial
from opir_lightning.comparison.tables import Cell, Table


def summed_up(search: Search) -> str:
    """One sentence: how many trials, how they ended, and the best."""
    states = Counter(trial.state for trial in search.trials)
    counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
    number = len(search.trials)
    sentence = f"The search '{search.name}' has {number} trial{'' if number == 1 else 's'}: {counts or 'none yet'}."
    if search.best is None or search.best.value is None:
        return sentence
    tried = ", ".join(f"{name}={shown(value)}" for name, value in search.best.parameters.items())
    return f"{sentence[:-1]}. Best {search.metric}: {search.best.value:.3f}, trial {search.best.number} with {tried}."


def trial_table(search: Search) -> Table:
    """A row per trial: state, value, steps, time and settings."""
    parameters = search.parameters()
    rows = []
    for trial in search.trials:
        best = search.best is not None and trial.number == search.best.number
        row = [
            Cell(str(trial.number)),
            Cell(trial.state),
            _number(trial.value, f"{trial.value:.3f}" if trial.value is not None else "", best),
            _number(trial.steps, str(trial.steps)),
            _number(trial.seconds, f"{trial.seconds:.0f}" if trial.seconds is not None else ""),
        ]
        rows.append([*row, *(_setting(trial, name) for name in parameters)])
    note = (
        "Larger values are better. That of a pruned trial is of its last validation, which came earlier than the last "
        "of the others. Only complete trials are compared below."
    )
    if search.importances:
        told = ", ".join(f"{name} {share:.0%}" for name, share in search.importances.items())
        note += f" How much of the differences each setting explains (PED-ANOVA, of complete trials): {told}."
    columns = ["trial", "state", search.metric, "steps", "seconds", *parameters]
    return Table(f"Trials of the search '{search.name}'", columns, rows, note)


def _number(number: float | None, text: str, best: bool = False) -> Cell:
    return Cell("–") if number is None else Cell(text, number, best)


def _setting(trial: Trial, name: str) -> Cell:
    if name not in trial.parameters:
        return Cell("–")
    value = trial.parameters[name]
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(shown(value), float(value) if numeric else None)


def shown(value: Any) -> str:
    """A setting as one would type it, a number with four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def trials_csv(searches: Iterable[Search]) -> str:
    """Every trial, its settings in full; one line each."""
    searches = list(searches)
    names = list(dict.fromkeys(name for search in searches for name in search.parameters()))
    rows: list[list[Any]] = [["search", "trial", "state", "value", "steps", "seconds", *names]]
    for search in searches:
        for trial in search.trials:
            row = [search.name, trial.number, trial.state, trial.value, trial.steps, trial.seconds]
            settings = [trial.parameters.get(name, "") for name in names]
            rows.append([*row, *(json.dumps(s) if isinstance(s, list | dict) else s for s in settings)])
    return csv_text(rows)
