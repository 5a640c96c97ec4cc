"""Tables that know no format, and their CSV, Markdown and LaTeX forms."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from opir_lightning.comparison.costs import Cost
from opir_lightning.comparison.csv_text import csv_text
from opir_lightning.comparison.groups import Group, settings_table
from opir_lightning.comparison.scores import SetKey
from opir_lightning.comparison.statistics import (
    FEW,
    METRICS,
    Difference,
    Metric,
    Summary,
    damaged_sets,
    mean_summary,
    summary,
    value,
)

COST_SIDE = 256  # pixels


@dataclass(frozen=True)
class Cell:
    """A text, the number to sort by (None: the text), and whether it is the best of its column."""

    text: str
    number: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table with its caption; the first column names the rows. ``last`` is a row apart that is never sorted."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""
    last: list[Cell] = field(default_factory=list)


def score_tables(groups: Sequence[Group], keys: Sequence[SetKey], profile: str) -> list[Table]:
    """One table for each kind of set and score: a row per group, a column per set, the mean of the damaged ones."""
    tables = []
    for origin in dict.fromkeys(key.origin for key in keys):
        own = [key for key in keys if key.origin == origin]
        there = [group for group in groups if any(group.runs_with(key) for key in own)]
        for metric in METRICS:
            if any(summary(group, key, profile, metric.key) for group in there for key in own):
                tables.append(_score_table(there, own, profile, metric))
    return tables


def _score_table(groups: Sequence[Group], keys: Sequence[SetKey], profile: str, metric: Metric) -> Table:
    averaged = damaged_sets(groups, keys, profile)
    columns: list[list[Summary | None]] = [[summary(g, key, profile, metric.key) for g in groups] for key in keys]
    if len(averaged) > 1:
        columns.append([mean_summary(group, averaged, profile, metric.key) for group in groups])
    runs = [max(len(group.runs_with(key)) for key in keys) for group in groups]
    marked = [_column(column, runs, metric.decimals) for column in columns]
    rows = [
        [Cell(group.name), Cell(str(count), count), *(column[index] for column in marked)]
        for index, (group, count) in enumerate(zip(groups, runs, strict=True))
    ]
    score = "ssim_input" if metric.key.startswith("ssim") else "psnr_input"
    inputs = [
        next((v for g in groups for r in g.runs if (v := value(r, k, profile, score)) is not None), None) for k in keys
    ]
    last = [Cell("degraded input"), Cell(""), *(_number(v, metric.decimals) for v in inputs)]
    if len(averaged) > 1:
        values = [v for key, v in zip(keys, inputs, strict=True) if key in averaged and v is not None]
        last.append(_number(sum(values) / len(values) if len(values) == len(averaged) else None, metric.decimals))
    means = "" if len(averaged) < 2 else f" The mean is that of {', '.join(key.name for key in averaged)}."
    note = f"Profile '{profile}'. Mean ± sample standard deviation over the runs (seeds).{means}"
    title = (
        f"{metric.title}, {keys[0].origin} sets"
        if keys[0].origin != "while training"
        else f"{metric.title}, while training"
    )
    names = ["group", "runs", *(key.name for key in keys), *(["mean"] if len(averaged) > 1 else [])]
    return Table(title, names, rows, note, last)


def _column(column: Sequence[Summary | None], runs: Sequence[int], decimals: int) -> list[Cell]:
    """Best is what is best as it is written: values that read the same are marked together."""
    there = [round(s.mean, decimals) for s in column if s is not None and math.isfinite(s.mean)]
    best = max(there) if len(there) > 1 and len(set(there)) > 1 else None
    cells = []
    for s, all_runs in zip(column, runs, strict=True):
        if s is None:
            cells.append(Cell("–"))
            continue
        text = _number(s.mean, decimals).text + (f" ± {s.std:.{decimals}f}" if s.std is not None else "")
        if s.n != all_runs:
            text += f" (n = {s.n})"
        cells.append(Cell(text, s.mean, best is not None and round(s.mean, decimals) == best))
    return cells


def _number(number: float | None, decimals: int, sign: str = "") -> Cell:
    if number is None:
        return Cell("–")
    return Cell("∞" if math.isinf(number) else f"{number:{sign}.{decimals}f}", number)


def difference_table(rows: Iterable[Difference], reference: Group) -> Table | None:
    """Group minus reference, on the same pictures; None where nothing can be paired."""
    cells = []
    for d in rows:
        decimals = d.metric.decimals + 1 if d.metric.decimals == 2 else d.metric.decimals
        if d.low is None or d.high is None:
            interval = Cell("–")
        else:
            interval = Cell(f"{d.low:+.{decimals}f} to {d.high:+.{decimals}f}", d.low)
        cells.append(
            [
                Cell(d.group.name),
                Cell(str(d.key)),
                Cell(d.metric.title),
                Cell(str(d.pictures) + (f" ({d.unpaired} left out)" if d.unpaired else ""), d.pictures),
                _number(d.mean, decimals, "+"),
                interval,
                Cell(f"{d.better:.0%}", d.better),
                Cell(d.verdict),
            ]
        )
    if not cells:
        return None
    columns = ["group", "set", "score", "pictures", "difference", "95 % interval", "better on", "verdict"]
    note = (
        f"Against '{reference.name}', picture by picture, each picture's scores averaged over the runs. The interval "
        "is that of the mean over pictures by bootstrap: it tells what other pictures would change, and not what other "
        f"seeds would. Below {FEW} pictures it is too narrow for a verdict. Left out are pictures that have no partner."
    )
    return Table("Group minus reference", columns, cells, note)


def group_table(groups: Sequence[Group], costs: Sequence[Cost], clock: str) -> Table:
    """What each group is: its runs, seeds, steps, size and speed."""
    rows = []
    timed = any(cost.latency_ms is not None for cost in costs)
    for group, cost in zip(groups, costs, strict=True):
        steps = sorted({int(run.meta["steps"]) for run in group.runs if isinstance(run.meta.get("steps"), int)})
        row = [
            Cell(group.name),
            Cell(str(len(group.runs)), len(group.runs)),
            Cell(", ".join(map(str, group.seeds)) or "–"),
            Cell(", ".join(map(str, steps)) or "–", steps[0] if steps else None),
            _number(None if cost.parameters is None else cost.parameters / 1e6, 2),
            _number(None if cost.macs is None else cost.macs / 1e9, 2),
        ]
        if timed:
            row.append(_number(cost.latency_ms, 1))
        rows.append([*row, Cell(", ".join(str(run.path) for run in group.runs))])
    columns = ["group", "runs", "seeds", "steps", "parameters, M", f"MACs at {COST_SIDE}², G"]
    columns += [f"latency at {COST_SIDE}², ms"] if timed else []
    return Table("Groups", [*columns, "folders"], rows, clock if timed else "")


def difference_of_settings(groups: Sequence[Group]) -> Table | None:
    """The settings in which the groups differ; None where there is only one group."""
    rows = settings_table(groups)
    if not rows:
        return None
    cells = [[Cell(name), *(Cell("–" if v is None else v) for v in values)] for name, values in rows.items()]
    note = "All other settings but the seed are the same, apart from where things go and how they are shown."
    return Table("What differs", ["setting", *(group.name for group in groups)], cells, note)


def scores_csv(groups: Sequence[Group], keys: Sequence[SetKey]) -> str:
    """Every group's mean, deviation and number of runs; one line per set, profile and score."""
    lines = [["group", "seeds", "kind", "set", "profile", "score", "mean", "std", "runs"]]
    for group in groups:
        for key, profile, score in _all_scores(group, keys):
            s = summary(group, key, profile, score)
            if s is not None:
                std = "" if s.std is None else f"{s.std:.6g}"
                seeds = " ".join(map(str, group.seeds))
                lines.append([group.name, seeds, *key, profile, score, f"{s.mean:.6g}", std, str(s.n)])
    return csv_text(lines)


def runs_csv(groups: Sequence[Group], keys: Sequence[SetKey]) -> str:
    """Every run's scores; one line per set, profile and score."""
    lines = [["group", "seed", "run", "kind", "set", "profile", "score", "value"]]
    for group in groups:
        for run in group.runs:
            for key, profile, score in _all_scores(group, keys):
                found = value(run, key, profile, score)
                if found is not None:
                    seed = "" if run.seed is None else str(run.seed)
                    lines.append([group.name, seed, str(run.path), *key, profile, score, f"{found:.6g}"])
    return csv_text(lines)


def _all_scores(group: Group, keys: Sequence[SetKey]) -> list[tuple[SetKey, str, str]]:
    found = {
        (key, profile, score): None
        for key in keys
        for run in group.runs_with(key)
        for profile, scores in run.sets[key].means.items()
        for score in scores
    }
    return list(found)


def differences_csv(rows: Iterable[Difference], reference: Group, profile: str) -> str:
    """Every difference with its interval."""
    lines = [["group", "reference", "kind", "set", "profile", "score", "pictures", "mean", "low", "high", "better"]]
    for d in rows:
        ends = ["" if end is None else f"{end:.6g}" for end in (d.low, d.high)]
        numbers = [str(d.pictures), f"{d.mean:.6g}", *ends, f"{d.better:.4g}"]
        lines.append([d.group.name, reference.name, *d.key, profile, d.metric.key, *numbers])
    return csv_text(lines)


def markdown(table: Table) -> str:
    """As a GitHub table, the best values bold."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    def written(cell: Cell) -> str:
        text = escape_markdown(cell.text)
        return f"**{text}**" if cell.best else text

    rows = [*table.rows, *([table.last] if table.last else [])]
    numeric = [
        all(row[i].number is not None or row[i].text in ("–", "") for row in rows) for i in range(len(table.columns))
    ]
    parts = [f"### {escape_markdown(table.title)}", "", line(map(escape_markdown, table.columns))]
    parts.append(line("---:" if right else "---" for right in numeric))
    parts += [line(map(written, row)) for row in rows]
    return "\n".join([*parts, "", escape_markdown(table.note), ""])


def latex(table: Table) -> str:
    """As a ``tabular`` with the rules of booktabs, the best values bold."""

    def written(cell: Cell) -> str:
        text = escape_latex(cell.text)
        return rf"\textbf{{{text}}}" if cell.best else text

    def line(cells: Iterable[str]) -> str:
        return f"{' & '.join(cells)} \\\\"

    body = [line(map(written, row)) for row in table.rows]
    if table.last:
        body += [r"\midrule", line(map(written, table.last))]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(f'{table.title}. {table.note}')}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
        r"\toprule",
        line(map(escape_latex, table.columns)),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join([*lines, ""])


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "∞": r"$\infty$",
    "–": "--",
    "…": r"\ldots{}",
    "²": r"\textsuperscript{2}",
    "\n": " ",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_LATEX.get(character, character) for character in text)


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, also inside a table."""
    text = re.sub(r"([\\`*_\[\]|#~])", r"\\\1", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
