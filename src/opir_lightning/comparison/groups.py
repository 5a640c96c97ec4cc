"""Runs that differ in nothing but the seed belong together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from opir_lightning.comparison.runs import LeftOut, Run
from opir_lightning.comparison.scores import SetKey
from opir_lightning.comparison.settings import Flat, differing, name_groups
from opir_lightning.errors import UserError

INPUT_AGREES = 0.02  # dB: more, and two degraded pictures of one name are not the same picture


@dataclass(frozen=True)
class Group:
    """Runs of one setting.

    Attributes:
        name: what sets it apart from the others.
        runs: its runs, by their seeds.
        settings: what they share.
    """

    name: str
    runs: list[Run]
    settings: Flat

    def runs_with(self, key: SetKey) -> list[Run]:
        return [run for run in self.runs if key in run.sets]

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs if run.seed is not None})


def group_runs(runs: Iterable[Run]) -> tuple[list[Group], list[LeftOut]]:
    """Put runs together, in the order in which the first of each came; repetitions of a run are left out.

    Where runs of the same settings and seed were made by different commits, it is the commits that are compared.
    """
    by_settings: dict[str, list[Run]] = {}
    for run in runs:
        by_settings.setdefault(_canonical(run.settings), []).append(run)
    parts: list[tuple[Flat, list[Run]]] = []
    left_out: list[LeftOut] = []
    for together in by_settings.values():
        commits = dict.fromkeys(str(run.meta.get("commit", "")) for run in together)
        if len(commits) > 1 and _without_repetitions(together)[1]:
            split = [
                ({**together[0].settings, "commit": commit or "unknown"}, [r for r in together if _commit(r) == commit])
                for commit in commits
            ]
        else:
            split = [(together[0].settings, together)]
        for settings, members in split:
            kept, repeated = _without_repetitions(members)
            parts.append((settings, sorted(kept, key=lambda run: (run.seed is None, run.seed))))
            left_out += repeated
    names = name_groups([settings for settings, _ in parts], [members[0].choices for _, members in parts])
    names = _trial_names([members for _, members in parts]) or names
    return [Group(name, members, settings) for name, (settings, members) in zip(names, parts, strict=True)], left_out


def _trial_names(groups: Sequence[Sequence[Run]]) -> list[str] | None:
    """Trials of a search by their number, as its table has them; None where other runs stand beside them.

    What sets them apart are numbers of many digits: as names those would say less.
    """
    trials = [members[0].trial for members in groups if all(run.trial for run in members)]
    found = [trial for trial in trials if trial is not None]
    if len(found) < max(2, len(groups)):
        return None
    several = len({folder.resolve() for folder, _ in found}) > 1
    names = [f"{folder.resolve().name} trial {number}" if several else f"trial {number}" for folder, number in found]
    return names if len(set(names)) == len(names) else None


def _canonical(settings: Flat) -> str:
    return json.dumps(settings, sort_keys=True, default=str)


def _commit(run: Run) -> str:
    return str(run.meta.get("commit", ""))


def _without_repetitions(runs: Sequence[Run]) -> tuple[list[Run], list[LeftOut]]:
    """A training and its evaluation go together: only runs with scores of the same set and seed repeat each other."""
    kept: list[Run] = []
    left_out = []
    for run in runs:
        first = next((o for o in kept if o.seed == run.seed and o.sets.keys() & run.sets.keys()), None)
        if first is None:
            kept.append(run)
        else:
            left_out.append(
                LeftOut(run.path, f"It has the settings and the seed of '{first.path}', which comes first.")
            )
    return kept, left_out


def settings_table(groups: Sequence[Group]) -> dict[str, list[str | None]]:
    """The settings in which the groups differ, and their values in each."""
    return differing([group.settings for group in groups])


def find_reference(groups: Sequence[Group], wanted: str | None) -> Group:
    """The group that is named, by its name or by the folder of one of its runs; the first if none is.

    Raises:
        UserError: there is no such group.
    """
    if wanted is None:
        return groups[0]
    for group in groups:
        if wanted == group.name or any(Path(wanted).resolve() == run.path.resolve() for run in group.runs):
            return group
    names = ", ".join(f"'{group.name}'" for group in groups)
    raise UserError(f"--against is '{wanted}', which is neither the folder of a compared run nor a group: {names}.")


def compared_sets(groups: Sequence[Group]) -> list[SetKey]:
    """The sets to show, in the order of their kind and appearance.

    What was validated while training is shown only where a run has nothing else, which is so for offline logs.
    """
    keys = dict.fromkeys(key for group in groups for run in group.runs for key in run.sets)
    only_log = any(run.kind == "Weights & Biases" for group in groups for run in group.runs)
    origins = ("validation", "test", *(["while training"] if only_log else []))
    return [key for origin in origins for key in keys if key.origin == origin]


def other_inputs(groups: Sequence[Group], keys: Iterable[SetKey]) -> list[str]:
    """A warning for each set whose degraded pictures are not the same in all runs."""
    warnings = []
    for key in keys:
        inputs = [
            value
            for group in groups
            for run in group.runs_with(key)
            if (value := run.sets[key].means.get("published", {}).get("psnr_input")) is not None
        ]
        if inputs and max(inputs) - min(inputs) > INPUT_AGREES:
            warnings.append(
                f"The degraded pictures of the set {key} are not the same in all runs: their PSNR goes from "
                f"{min(inputs):.2f} to {max(inputs):.2f} dB. Scores on it cannot be compared."
            )
    return warnings
