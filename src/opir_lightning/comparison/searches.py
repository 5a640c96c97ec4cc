"""Read what a search has tried: the journal that Optuna keeps in its folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from opir_lightning.errors import UserError
from opir_lightning.trials import INSTEAD_OF, JOURNAL, METRIC, STEPS, TRIALS, trial_folder

if TYPE_CHECKING:
    import optuna

COMPLETE, PRUNED, FAILED, CUT_OFF = "complete", "pruned", "failed", "cut off"
_LARGEST = 2**28  # bytes of a journal; a trial of five settings and a hundred validations writes 16,000
_ENOUGH = 4  # complete trials, from which importances are told, as the search itself does


class Trial(NamedTuple):
    """One trial of a search.

    Attributes:
        number: from 0.
        state: ``complete``, ``pruned``, ``failed``, ``cut off`` (and tried anew), ``running`` or ``waiting``.
        value: of the metric at its last validation; None where there was none, or it was no finite number.
        parameters: what it tried, by the path of the setting.
        steps: of its training; None where that is not known.
        seconds: it took; None while it runs.
        validations: value of the metric by the number of the validation, in order.
    """

    number: int
    state: str
    value: float | None
    parameters: dict[str, Any]
    steps: int | None
    seconds: float | None
    validations: dict[int, float]


class Search(NamedTuple):
    """A search.

    Attributes:
        folder: where it lies.
        name: of the study.
        metric: what is searched for; larger is better.
        trials: by number.
        best: the complete trial with the largest value; None without any.
        importances: share of each parameter in how the values differ; empty where too little is known.
        logarithmic: parameters that were drawn in equal ratios.
    """

    folder: Path
    name: str
    metric: str
    trials: list[Trial]
    best: Trial | None
    importances: dict[str, float]
    logarithmic: frozenset[str]

    def parameters(self) -> list[str]:
        """Paths of the settings, the most important first."""
        names = dict.fromkeys(name for trial in self.trials for name in trial.parameters)
        return sorted(names, key=lambda name: -self.importances.get(name, 0.0))


def is_complete(trial: Trial) -> bool:
    """Whether its value counts beside those of the others."""
    return trial.state == COMPLETE and trial.value is not None


def is_search(folder: Path) -> bool:
    """Whether the folder is that of a search, finished or not."""
    return (folder / JOURNAL).is_file()


def search_above(folder: Path) -> Path | None:
    """The search that a folder is part of, as its ``trials`` or as the run of a trial; None: of none."""
    whole = folder.resolve()
    inside = whole if whole.name == TRIALS else whole.parent
    return inside.parent if inside.name == TRIALS and is_search(inside.parent) else None


def trial_of(run: Path, search: Search) -> Trial | None:
    """The trial whose run lies in this folder; None if it is none of the search."""
    if run.resolve().parent != (search.folder / TRIALS).resolve():
        return None
    return next((t for t in search.trials if trial_folder(search.folder, t.number).name == run.resolve().name), None)


def read_search(folder: Path) -> Search:
    """Read a search, also while it goes on.

    Raises:
        UserError: Optuna is not installed, or the journal is damaged, too large, or holds not one study.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise UserError("Reading its journal needs Optuna: pip install 'opir-lightning[search]'.") from error
    try:
        if (folder / JOURNAL).stat().st_size > _LARGEST:
            raise UserError(f"Its journal has more than {_LARGEST} bytes.")
        storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        names = optuna.get_all_study_names(storage)
        if len(names) != 1:
            raise UserError(f"Its journal holds {len(names)} studies; needed is one.")
        study = optuna.load_study(study_name=names[0], storage=storage)
        frozen = study.get_trials(deepcopy=False)
        replaced = {trial.user_attrs.get(INSTEAD_OF) for trial in frozen}
        trials = [_trial(trial, replaced) for trial in frozen]
        metric = str(study.user_attrs.get(METRIC, "value"))
        importances = _importances(study, trials)
    except UserError:
        raise
    except Exception as error:  # of Optuna's reader, which takes its journal to be whole, any kind
        raise UserError(f"Its journal is damaged ({type(error).__name__}: {error}).") from error
    best = max(filter(is_complete, trials), key=lambda trial: trial.value or 0.0, default=None)
    logarithmic = {name for t in frozen for name, drawn in t.distributions.items() if getattr(drawn, "log", False)}
    return Search(folder, names[0], metric, trials, best, importances, frozenset(logarithmic))


def _trial(trial: optuna.trial.FrozenTrial, replaced: set[Any]) -> Trial:
    state = CUT_OFF if trial.number in replaced else trial.state.name.lower()
    steps = trial.user_attrs.get(STEPS)
    value = trial.value
    return Trial(
        trial.number,
        FAILED if state == "fail" else state,
        value if value is not None and math.isfinite(value) else None,
        {str(name): _plain(setting) for name, setting in trial.params.items()},
        steps if isinstance(steps, int) else None,
        None if trial.duration is None else trial.duration.total_seconds(),
        dict(sorted((number, v) for number, v in trial.intermediate_values.items() if math.isfinite(v))),
    )


def _plain(setting: Any) -> Any:
    """A setting that is a list stands in the journal as JSON."""
    if isinstance(setting, str) and setting[:1] in ("[", "{"):
        try:
            return json.loads(setting)
        except ValueError:
            return setting
    return setting


def _importances(study: optuna.Study, trials: list[Trial]) -> dict[str, float]:
    if sum(map(is_complete, trials)) < _ENOUGH:
        return {}
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    try:
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    except (RuntimeError, ValueError):  # where nothing differs, for instance
        return {}
    return {name: value for name, value in found.items() if math.isfinite(value)}
