"""Put a comparison together and write it: one page, tables in three formats, plots for print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from opir_lightning.comparison import costs as costs_
from opir_lightning.comparison import pictures, plots, search_plots, search_table, tables
from opir_lightning.comparison.finding import read_runs
from opir_lightning.comparison.groups import Group, compared_sets, find_reference, group_runs, other_inputs
from opir_lightning.comparison.page import Section, write_page
from opir_lightning.comparison.runs import LeftOut
from opir_lightning.comparison.scores import SetKey
from opir_lightning.comparison.searches import Search
from opir_lightning.comparison.statistics import FEW, METRICS, Difference, damaged_sets, differences, mean_summary
from opir_lightning.errors import UserError
from opir_lightning.files import write_atomically


@dataclass(frozen=True)
class Options:
    """What to compare and how.

    Attributes:
        output: folder for the results.
        against: the reference: a group's name or the folder of one of its runs; None: the first group.
        profile: whose scores the page shows.
        pictures: how many to show for each group.
        latency: measure it.
    """

    output: Path
    against: str | None = None
    profile: str = "published"
    pictures: int = 3
    latency: bool = False


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes:
        searches: whose trials are compared, or were named.
        groups: what was compared, in the order of the page.
        reference: what the others are compared with.
        keys: the sets.
        left_out: folders that take no part.
        tables: all of them, in the order of the page.
        differences: of every group to the reference.
        warnings: what to know before believing the numbers.
        files: what was written, the page first.
    """

    searches: list[Search]
    groups: list[Group]
    reference: Group
    keys: list[SetKey]
    left_out: list[LeftOut]
    tables: list[tables.Table]
    differences: list[Difference]
    warnings: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def compare(folders: Sequence[Path], options: Options) -> Comparison:
    """Read, compare and write.

    Raises:
        UserError: no run is finished, none has scores of the profile, the reference is none of the groups, or the
            results cannot be written.
    """
    runs, searches, left_out = read_runs(folders)
    if not runs:
        summaries = map(search_table.summed_up, searches)
        reasons = "; ".join([*summaries, *(f"'{item.path}': {item.reason}" for item in left_out)])
        raise UserError(f"There is no finished run to compare: {reasons}")
    groups, repeated = group_runs(runs)
    left_out += repeated
    reference = find_reference(groups, options.against)
    keys = compared_sets(groups)
    scores = tables.score_tables(groups, keys, options.profile)
    if not scores:
        raise UserError(f"The runs have no scores of the profile '{options.profile}'.")
    costs = costs_.measure(groups, tables.COST_SIDE, latency=options.latency)
    found = differences(groups, reference, keys, options.profile)
    warnings = [
        *other_inputs(groups, keys),
        *_few(found),
        *(
            f"{g.name}: its network cannot be counted. {c.reason}"
            for g, c in zip(groups, costs, strict=True)
            if c.reason
        ),
    ]
    shown, missing = pictures.show_all(groups, reference, keys, options.profile, options.pictures)
    about = [
        table
        for table in (
            tables.group_table(groups, costs, costs_.clock() if options.latency else ""),
            tables.difference_of_settings(groups),
        )
        if table is not None
    ]
    told = [d for d in found if not d.metric.key.endswith("_coarse")]
    paired = [table for table in (tables.difference_table(told, reference),) if table is not None]
    trials = [search_table.trial_table(search) for search in searches]
    searched = search_plots.parts(searches)
    written = [*about, *trials, *scores, *paired]
    drawn = _plots(groups, keys, options.profile, costs)
    page = write_page(
        _title(groups),
        [*map(search_table.summed_up, searches), *_headline(groups, reference, keys, options.profile)],
        warnings,
        left_out,
        [
            *(
                Section(f"Search {search.name}", [table], figures)
                for search, table, figures in zip(searches, trials, searched, strict=True)
            ),
            Section("What is compared", about),
            Section("Scores", scores),
            Section("Differences", paired),
            Section("Plots", plots=drawn),
            Section("Pictures that differ most", pictures=shown, notes=[f"Not shown: {line}" for line in missing]),
        ],
        _foot(groups),
    )
    texts = {
        "index.html": page,
        "scores.csv": tables.scores_csv(groups, keys),
        "runs.csv": tables.runs_csv(groups, keys),
        "differences.csv": tables.differences_csv(found, reference, options.profile),
        **({"trials.csv": search_table.trials_csv(searches)} if searches else {}),
    }
    files = _write(options.output, texts, written, [*drawn, *(plot for plots_ in searched for plot in plots_)])
    return Comparison(searches, groups, reference, keys, left_out, written, found, warnings, files)


def _write(
    folder: Path, texts: dict[str, str], written: Sequence[tables.Table], drawn: Sequence[plots.Plot]
) -> list[Path]:
    """Write the texts, the first of them the page, all tables in two more formats, and the plots; returns the files."""
    texts = texts | {
        "tables.md": "\n".join(map(tables.markdown, written)),
        "tables.tex": "% \\usepackage{booktabs}\n" + "\n".join(map(tables.latex, written)),
    }
    contents = {name: text.encode("utf-8", "replace") for name, text in texts.items()} | {
        f"{p.name}.pdf": p.pdf for p in drawn
    }
    for name, content in contents.items():
        try:
            write_atomically(folder / name, content)
        except OSError as error:
            raise UserError(
                f"'{folder / name}' cannot be written ({error.strerror or error}); make room, or choose another folder "
                "with -o."
            ) from error
    return [folder / name for name in contents]


def _plots(
    groups: Sequence[Group], keys: Sequence[SetKey], profile: str, costs: Sequence[costs_.Cost]
) -> list[plots.Plot]:
    drawn: list[plots.Plot | None] = []
    for origin in dict.fromkeys(key.origin for key in keys):
        own = [key for key in keys if key.origin == origin]
        there = [i for i, group in enumerate(groups) if any(group.runs_with(key) for key in own)]
        if len(there) == len(groups):  # colours and markers go by the place: a plot of some of them would mislead
            drawn.append(plots.bars(groups, own, profile, METRICS[0]))
            drawn.append(plots.bars(groups, own, profile, METRICS[2]))
            drawn += [plots.pareto(groups, own, profile, METRICS[0], costs, against=a) for a in ("macs", "latency")]
    drawn.append(plots.curves(groups))
    return [plot for plot in drawn if plot is not None]


def _few(found: Sequence[Difference]) -> list[str]:
    counts = {d.key: d.pictures for d in found if d.pictures < FEW}
    if not counts:
        return []
    told = ", ".join(f"{key}: {count}" for key, count in counts.items())
    return [f"Few pictures are paired ({told}): intervals are too narrow there, and no verdict is given."]


def _title(groups: Sequence[Group]) -> str:
    names = dict.fromkeys(str(group.settings.get("name") or group.settings.get("weights") or "") for group in groups)
    known = [name for name in names if name]
    return f"Comparison of {', '.join(known[:3])}{' and others' if len(known) > 3 else ''}" if known else "Comparison"


def _headline(groups: Sequence[Group], reference: Group, keys: Sequence[SetKey], profile: str) -> list[str]:
    runs = sum(len(group.runs) for group in groups)
    lines = [f"{runs} run{'s' if runs > 1 else ''} in {len(groups)} group{'s' if len(groups) > 1 else ''}."]
    for origin in dict.fromkeys(key.origin for key in keys):
        averaged = damaged_sets(groups, [key for key in keys if key.origin == origin], profile)
        means = [(g, s) for g in groups if (s := mean_summary(g, averaged, profile, "psnr")) and math.isfinite(s.mean)]
        if len(means) > 1:
            best, score = max(means, key=lambda pair: pair[1].mean)
            base = next((s for g, s in means if g is reference), None)
            over = (
                f", {score.mean - base.mean:+.2f} dB over '{reference.name}'" if base and best is not reference else ""
            )
            lines.append(
                f"Highest mean PSNR of the damaged {origin} sets: '{best.name}' with {score.mean:.2f} dB{over}."
            )
    return lines


def _foot(groups: Sequence[Group]) -> str:
    facts = {}
    for name in ("commit", "torch", "device"):
        values = dict.fromkeys(str(run.meta[name]) for g in groups for run in g.runs if run.meta.get(name))
        if values:
            facts[name] = ", ".join(values)
    told = "; ".join(f"{name} {value}" for name, value in facts.items())
    return f"OPIR Lightning, opir_lightning.compare. {f'The runs say: {told}.' if told else ''}"
