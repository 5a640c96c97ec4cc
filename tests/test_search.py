"""A search: what it tries, what it leaves behind, how it goes on."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import sys
from pathlib import Path

import pytest
from filelock import FileLock, Timeout
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from opir_lightning import search as search_module
from opir_lightning.comparison.searches import COMPLETE, CUT_OFF, FAILED, read_search
from opir_lightning.config import config_dir, register_schemas
from opir_lightning.errors import UserError
from opir_lightning.search import DRAWING, LOCK, override, search
from opir_lightning.training import RestorationModule
from opir_lightning.trials import INSTEAD_OF, trial_folder

optuna = pytest.importorskip("optuna", reason="the package 'optuna' is not installed")
register_schemas()
SMALL = [
    "experiment=noise",
    "trainer=cpu",
    "trainer.max_steps=4",
    "trainer.enable_progress_bar=false",
    "callbacks.progress=null",
    "callbacks.panels=null",
    "callbacks.operators=null",
    "callbacks.confusion=null",
    "callbacks.calibration=null",
    "callbacks.best=null",
    "data.crop=32",
    "data.batch_size=2",
    "data.workers=0",
    "data.epoch_samples=4",
    "data.val_pictures=1",
    "data.val_centre=64",
    "model.width=8",
    "model.encoder_blocks=[1]",
    "model.decoder_blocks=[1]",
    "model.middle_blocks=1",
    "model.features=8",
    "model.code_crop=32",
]
FILES = sorted(path.stem for path in (Path(config_dir()) / "search").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _small_pictures(small_root, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "SMALL", [*SMALL, f"data.root={small_root}"])


def configuration(run_dir: Path, space: dict, *overrides: str):
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        config = compose("search", [*SMALL, f"run_dir={run_dir}", *overrides])
    OmegaConf.update(config, "search.space", OmegaConf.create(space), merge=False)
    return config


def trials_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_search_goes_on_where_it_was_cut_off_and_past_a_trial_that_fails(tmp_path):
    space = {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}, "model.kernel_size": {"choices": [3, 4]}}
    config = configuration(tmp_path, space, "search.trials=0")
    study = search(config)
    # A process that was killed leaves a trial that counts as running.
    study.enqueue_trial({"optimizer.lr": 2e-3, "model.kernel_size": 3})
    cut_off = study.ask()
    cut_off.suggest_float("optimizer.lr", 1e-4, 1e-2, log=True)
    cut_off.suggest_categorical("model.kernel_size", [3, 4])
    study.enqueue_trial({"optimizer.lr": 1e-3, "model.kernel_size": 4})  # an even operator: cannot be built

    config.search.trials = 2
    study = search(config)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "FAIL", "COMPLETE"]
    again = study.trials[2]
    assert again.user_attrs[INSTEAD_OF] == 0
    assert again.params == {"optimizer.lr": 2e-3, "model.kernel_size": 3}
    assert [trial["state"] for trial in trials_of(tmp_path)] == ["fail", "fail", "complete"]
    own = tmp_path / "trials" / f"{again.number:04d}"
    assert OmegaConf.load(own / "config" / "config.yaml").optimizer.lr == 2e-3
    assert (own / "model.safetensors").is_file()
    assert (tmp_path / "plots" / "history.png").is_file()
    assert "++optimizer.lr=" in (tmp_path / "best.txt").read_text()
    assert len(search(config).trials) == 3  # nothing is left to do
    read = read_search(tmp_path)  # what is left for others to read
    assert (read.metric, read.best) == ("val/psnr", read.trials[2])
    assert [trial.state for trial in read.trials] == [CUT_OFF, FAILED, COMPLETE]
    assert [trial.steps for trial in read.trials] == [None, None, 4]
    assert list(read.best.validations.values())[-1] == read.best.value
    assert [int(trial["steps"] or 0) for trial in trials_of(tmp_path)] == [0, 0, 4]


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"optimizer.lrr": {"low": 1e-4, "high": 1e-2}}, "Did you mean 'lr'"),
        ({"nonsense": {"low": 1, "high": 2}}, "'nonsense', which is no setting"),
        ({"optimizer.lr": {"low": 1e-2, "high": 1e-4}}, "the first must be less"),
        ({"optimizer.lr": {"low": 1e-2}}, "needed is"),
        ({"optimizer.lr": {"choices": []}}, "needed is"),
        ({"optimizer.lr": 3}, "needed is"),
        ({"optimizer.lr": {"low": 1e-4, "high": "x"}}, "both must be numbers"),
        ({"optimizer.lr": {"low": 0, "high": 1e-2, "log": True}}, "with log: true it must be more than 0"),
        ({"model.width": {"choices": [16, "wide"]}}, r"model\.width is 'wide'; it must be a whole number"),
    ],
)
def test_a_space_that_cannot_be_searched_is_an_error_before_anything_runs(tmp_path, space, said):
    with pytest.raises(UserError, match=said):
        search(configuration(tmp_path / "run", space))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+search.trails=3", r"did you mean 'search\.trials'"),
        ("search.trials=-1", r"search\.trials is -1; it must be a whole number of 0 or more"),
        ("search.trials=x", r"search\.trials is 'x'"),
        ("search.timeout=0", r"search\.timeout is 0; it must be more than 0 seconds, or null"),
    ],
)
def test_a_mistyped_setting_of_a_search_is_an_error_before_anything_runs(tmp_path, override, said):
    with pytest.raises(UserError, match=said):
        search(configuration(tmp_path / "run", {}, override))
    assert not (tmp_path / "run").exists()


def test_a_run_that_lags_behind_is_pruned(tmp_path):
    """Threshold: whatever scores less than 100 dB at its second validation."""
    pruner = "search.pruner={_target_: optuna.pruners.ThresholdPruner, lower: 100, n_warmup_steps: 1}"
    space = {"optimizer.lr": {"low": 1e-4, "high": 1e-2}}
    study = search(configuration(tmp_path, space, "search.trials=1", "~search.pruner", f"+{pruner}"))
    (trial,) = study.trials
    assert trial.state.name == "PRUNED"
    assert sorted(trial.intermediate_values) == [0, 1]
    assert not (tmp_path / "best.txt").exists()
    assert [int(trial["steps"]) for trial in trials_of(tmp_path)] == [4]


def test_a_trial_that_another_process_is_at_is_left_to_it_and_counts(tmp_path):
    config = configuration(tmp_path, {"optimizer.lr": {"low": 1e-4, "high": 1e-2}}, "search.trials=0")
    search(config).ask()
    config.search.trials = 1
    folder = trial_folder(tmp_path, 0)
    folder.mkdir(parents=True)
    with FileLock(folder / LOCK):
        assert [trial.state.name for trial in search(config).trials] == ["RUNNING"]


def test_a_trial_that_is_interrupted_is_tried_anew_once(tmp_path, monkeypatch):
    config = configuration(tmp_path, {"optimizer.lr": {"low": 1e-4, "high": 1e-2}}, "search.trials=1")
    step = RestorationModule.training_step

    def told_to_end(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(RestorationModule, "training_step", told_to_end)
    with pytest.raises(SystemExit) as leaving:
        search(config)
    monkeypatch.setattr(RestorationModule, "training_step", step)
    assert leaving.value.code == 128 + signal.SIGTERM
    assert [trial.state for trial in read_search(tmp_path).trials] == [CUT_OFF, "waiting"]
    study = search(config)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]
    assert study.trials[0].params == study.trials[1].params


WORDS = [None, True, 3, 1e-5, "tap_mean", "two words, a 'quote'", "null", "12", ""]


@pytest.mark.parametrize("value", [*WORDS, [1, 2], [None, "a b"]])
def test_the_best_settings_are_written_as_a_command_takes_them(value):
    drawn, choices = value, WORDS
    if isinstance(value, list):  # then all of them are JSON
        drawn, choices = json.dumps(value), [json.dumps(choice) for choice in (*WORDS, value)]
        assert override("model.x", choices[0], choices) == "model.x=null"
    (argument,) = shlex.split(shlex.join([override("model.x", drawn, choices)]))
    (read,) = OverridesParser.create().parse_overrides([argument])
    assert read.value() == value
    assert type(read.value()) is type(value)


def test_one_process_draws_at_a_time_and_none_waits_for_a_training(tmp_path, monkeypatch):
    """Processes that drew together would draw the same. A training that takes no time stands for the real one."""
    config = configuration(tmp_path, {"optimizer.lr": {"low": 1e-4, "high": 1e-2}}, "search.trials=3")
    drawn, held = [], []

    def is_held() -> bool:
        try:
            with FileLock(tmp_path / DRAWING, timeout=0):
                return False
        except Timeout:
            return True

    def drawing(*arguments):
        held.append(("drawing", is_held()))
        return suggest(*arguments)

    def training(trial, own, folder):
        held.append(("training", is_held()))
        drawn.append(own.optimizer.lr)
        if len(drawn) == 1:
            search(config)  # another process, which does the others
        return 1.0

    suggest = search_module._suggest
    monkeypatch.setattr(search_module, "_suggest", drawing)
    monkeypatch.setattr(search_module, "_train", training)
    assert [trial.state.name for trial in search(config).trials] == ["COMPLETE"] * 3
    assert set(held) == {("drawing", True), ("training", False)}
    assert len(set(drawn)) == 3


@pytest.mark.parametrize("name", FILES)
def test_every_search_file_names_settings_that_there_are(name, tmp_path):
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        config = compose("search", [f"search={name}", f"run_dir={tmp_path}", "search.trials=0"])
    assert search(config).trials == []
    assert config.search.space
