"""Many trainings by one command: what is done is not repeated, what fails does not take the rest along."""

from __future__ import annotations

import csv
import errno
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from filelock import FileLock
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning import Trainer
from omegaconf import OmegaConf
from safetensors.torch import load_file

from opir_lightning import train
from opir_lightning.config import config_dir, register_schemas
from opir_lightning.errors import UserError
from opir_lightning.sweep import SweepReport, refuse_processes, run_as_job
from opir_lightning.training import RestorationModule

register_schemas()
TINY = [
    "tasks=[none,noise]",
    "model=opir_tiny",
    "model.width=8",
    "model.middle_blocks=1",
    "model.features=8",
    "model.code_crop=32",
    "trainer=cpu",
    "trainer.max_steps=4",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
    "trainer.limit_val_batches=1",
    "callbacks.progress=null",
    "callbacks.panels=null",
    "callbacks.operators=null",
    "callbacks.confusion=null",
    "callbacks.calibration=null",
    "callbacks.health=null",  # seconds and memory differ from run to run
    "callbacks.ema.decay=0.5",
    "data.crop=32",
    "data.batch_size=2",
    "data.epoch_samples=4",
    "data.workers=0",
    "data.packs=memory",
]


@pytest.fixture
def sweep(monkeypatch, tmp_path, capfd, small_root):
    """Call the training with ``-m``; returns exit status, what went to standard error, and the steps taken."""
    monkeypatch.chdir(tmp_path)
    step = RestorationModule.training_step

    def call(*arguments, interrupt=None):
        taken: list[tuple[int, int]] = []

        def recording_step(module, batch, batch_idx):
            at = (module.config["seed"], module.trainer.global_step)
            if at == interrupt:
                raise KeyboardInterrupt
            taken.append(at)
            return step(module, batch, batch_idx)

        monkeypatch.setattr(RestorationModule, "training_step", recording_step)
        monkeypatch.setattr(sys, "argv", ["train", "-m", *TINY, f"data.root={small_root}", *arguments])
        try:
            train.main()
            status = 0
        except SystemExit as leaving:
            status = leaving.code
        return status, capfd.readouterr().err, taken

    return call


def test_a_worker_ends_with_its_launcher_even_if_that_was_killed():
    worker = (
        "import os, time; from opir_lightning.sweep import end_with;"
        "end_with(os.getppid()); print('up', flush=True); time.sleep(90)"
    )
    launcher = (
        "import subprocess, sys, time;"
        "w = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=subprocess.PIPE);"
        "w.stdout.readline(); print(w.pid, flush=True); time.sleep(90)"
    )
    with subprocess.Popen([sys.executable, "-c", launcher, worker], stdout=subprocess.PIPE) as process:
        left = psutil.Process(int(process.stdout.readline()))
        assert left.is_running()
        process.kill()
    _, alive = psutil.wait_procs([left], timeout=20)
    assert not alive


def runs(folder: str) -> dict[int, Path]:
    """Folders of finished runs, by their seed."""
    return {json.loads(f.read_text())["meta"]["seed"]: f.parent for f in Path(folder).glob("*/results.json")}


def test_a_sweep_that_was_cut_goes_on_where_it_was_with_the_same_command(sweep):
    command = ["experiment=ablation/stages", "seed=0,1", "model.stages=2"]
    status, _, taken = sweep(*command, interrupt=(0, 3))  # the last checkpoint is of step 2
    assert status != 0
    assert taken == [(0, 0), (0, 1), (0, 2)]
    status, _, taken = sweep(*command)
    assert status == 0
    assert taken == [(0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)]
    assert sweep(*command)[2] == []
    sweep("experiment=ablation/stages", "model.stages=2", "hydra.sweep.dir=whole", "seed=0")

    cut, straight = runs("outputs/ablation/stages"), runs("whole")
    assert set(cut) == {0, 1}
    weights, wanted = (load_file(folder / "model.safetensors") for folder in (cut[0], straight[0]))
    assert all((weights[name] == wanted[name]).all() for name in wanted)
    rows, wanted_rows = (list(csv.DictReader((f / "log/metrics.csv").open())) for f in (cut[0], straight[0]))
    assert rows == wanted_rows


def test_a_job_that_fails_is_reported_and_does_not_take_the_rest_along(sweep):
    status, said, _ = sweep("experiment=ablation/uncertainty", "model.uncertainty=maybe,off", "trainer.max_steps=1")
    assert status == 1
    assert len(runs("outputs/ablation/uncertainty")) == 1
    end = said.splitlines()[-2:]
    assert end[0] == "error: 1 job of the sweep failed:"
    assert "uncertainty-maybe" in end[1]
    assert "must be learned, tap_mean or off" in end[1]
    (note,) = Path("outputs/ablation/uncertainty").glob("*/failed.txt")
    assert "Traceback" in note.read_text()
    # What another process is at is left to it. The failure of another command is not this one's.
    (done,) = runs("outputs/ablation/uncertainty").values()
    assert "name: uncertainty-off\n" in (done / "config" / "config.yaml").read_text()  # and no reference to it
    with FileLock(done / "running.lock"):
        status, said, _ = sweep("experiment=ablation/uncertainty", "model.uncertainty=off", "trainer.max_steps=1")
    assert status == 1
    assert "Another process is training" in said
    assert sweep("experiment=ablation/uncertainty", "model.uncertainty=off", "trainer.max_steps=1")[0] == 0


def test_a_job_that_fails_on_a_full_disk_is_reported_too(tmp_path, monkeypatch, capsys):
    job = tmp_path / "job"
    hydra = SimpleNamespace(runtime=SimpleNamespace(output_dir=str(job)))
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})

    def fails(_):
        raise UserError("the disk is full")

    report = SweepReport()
    report.on_multirun_start(config)
    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        run_as_job(fails, config)
    with pytest.raises(SystemExit) as leaving:
        report.on_multirun_end(config)
    assert leaving.value.code == 1
    said = capsys.readouterr().err
    assert "error: the disk is full (the sweep goes on)\n" in said
    assert f"error: 1 job of the sweep failed:\n  {job}: the reason could not be written down\n" in said


def composed(tmp_path: Path, small_root: Path, *overrides: str):
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        return compose("train", [*TINY, f"run_dir={tmp_path}", f"data.root={small_root}", "resume=auto", *overrides])


def test_a_run_that_was_cut_after_its_last_step_keeps_its_averaged_weights(tmp_path, small_root, monkeypatch):
    train.train(composed(tmp_path / "whole", small_root))
    with monkeypatch.context() as patched:
        patched.setattr("opir_lightning.report.save_weights", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train.train(composed(tmp_path / "cut", small_root))
    train.train(composed(tmp_path / "cut", small_root))
    weights, wanted = (load_file(tmp_path / name / "model.safetensors") for name in ("cut", "whole"))
    assert all((weights[name] == wanted[name]).all() for name in wanted)


def test_a_folder_with_other_settings_is_neither_taken_for_finished_nor_gone_on_with(tmp_path, small_root):
    train.train(composed(tmp_path, small_root, "trainer.max_steps=2"))
    with pytest.raises(UserError, match="holds results of a training with other settings"):
        train.train(composed(tmp_path, small_root, "trainer.max_steps=3"))
    (tmp_path / "results.json").unlink()
    with pytest.raises(UserError, match="holds a checkpoint of a training with other settings"):
        train.train(composed(tmp_path, small_root, "trainer.max_steps=3"))
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be read"):
        train.train(composed(tmp_path, small_root, "trainer.max_steps=2"))


def job_folder(*overrides: str) -> str:
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        config = compose("train", ["experiment=ablation/dilations", *overrides], return_hydra_config=True)
    return OmegaConf.select(config, "hydra.sweep.subdir")


def test_the_folder_of_a_job_follows_from_its_settings():
    folder = job_folder("model.dilations=[1,2]", "seed=1")
    assert folder.startswith("dilations-1-2__seed-1__")
    assert folder == job_folder("model.dilations=[1,2]", "seed=1", "logger=wandb").replace("__logger-wandb", "")
    assert folder[-8:] != job_folder("model.dilations=[1,2]", "seed=1", "model=opir_base")[-8:]
    long = job_folder("data.root=/some where/data set", f"+trainer.profiler={'x' * 200}")
    assert long.startswith("root-data-set__profiler-x")
    assert len(long) < 120


def test_a_job_that_would_start_processes_is_refused():
    with pytest.raises(UserError, match=r"wants 2 devices.*trainer\.devices=1"):
        refuse_processes(Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, barebones=True))
    refuse_processes(Trainer(accelerator="cpu", devices=1, logger=False, barebones=True))
