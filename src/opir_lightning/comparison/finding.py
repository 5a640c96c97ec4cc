"""Find the runs and the searches in folders, each once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from opir_lightning.comparison.runs import LeftOut, Run, is_offline, read_run
from opir_lightning.comparison.searches import COMPLETE, Search, is_search, read_search, search_above, trial_of
from opir_lightning.errors import UserError

_DEEPEST = 4  # outputs/<experiment>/<time>/<number of the job>, and one more
_LOGS = ("train.log", "evaluate.log", "config.log")  # the last of earlier versions


class Found(NamedTuple):
    """What the given folders hold."""

    runs: list[Run]
    searches: list[Search]
    left_out: list[LeftOut]


def read_runs(paths: Iterable[Path]) -> Found:
    """Read all runs in the given folders, in their order, and the searches that they are or are trials of.

    What is broken or unfinished is left out with its reason. Trials that are not complete are in their search alone.
    """
    found = Found([], [], [])
    searches: dict[Path, Search | None] = {}  # None: it cannot be read
    seen: set[Path] = set()
    for given in paths:
        if not given.is_dir():
            what = "it is a file, and runs are folders" if given.exists() else "there is no such folder"
            found.left_out.append(LeftOut(given, what))
            continue
        try:
            folders = list(_run_folders(given, _DEEPEST))
        except OSError as error:
            found.left_out.append(LeftOut(given, f"it cannot be read ({error.strerror})"))
            continue
        if not folders:
            found.left_out.append(
                LeftOut(given, "there is no run in it, neither config/config.yaml nor an offline-run-*")
            )
        for folder in folders:
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            above = folder if is_search(folder) else search_above(folder)
            search = _search(above, searches, found.left_out) if above else None
            trial = trial_of(folder, search) if search else None
            try:
                if trial and trial.state != COMPLETE and folder == given:
                    found.left_out.append(LeftOut(folder, f"It is trial {trial.number} of a search, {trial.state}."))
                elif above != folder and (trial is None or trial.state == COMPLETE):
                    run = read_run(folder)
                    found.runs.append(replace(run, trial=(search.folder, trial.number)) if search and trial else run)
            except UserError as error:
                found.left_out.append(LeftOut(folder, str(error)))
            except OSError as error:
                found.left_out.append(LeftOut(folder, f"It cannot be read ({error.strerror})."))
    found.searches.extend(search for search in searches.values() if search)
    return _each_once(found)


def _search(folder: Path, known: dict[Path, Search | None], left_out: list[LeftOut]) -> Search | None:
    """The search in the folder, read once; None where it cannot be, and its trials are runs like others."""
    place = folder.resolve()
    if place not in known:
        known[place] = None
        try:
            known[place] = read_search(folder)
        except UserError as error:
            left_out.append(LeftOut(folder, str(error)))
    return known[place]


def _each_once(found: Found) -> Found:
    """Leave out the offline logs of trainings whose own folders are there: those tell more."""
    folders = {run.path.resolve(): run.path for run in found.runs if run.kind == "training"}
    kept = []
    for run in found.runs:
        own = None
        if run.kind == "Weights & Biases":  # in the folder of its run, which may have been moved since
            places = (Path(str(run.config.get("run_dir", ""))), run.path.parent.parent)
            own = next((folders[place.resolve()] for place in places if place.resolve() in folders), None)
        if own:
            found.left_out.append(LeftOut(run.path, f"It is the log of the run '{own}', whose folder tells more."))
        else:
            kept.append(run)
    return found._replace(runs=kept)


def _run_folders(folder: Path, depth: int) -> Iterable[Path]:
    """The folder if it is a run, otherwise the runs below it; a search comes before its runs."""
    own = ("config/config.yaml", "results.json", *_LOGS)
    if is_search(folder):  # which has a configuration, too
        yield folder
    elif any((folder / name).is_file() for name in own) or is_offline(folder):
        yield folder
        return
    if depth > 0:
        for inside in sorted(folder.iterdir(), key=_naturally):
            if inside.is_dir() and not inside.is_symlink() and not inside.name.startswith("."):
                yield from _run_folders(inside, depth - 1)


def _naturally(path: Path) -> list[tuple[int, str]]:
    """Jobs of a sweep are numbered: 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name) if part]
