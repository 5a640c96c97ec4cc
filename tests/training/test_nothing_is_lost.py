"""A training that is told to end, cannot write, or finds damaged files reaches the weights of one that was spared."""

from __future__ import annotations

import csv
import logging
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file
from small_files import files_up_to

from opir_lightning.checkpoint_files import damage, previous_of
from opir_lightning.config import config_dir, register_schemas
from opir_lightning.disk import FullDiskError
from opir_lightning.errors import UserError
from opir_lightning.sweep import alone_in
from opir_lightning.train import train
from opir_lightning.training import RestorationModule
from opir_lightning.training.checkpointing import CheckpointFiles
from opir_lightning.training.loggers import CSVLog, read_rows

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and limits as Linux has them")
register_schemas()
TINY = [
    "experiment=demo",
    "tasks=[none,noise]",
    "model.width=8",
    "model.middle_blocks=1",
    "model.features=8",
    "model.code_crop=32",
    "data.crop=32",
    "data.batch_size=2",
    "data.epoch_samples=8",
    "data.workers=0",
    "data.packs=memory",
    "trainer.max_steps=6",
    "trainer.max_time=null",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
    "trainer.limit_val_batches=1",
    "callbacks.progress=null",
    "callbacks.operators=null",
    "callbacks.confusion=null",
    "callbacks.calibration=null",
    "callbacks.health=null",  # seconds and memory differ from run to run
    "callbacks.ema.decay=0.5",
    "resume=auto",
]


@pytest.fixture
def run(small_root, monkeypatch):
    """Train in a folder; ``at`` maps steps to what happens just before them."""
    step = RestorationModule.training_step

    def call(folder, *overrides, at=None):
        def watched_step(module, batch, batch_idx):
            (at or {}).get(module.trainer.global_step, lambda: None)()
            return step(module, batch, batch_idx)

        monkeypatch.setattr(RestorationModule, "training_step", watched_step)
        with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
            train(compose("train", [*TINY, f"run_dir={folder}", f"data.root={small_root}", *overrides]))
        return load_file(folder / "model.safetensors")

    return call


@pytest.fixture(scope="module")
def spared(small_root, tmp_path_factory):
    """The folder of a training that nothing happened to."""
    folder = tmp_path_factory.mktemp("spared")
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        train(compose("train", [*TINY, f"run_dir={folder}", f"data.root={small_root}"]))
    return folder


def same(weights, spared) -> bool:
    wanted = load_file(spared / "model.safetensors")
    return weights.keys() == wanted.keys() and all(torch.equal(weights[name], wanted[name]) for name in wanted)


def told_to_end():
    os.kill(os.getpid(), signal.SIGTERM)


def step_of(path: Path) -> int:
    return torch.load(path, weights_only=True)["global_step"]


@contextmanager
def closing(full):
    """End a limit that a step has begun, also where the training fails."""
    try:
        yield
    finally:
        full.__exit__(None, None, None)


def best_score(checkpoint: Path):
    states = torch.load(checkpoint, weights_only=True)["callbacks"]
    return next(state["best_model_score"] for name, state in states.items() if name.startswith("BestCheckpoint"))


# In the first epoch, in its last step, which has no checkpoint of its own, and in the last step of all.
@pytest.mark.parametrize(("step", "kept"), [(1, 2), (3, None), pytest.param(5, 6, marks=pytest.mark.slow)])
def test_told_to_end_a_training_writes_a_checkpoint_and_goes_on_to_the_same_weights(
    run, spared, tmp_path, capsys, step, kept
):
    with pytest.raises(SystemExit) as leaving:
        run(tmp_path, at={step: told_to_end})
    assert leaving.value.code == 128 + signal.SIGTERM
    said = capsys.readouterr().err
    assert f"was told to end (SIGTERM) after step {step + 1}." in said
    last = tmp_path / "checkpoints" / "last.ckpt"
    if kept:
        assert f"resume=auto hydra.run.dir={tmp_path}, or from resume={last}." in said
        assert step_of(last) == kept
    else:
        assert "no checkpoint" in said
        assert not last.exists()
    assert same(run(tmp_path), spared)
    assert read_rows(tmp_path / "log" / "metrics.csv") == read_rows(spared / "log" / "metrics.csv")
    assert (tmp_path / "panels" / "pictures.csv").read_bytes() == (spared / "panels" / "pictures.csv").read_bytes()


def test_damaged_the_newest_checkpoint_costs_steps_and_nothing_else(run, spared, tmp_path, caplog):
    often = "callbacks.last.every_n_train_steps=1"
    with pytest.raises(SystemExit):
        run(tmp_path, often, at={4: told_to_end})
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert (step_of(last), step_of(previous_of(last))) == (5, 4)
    last.write_bytes(last.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"last\.ckpt' cannot be read: it is cut off or damaged"):
        run(tmp_path / "elsewhere", often, f"resume={last}")
    leftover = last.parent / ".0123456789abcdef.tmp"
    leftover.touch()
    steps = []
    weights = run(tmp_path, often, at={step: lambda step=step: steps.append(step) for step in range(6)})
    assert steps == [4, 5]
    assert same(weights, spared)
    assert any("the checkpoint before it" in record.message for record in caplog.records)
    assert (step_of(last), step_of(previous_of(last))) == (6, 5)
    assert not leftover.exists()


def test_on_a_full_disk_a_training_goes_on_and_its_results_are_written_when_there_is_room(
    run, spared, tmp_path, caplog
):
    """The disk is full from the fourth step on, and so for the validation of the first epoch as well."""
    full = files_up_to(30_000)
    with caplog.at_level(logging.WARNING), pytest.raises(UserError) as raised, closing(full):
        run(tmp_path, "callbacks.last.every_n_train_steps=2", at={3: full.__enter__})
    assert "cannot be written: the file is larger than is allowed (" in str(raised.value)
    assert "Make room. Continue it by the same command with resume=auto" in str(raised.value)
    warned = [record.message for record in caplog.records if "cannot be written" in record.message]
    for what in ("step_0000004.png'", "best.ckpt'", "last.ckpt'"):
        assert any(what in message and "the training goes on" in message for message in warned)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert (damage(last), step_of(last)) == (None, 2)
    assert not (tmp_path / "model.safetensors").exists()
    assert not list(tmp_path.rglob(".*.tmp"))
    assert same(run(tmp_path, "callbacks.last.every_n_train_steps=2"), spared)
    assert best_score(last) == best_score(spared / "checkpoints" / "last.ckpt")


def test_a_best_checkpoint_that_could_not_be_written_is_not_the_best(run, tmp_path):
    full = files_up_to(30_000)

    def room_again():
        full.__exit__(None, None, None)
        told_to_end()

    with pytest.raises(SystemExit):
        run(tmp_path, at={3: full.__enter__, 4: room_again})
    assert best_score(tmp_path / "checkpoints" / "last.ckpt") is None


def test_a_full_disk_can_end_a_training(run, tmp_path):
    full = files_up_to(30_000)
    with pytest.raises(FullDiskError, match=r"last\.ckpt' cannot be written.*on_full_disk=continue"), closing(full):
        run(tmp_path, "on_full_disk=stop", "callbacks.last.every_n_train_steps=1", at={2: full.__enter__})
    assert step_of(tmp_path / "checkpoints" / "last.ckpt") == 2
    with pytest.raises(UserError, match="on_full_disk is 'wait'; it must be stop or continue"):
        run(tmp_path / "other", "on_full_disk=wait")


def test_what_an_earlier_training_left_is_no_earlier_checkpoint_of_this_one(tmp_path):
    last = tmp_path / "last.ckpt"
    files = CheckpointFiles()
    for step in (1, 2):  # of another training
        files.save_checkpoint({"global_step": step}, last)
    assert step_of(previous_of(last)) == 1
    CheckpointFiles().save_checkpoint({"global_step": 3}, last)
    assert (step_of(last), previous_of(last).exists()) == (3, False)

    # Gone on from the one before, because the newest is damaged: the damaged one does not take its place.
    files.save_checkpoint({"global_step": 4}, last)
    last.write_bytes(b"torn")
    resumed = CheckpointFiles()
    resumed.load_checkpoint(previous_of(last), weights_only=True)
    resumed.save_checkpoint({"global_step": 5}, last)
    assert (step_of(last), step_of(previous_of(last))) == (5, 3)
    resumed.save_checkpoint({"global_step": 6}, last.with_name("best.ckpt"))
    resumed.save_checkpoint({"global_step": 7}, last.with_name("best.ckpt"))
    assert not previous_of(last.with_name("best.ckpt")).exists()


def test_gone_on_from_by_a_link_the_checkpoint_is_the_trainings_own(tmp_path):
    """Lightning writes to the folder that a link leads to."""
    last = tmp_path / "disk" / "last.ckpt"
    files = CheckpointFiles()
    for step in (1, 2):
        files.save_checkpoint({"global_step": step}, last)
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    resumed = CheckpointFiles()
    resumed.load_checkpoint(tmp_path / "run" / "last.ckpt", weights_only=True)
    resumed.save_checkpoint({"global_step": 3}, last)
    assert (step_of(last), step_of(previous_of(last))) == (3, 2)


def test_the_log_keeps_its_rows_whatever_happens(tmp_path, caplog):
    def log(resume=None):
        return CSVLog(save_dir=str(tmp_path), name="", version="log", resume=resume)

    def steps():
        with logger.file.open(newline="") as file:
            return [(row["step"], row["loss"], row["psnr"]) for row in csv.DictReader(file)]

    logger = log()
    logger.log_hyperparams({"seed": 0})
    logger.log_metrics({"loss": 1.5}, step=0)
    logger.log_metrics({"loss": 2.5, "psnr": 20.0}, step=1)  # a new column
    logger.log_metrics({"loss": 3.5}, step=2)
    assert steps() == [("0", "1.5", ""), ("1", "2.5", "20.0"), ("2", "3.5", "")]
    with files_up_to(logger.file.stat().st_size + 4):
        logger.log_metrics({"loss": 4.5}, step=3)
        logger.log_metrics({"loss": 5.5}, step=4)
        assert steps() == [("0", "1.5", ""), ("1", "2.5", "20.0"), ("2", "3.5", "")]
    logger.log_metrics({"loss": 6.5}, step=5)
    assert [step for step, *_ in steps()] == ["0", "1", "2", "3", "4", "5"]
    assert sum("metrics.csv' cannot be written" in record.message for record in caplog.records) == 1

    with logger.file.open("a") as file:
        file.write("6,7")  # a writer that was killed
    log(resume="auto")  # a process that is killed before it logs anything
    assert [step for step, *_ in steps()][:6] == ["0", "1", "2", "3", "4", "5"]
    logger = log(resume="auto")
    logger.log_metrics({"loss": 4.0}, step=3)
    assert steps() == [("0", "1.5", ""), ("1", "2.5", "20.0"), ("2", "3.5", ""), ("3", "4.0", "")]
    logger = log()
    logger.log_metrics({"loss": 1.0, "psnr": 1.0}, step=0)
    assert steps() == [("0", "1.0", "1.0")]


def test_two_processes_do_not_train_in_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("opir_lightning.sweep.LOCK_SECONDS", 0)
    with alone_in(tmp_path / "run"):
        with pytest.raises(UserError, match="Another process is training"), alone_in(tmp_path / "run"):
            pass
        monkeypatch.setenv("LOCAL_RANK", "1")  # of the same training
        with alone_in(tmp_path / "run"):
            pass


@pytest.mark.slow
def test_killed_at_random_a_training_ends_with_the_same_weights(tmp_path):
    script = Path(__file__).parents[2] / "experiments" / "torture" / "torture.py"
    if not script.is_file():
        pytest.skip("the study of the kills is not in this distribution")
    few = ["--kills", "3", "--terms", "1", "--steps", "100", "--warm", "-o", str(tmp_path / "runs")]
    done = subprocess.run(
        [sys.executable, str(script), *few, "--results", str(tmp_path / "results.json")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same, bit for bit" in done.stdout
