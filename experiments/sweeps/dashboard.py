"""The ablation dashboard: a report, and a workspace, of a W&B project whose runs this package has logged.

python experiments/sweeps/dashboard.py ENTITY/PROJECT [--experiment NAME] [--tag TAG] [--workspace] [--print]

Runs that differ in nothing but their seed are one group (their name without the seed). The report has the table of the
groups, best first, with mean and deviation over the seeds of the best validation PSNR, of the gain per task and of the
calibration error; below, bars and curves by group, the operators, the pictures, and what the runs differ in. It is
saved as a draft. Needs an account (``wandb login``) and ``pip install 'opir-lightning[dashboard]'``; with ``--print``
the table is only printed, and nothing is saved.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

STEP = "trainer/global_step"
BEST = "val/psnr"
PICTURES = ("operators", "pictures", "confusion", "calibration")


class Group(NamedTuple):
    """Runs of one setting.

    Attributes:
        name: experiment and overrides.
        runs: how many.
        values: of each run that has it, by the name of the metric.
    """

    name: str
    runs: int
    values: dict[str, list[float]]


def metric_of(summary: Mapping[str, Any], name: str) -> float | None:
    """What a run's summary says of a metric: its best value, or its last one; None where there is no finite number."""
    value = summary.get(name)
    if isinstance(value, Mapping):
        value = next((value[kind] for kind in ("max", "min", "last") if kind in value), None)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def grouped(runs: Iterable[Any]) -> list[Group]:
    """The groups of some runs, the best mean validation PSNR first; runs that logged none are left out.

    Args:
        runs: with ``group``, ``name`` and ``summary_metrics``, as ``wandb.Api().runs`` gives them.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        if metric_of(run.summary_metrics, BEST) is not None:
            found.setdefault(run.group or run.name, []).append(run.summary_metrics)
    groups = []
    for name, summaries in found.items():
        keys = {key for summary in summaries for key in summary if key.startswith(("val/", "val_task/"))}
        numbers = {key: [metric_of(summary, key) for summary in summaries] for key in sorted(keys)}
        values = {key: [v for v in row if v is not None] for key, row in numbers.items()}
        groups.append(Group(name, len(summaries), {key: row for key, row in values.items() if row}))
    return sorted(groups, key=lambda group: -statistics.fmean(group.values[BEST]))


def table(groups: Sequence[Group]) -> str:
    """Markdown: a row per group, mean ± deviation over its runs."""
    gains = sorted({key for group in groups for key in group.values if key.endswith("/gain")})
    columns = {
        BEST: "PSNR",
        **{key: f"{key.split('/')[1]}, gain" for key in gains},
        "val/calibration_error": "map, error",
    }
    lines = ["| setting | runs | " + " | ".join(columns.values()) + " |", "|---|---|" + "---|" * len(columns)]
    for group in groups:
        cells = [_mean(group.values.get(key, []), 4 if key == "val/calibration_error" else 2) for key in columns]
        lines.append(f"| {group.name} | {group.runs} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def panels(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Panels by the title of their section, for runs that are grouped."""
    gains = sorted({key for group in groups for key in group.values if key.endswith("/gain")})

    def curve(metric: str) -> Any:
        return reports.LinePlot(
            title=metric,
            x=STEP,
            y=[metric],
            groupby="Group",
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            title_x="step",
        )

    def bars(metric: str) -> Any:
        return reports.BarPlot(title=metric, metrics=[metric], groupby="Group", groupby_aggfunc="mean")

    return {
        "Best PSNR": [bars(f"{BEST}.max"), curve(BEST)],
        "Gain by task": [curve(key) for key in gains],
        "Code and map": [curve("val/task_accuracy"), curve("val/calibration_error")],
        "Losses": [curve("train/loss")],
        "Operators and pictures": [
            reports.MediaBrowser(title=name, media_keys=[f"pictures/{name}"], num_columns=1) for name in PICTURES
        ],
        "What differs": [reports.RunComparer(diff_only="split")],
    }


def build_report(entity: str, project: str, groups: Sequence[Group], *, title: str, filters: str = "") -> Any:
    """The report, not saved.

    Args:
        entity, project: of the runs.
        groups: of the runs, see `grouped`.
        title: of the report.
        filters: which runs of the project, as in the runs table.
    """
    blocks: list[Any] = [reports.H1(title), reports.MarkdownBlock(text=table(groups))]
    for section, content in panels(groups).items():
        runset = reports.Runset(entity=entity, project=project, name=title, groupby=["group"], filters=filters)
        blocks += [reports.H2(section), reports.PanelGrid(runsets=[runset], panels=content)]
    return reports.Report(
        entity=entity,
        project=project,
        title=title,
        description=f"{sum(group.runs for group in groups)} runs, {len(groups)} settings",
        blocks=blocks,
        width="fluid",
    )


def build_workspace(entity: str, project: str, groups: Sequence[Group], *, title: str, filters: str = "") -> Any:
    """The same panels as a saved view of the project's workspace, not saved."""
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=title,
        sections=[
            workspaces.Section(name=name, panels=content, is_open=number < 2)
            for number, (name, content) in enumerate(panels(groups).items())
        ],
        settings=workspaces.WorkspaceSettings(x_axis=STEP),
        runset_settings=workspaces.RunsetSettings(groupby=[workspaces.Metric("group")], filters=filters),
    )


def main() -> None:
    import wandb

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", metavar="ENTITY/PROJECT")
    parser.add_argument("--experiment", help="only runs of this experiment")
    parser.add_argument("--tag", help="only runs with this tag")
    parser.add_argument("--workspace", action="store_true", help="save a view of the workspace as well")
    parser.add_argument("--print", action="store_true", help="print the table and save nothing")
    arguments = parser.parse_args()
    entity, separator, project = arguments.project.partition("/")
    if not separator:
        parser.error(f"'{arguments.project}' is no ENTITY/PROJECT")
    chosen = {"jobType": arguments.experiment, "tags": arguments.tag}
    runs = wandb.Api().runs(arguments.project, filters={key: value for key, value in chosen.items() if value})
    groups = grouped(runs)
    if not groups:
        parser.exit(
            1, f"error: none of the {len(runs)} runs that were found in {arguments.project} has logged {BEST}.\n"
        )
    print(table(groups))
    if arguments.print:
        return
    title = f"Ablation: {arguments.experiment or project}"
    named = {"JobType": arguments.experiment, "Tags": arguments.tag}
    filters = " and ".join(f"{key} = '{value}'" for key, value in named.items() if value)
    report = build_report(entity, project, groups, title=title, filters=filters)
    report.save(draft=True)
    print(f"report     {report.url}")
    if arguments.workspace:
        workspace = build_workspace(entity, project, groups, title=title, filters=filters)
        workspace.save()
        print(f"workspace  {workspace.url}")


if __name__ == "__main__":
    main()
