"""Search settings with Optuna: ``python -m opir_lightning.search [experiment=NAME] [search=NAME] [key=value ...]``.

Every trial is a training run in a folder of its own below ``trials/``. What was tried is kept in a journal beside it:
the same command goes on where the last one stopped, and several of them at once share the work.
"""

from __future__ import annotations

import csv
import difflib
import json
import logging
import re
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from filelock import BaseFileLock, FileLock, Timeout
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from opir_lightning.config import build, check_keys, config_dir, explain_user_errors, register_schemas
from opir_lightning.errors import UserError
from opir_lightning.threads import limit_spinning
from opir_lightning.trials import INSTEAD_OF, JOURNAL, METRIC, STEPS, trial_folder

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)
LOCK = "running.lock"  # in the folder of a trial, for as long as its process is at it
DRAWING = "drawing.lock"  # in that of the search, while settings or plots are drawn

# Words that are read as words without quotes.
_PLAIN = re.compile(r"(?!(null|true|false|inf|nan)$)[A-Za-z_][\w./-]*", re.ASCII | re.IGNORECASE)

register_schemas()
limit_spinning()


def search(config: DictConfig) -> optuna.Study:
    """Run trials until there are as many as wanted; write table, plots and the best settings after each.

    Returns:
        The study.

    Raises:
        UserError: Optuna is missing, or the search space names what is no setting or no range.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError("A search needs Optuna: pip install 'opir-lightning[search]'.") from error
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    plain = check_keys(config)
    settings, folder = plain["search"], Path(plain["run_dir"])
    _check_search(settings)
    _check_space(config)
    folder.mkdir(parents=True, exist_ok=True)
    journal = str(folder / JOURNAL)
    storage = JournalStorage(JournalFileBackend(journal, lock_obj=JournalFileOpenLock(journal)))
    study = optuna.create_study(
        storage=storage,
        study_name=plain["name"],
        direction="maximize",
        load_if_exists=True,
        pruner=build(settings["pruner"], "search.pruner"),
    )
    study.set_user_attr(METRIC, settings["metric"])
    log.info("%d trials are done, %d are wanted. Journal: %s", len(_done(study)), settings["trials"], journal)
    drawing, began = FileLock(folder / DRAWING), time.monotonic()
    while True:
        # Two processes that draw at the same time would draw the same, or take the other's new trial for one cut off.
        with drawing:
            _requeue_cut_off(study, folder)
            _write(study, folder)
            late = settings["timeout"] is not None and time.monotonic() - began >= settings["timeout"]
            if late or len(_done(study)) + len(_running(study)) >= settings["trials"]:
                return study
            # From the number of the trial: with the seed of its beginning a search that goes on would repeat itself.
            study.sampler = build(settings["sampler"], "search.sampler", seed=plain["seed"] + len(study.trials))
            study.optimize(
                lambda trial: _run_trial(trial, config, drawing),
                n_trials=1,
                callbacks=[lambda study, trial: _say(study, trial, settings["trials"])],
                catch=(Exception,),  # it is in the journal and in the log, and the next trial begins
            )


def _run_trial(trial: optuna.Trial, config: DictConfig, drawing: BaseFileLock) -> float:
    """Train with what the trial suggests; its value is the metric at the last validation.

    The lock of drawing is given back once the settings are drawn and the trial's folder is held.
    """
    from optuna.trial import TrialState

    folder = trial_folder(Path(str(config.run_dir)), trial.number)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK):  # goes with this process, however that ends
        own = config.copy()
        for path, values in own.search.space.items():
            OmegaConf.update(own, str(path), _suggest(trial, str(path), values), force_add=True)
        drawing.release()
        try:
            return _train(trial, own, folder)
        except KeyboardInterrupt:  # Optuna ends the trial as failed
            _enqueue_again(trial.study, trial)
            raise
        except SystemExit as leaving:  # so Lightning ends; Optuna lets it pass, and the trial would count as running
            trial.study.tell(trial.number, state=TrialState.FAIL)
            _enqueue_again(trial.study, trial)
            sys.exit(leaving.code or 128 + signal.SIGTERM)  # it would be 0 where it was told to end


def _train(trial: optuna.Trial, config: DictConfig, folder: Path) -> float:
    from opir_lightning.provenance import provenance
    from opir_lightning.report import report_run
    from opir_lightning.train import assemble
    from opir_lightning.training.callbacks import close_loggers
    from opir_lightning.training.callbacks.pruning import PruneTrial

    config.run_dir = str(folder)
    plain = check_keys(config)
    (folder / "config").mkdir(exist_ok=True)
    OmegaConf.save(OmegaConf.create(plain), folder / "config" / "config.yaml")
    metric, started = plain["search"]["metric"], provenance()
    module, data, trainer, _ = assemble(plain, callbacks=[PruneTrial(trial, metric)])
    try:
        trainer.fit(module, data, weights_only=True)
    finally:
        trial.set_user_attr(STEPS, trainer.global_step)
        close_loggers(trainer)
    value = float(trainer.callback_metrics[metric])
    report_run(module.net, data, plain, folder, steps=trainer.global_step, started=started)
    return value


def _suggest(trial: optuna.Trial, path: str, values: Any) -> Any:
    if "choices" in values:
        choices = OmegaConf.to_container(values.choices)
        assert isinstance(choices, list)
        if all(isinstance(choice, bool | int | float | str | None) for choice in choices):
            return trial.suggest_categorical(path, choices)
        # A setting may be a list; Optuna's choices are numbers and words.
        return json.loads(trial.suggest_categorical(path, [json.dumps(choice) for choice in choices]))
    logarithmic = bool(values.get("log", False))
    if isinstance(values.low, int) and isinstance(values.high, int):
        return trial.suggest_int(path, values.low, values.high, log=logarithmic)
    return trial.suggest_float(path, float(values.low), float(values.high), log=logarithmic)


def _check_search(settings: Mapping[str, Any]) -> None:
    """``UserError`` for what is no setting of a search, or out of its range."""
    known = ("trials", "timeout", "metric", "sampler", "pruner", "space")
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean 'search.{near[0]}'?" if near else f"it knows {', '.join(known)}."
            raise UserError(f"'search.{name}' is not a setting of a search; {hint}")
    trials, timeout = settings["trials"], settings["timeout"]
    if type(trials) is not int or trials < 0:
        raise UserError(f"search.trials is {trials!r}; it must be a whole number of 0 or more.")
    if timeout is not None and (type(timeout) not in (int, float) or not timeout > 0):
        raise UserError(f"search.timeout is {timeout!r}; it must be more than 0 seconds, or null.")


def _check_space(config: DictConfig) -> None:
    """``UserError`` unless every path is a setting of the run and its values say what to draw from."""
    for path, values in config.search.space.items():
        is_range = OmegaConf.is_dict(values) and {"low", "high"} <= set(values) <= {"low", "high", "log"}
        has_choices = OmegaConf.is_dict(values) and set(values) == {"choices"} and len(values.choices) > 0
        if not is_range and not has_choices:
            raise UserError(
                f"search.space has '{path}: {values}'; needed is {{choices: [...]}} or {{low: A, high: B, log: true}}."
            )
        if is_range and any(type(end) not in (int, float) for end in (values.low, values.high)):
            raise UserError(f"search.space has '{path}' from {values.low!r} to {values.high!r}; both must be numbers.")
        if is_range and values.get("log") and not values.low > 0:
            raise UserError(f"search.space has '{path}' from {values.low}; with log: true it must be more than 0.")
        if is_range and not values.low < values.high:
            raise UserError(f"search.space has '{path}' from {values.low} to {values.high}; the first must be less.")
        if str(path).split(".")[0] not in config:
            raise UserError(f"search.space names '{path}', which is no setting of this run.")
        tried = config.copy()
        for value in (values.low, values.high) if is_range else values.choices:
            OmegaConf.update(tried, str(path), value, force_add=True)
            check_keys(tried)


def _requeue_cut_off(study: optuna.Study, folder: Path) -> None:
    """Trials that count as running and whose process is gone: ended as failed, their settings tried anew."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        own = trial_folder(folder, trial.number)
        own.mkdir(parents=True, exist_ok=True)
        with suppress(Timeout), FileLock(own / LOCK, timeout=0):  # held: another process is at it
            study.tell(trial.number, state=TrialState.FAIL)
            _enqueue_again(study, trial)


def _enqueue_again(study: optuna.Study, trial: optuna.Trial | optuna.trial.FrozenTrial) -> None:
    study.enqueue_trial(trial.params, user_attrs={INSTEAD_OF: trial.number})
    log.info("Trial %d was cut off; its settings are tried anew.", trial.number)


def _done(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials that have ended by themselves: complete, pruned, or failed with an error of their own."""
    trials = study.get_trials(deepcopy=False)
    replaced = {trial.user_attrs.get(INSTEAD_OF) for trial in trials}
    return [trial for trial in trials if trial.state.is_finished() and trial.number not in replaced]


def _running(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials that other processes are at, once those that were cut off have been sorted out."""
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def _say(study: optuna.Study, trial: optuna.trial.FrozenTrial, wanted: int) -> None:
    best = f"; best so far {study.best_value:.3f}, trial {study.best_trial.number}" if _complete(study) else ""
    value = "" if trial.value is None else f" {trial.value:.3f}"
    log.info(
        "Trial %d %s%s (%d of %d)%s.", trial.number, trial.state.name.lower(), value, len(_done(study)), wanted, best
    )


def _complete(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _write(study: optuna.Study, folder: Path) -> None:
    """What has been tried as a table, and once there is something to see, plots and the best settings."""
    trials = study.get_trials(deepcopy=False)
    names = sorted({name for trial in trials for name in trial.params})
    with (folder / "trials.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["trial", "state", "value", "steps", "seconds", *names])
        for trial in trials:
            seconds = "" if trial.duration is None else round(trial.duration.total_seconds(), 1)
            row = [trial.number, trial.state.name.lower(), trial.value, trial.user_attrs.get(STEPS), seconds]
            table.writerow([*row, *(trial.params.get(name, "") for name in names)])
    if _complete(study):
        best = study.best_trial
        choices = {name: getattr(drawn, "choices", ()) for name, drawn in best.distributions.items()}
        overrides = [f"++{override(name, value, choices[name])}" for name, value in best.params.items()]
        (folder / "best.txt").write_text(shlex.join(overrides) + "\n")
        _plot(study, folder / "plots")


def override(name: str, value: Any, choices: Sequence[Any] = ()) -> str:
    """A drawn setting as Hydra's command line takes it.

    Args:
        name: path of the setting.
        value: as the journal has it.
        choices: that it was drawn from; where a list is among them all are JSON, which means the same there.
    """
    if value is None:
        value = "null"
    elif (
        isinstance(value, str)
        and not _PLAIN.fullmatch(value)
        and not any(str(c).startswith(("[", "{")) for c in choices)
    ):
        value = QuotedString(text=value, quote=Quote.single).with_quotes()
    return f"{name}={value}"


def _plot(study: optuna.Study, folder: Path) -> None:
    """Optuna's own plots as PNG files; without matplotlib there are none, and that is said once."""
    try:
        import matplotlib
    except ImportError:
        log.warning("No plots: they need matplotlib (pip install 'opir-lightning[search]').")
        return
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.visualization import matplotlib as drawn

    folder.mkdir(exist_ok=True)
    plots: dict[str, Callable[[], Any]] = {
        "history": lambda: drawn.plot_optimization_history(study),
        "validations": lambda: drawn.plot_intermediate_values(study),
        "slices": lambda: drawn.plot_slice(study),
    }
    if len(_complete(study)) > 3:
        plots["importances"] = lambda: drawn.plot_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all of them are marked as experimental
        for name, plot in plots.items():
            axes = plot()
            figure = (axes.flat[0] if hasattr(axes, "flat") else axes).get_figure()
            figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
            plt.close(figure)


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="search")
@explain_user_errors
def main(config: DictConfig) -> None:
    """Entry point of the console script and of ``python -m``."""
    study = search(config)
    if not _complete(study):
        raise UserError(f"None of {len(study.trials)} trials was finished; the log above says why.")
    best = Path(str(config.run_dir), "best.txt").read_text().strip()
    log.info("Best: %.3f with %s", study.best_value, best)


if __name__ == "__main__":
    main()
