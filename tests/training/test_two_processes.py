"""Two processes that share a global batch train as one does."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

TINY = [
    "experiment=five_task",
    "tasks=[none,noise,rain]",
    "model=opir_tiny",
    "model.width=8",
    "model.middle_blocks=1",
    "model.features=8",
    "model.code_crop=32",
    "data.crop=32",
    "data.epoch_samples=40",
    "data.workers=0",
    "data.packs=memory",
    "trainer=cpu",
    "trainer.max_steps=20",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
    "callbacks.progress=null",
    "callbacks.ema.decay=0.9",
    "callbacks.health=null",  # speed and memory are their own
]
BREAKING = "data.train.noise.degradation={_target_:short_runs.sometimes_broken,_partial_:true}"


def log_of_run(folder: Path, *overrides: str) -> list[dict[str, str]]:
    """Train in a process of its own, and in those that it starts."""
    command = [sys.executable, "-m", "opir_lightning.train", *TINY, *overrides, f"hydra.run.dir={folder}"]
    done = subprocess.run(
        command, cwd=folder.parent, capture_output=True, text=True, timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with (folder / "log" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_two_processes_log_the_losses_and_scores_of_one_with_the_same_global_batch(tmp_path, small_root):
    root = f"data.root={small_root}"
    one = log_of_run(tmp_path / "one", root, "data.batch_size=4")
    two = log_of_run(tmp_path / "two", root, "data.batch_size=2", "trainer.devices=2")
    assert len(one) == len(two) == 20 + 2  # losses, and the scores of two epochs
    for alone, shared in zip(one, two, strict=True):
        assert alone.keys() == shared.keys()
        for name, value in alone.items():
            if value == "inf" or not value:
                assert shared[name] == value
            else:
                tolerance = 1e-5 if name.startswith("train/") else 1e-4  # dB
                assert math.isclose(float(value), float(shared[name]), abs_tol=tolerance, rel_tol=0), (name, alone)


@pytest.mark.slow
def test_two_processes_leave_out_the_steps_that_one_does(tmp_path, small_root):
    """What is not finite in one of them is left out by both, and its statistics by both."""
    settings = [f"data.root={small_root}", BREAKING, "trainer.limit_val_batches=0", "callbacks.best=null"]
    one = log_of_run(tmp_path / "one", *settings, "data.batch_size=4")
    two = log_of_run(tmp_path / "two", *settings, "data.batch_size=2", "trainer.devices=2")
    assert len(one) == len(two) == 20
    assert 0 < float(one[-1]["health/skipped_steps"]) < 20
    for alone, shared in zip(one, two, strict=True):
        assert alone["health/skipped_steps"] == shared["health/skipped_steps"]
        losses = float(alone["train/loss"]), float(shared["train/loss"])
        assert math.isclose(*losses, abs_tol=1e-4) or all(map(math.isnan, losses))
    kept = sorted(file.name for file in (tmp_path / "two" / "bad_batches").glob("*.safetensors"))
    assert {"rank0", "rank1"} == {name.split("_")[-1].removesuffix(".safetensors") for name in kept}
