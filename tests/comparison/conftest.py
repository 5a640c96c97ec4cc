"""Three real trainings of four steps on small pictures, as a sweep leaves them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from opir_lightning.config import config_dir, register_schemas
from opir_lightning.data.sources import EMBEDDED
from opir_lightning.train import train
from opir_lightning.trials import INSTEAD_OF, JOURNAL, METRIC, STEPS, trial_folder

TINY = [
    *("experiment=demo", "tasks=[none,noise,haze]", "trainer.max_steps=4", "trainer.max_time=null"),
    *("trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1", "callbacks.progress=null"),
    *("callbacks.panels=null", "callbacks.best=null", "data.crop=32", "data.batch_size=2", "data.epoch_samples=4"),
    *("data.workers=0", "data.packs=memory", "data.val_centre=null", "model.width=8", "model.features=8"),
    *("model.middle_blocks=1", "schedule.warmup=0", "optimizer.lr=0.02", "callbacks.ema.decay=0"),
]
JOBS = [("3", "0"), ("3", "1"), ("5", "0")]  # kernel size and seed


def pictures(folder: Path) -> Path:
    """A data root of few and small pictures: three of them for validation."""
    for name, photographs, side in (("BSD400", "train", 48), ("BSD-val-rest", "heldout", 64)):
        (folder / name).mkdir(parents=True)
        for path in sorted((EMBEDDED / photographs).glob("*.jpg"))[:3]:
            with Image.open(path) as photograph:
                photograph.crop((100, 60, 100 + side, 60 + side)).save(folder / name / f"{path.stem}.png")
    return folder


def run(folder: Path, root: Path, *overrides: str) -> Path:
    """Train in ``folder``, with the configuration beside it that the command leaves there."""
    register_schemas()
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        config = compose("train", [*TINY, f"data.root={root}", *overrides])
    (folder / "config").mkdir(parents=True)
    OmegaConf.save(config, folder / "config" / "config.yaml")  # with its references, and run_dir one of Hydra's own
    config.run_dir = str(folder)
    train(config)
    return folder


@pytest.fixture
def no_plots(monkeypatch):
    """Bars and curves take as long as the rest of a comparison; for tests that look at something else."""
    monkeypatch.setattr("opir_lightning.comparison.report._plots", lambda *_: [])


@pytest.fixture
def train_run():
    return run


@pytest.fixture(scope="session")
def sweep(tmp_path_factory) -> Path:
    """The folder of the sweep; not to be changed."""
    root = pictures(tmp_path_factory.mktemp("data") / "sets")
    folder = tmp_path_factory.mktemp("sweep")
    for number, (size, seed) in enumerate(JOBS):
        run(folder / str(number), root, f"model.kernel_size={size}", f"seed={seed}")
    return folder


@pytest.fixture(scope="session")
def searched(tmp_path_factory) -> Path:
    """A search folder: its journal written through Optuna as the search does it, and run folders with scores.

    Trials 0 and 1 are complete, 2 is pruned, 3 failed, 4 was cut off and is 5, 5 and 6 are complete and their runs
    deleted, 7 is running. Beside it lies "single", a run of no search. Not to be changed.
    """
    optuna = pytest.importorskip("optuna", reason="the package 'optuna' is not installed")
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    register_schemas()
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        config = compose("train", TINY)
    folder = tmp_path_factory.mktemp("searches") / "demo"
    places = [folder, *(trial_folder(folder, number) for number in range(3)), folder.parent / "single"]
    for number, place in enumerate(places):  # Hydra leaves a configuration in that of the search, too
        (place / "config").mkdir(parents=True)
        config.model.kernel_size = (3, 3, 5, 5, 7)[number]
        OmegaConf.save(config, place / "config" / "config.yaml")
        if number not in (0, 3):
            scores = {"psnr_input": 20.0, "psnr": 22.0 + number, "ssim": 0.8}
            results = {"sets": {"noise": {"published": scores}}, "meta": {"steps": 4}}
            (place / "results.json").write_text(json.dumps(results))
    study = optuna.create_study(
        study_name="demo", storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))), direction="maximize"
    )
    study.set_user_attr(METRIC, "val/psnr")
    outcomes = [
        # state, curve, steps, instead of
        ("COMPLETE", (20.0, 22.5), 4, None),
        ("COMPLETE", (20.5, 23.75), 4, None),
        ("PRUNED", (18.25,), 2, None),
        ("FAIL", (), None, None),
        ("FAIL", (19.0,), None, None),
        ("COMPLETE", (19.0, 21.0), 4, 4),
        ("COMPLETE", (19.0, 20.0), 4, None),
        ("RUNNING", (19.5,), None, None),
    ]
    for number, (state, curve, steps, instead_of) in enumerate(outcomes):
        trial = study.ask()
        trial.suggest_float("optimizer.lr", 1e-4, 1e-2, log=True)
        trial.suggest_categorical("model.kernel_size", [3, 5])
        trial.suggest_categorical("model.dilations", ["[1,2]", "[1,2,3]"])
        trial.suggest_categorical("task_code", ["blind", "<b>$label$"])
        for validation, value in enumerate(curve):
            trial.report(value, validation)
        if steps is not None:
            trial.set_user_attr(STEPS, steps)
        if instead_of is not None:
            trial.set_user_attr(INSTEAD_OF, instead_of)
        if state != "RUNNING":
            values = curve[-1] if state == "COMPLETE" else None
            study.tell(number, values, state=optuna.trial.TrialState[state])
    return folder
