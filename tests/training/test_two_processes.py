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
]


def log_of_run(folder: Path, *overrides: str) -> list[dict[str, str]]:
    """Train in a process of its own, and in those that it starts."""
    command = [sys.executable, "-m", "opir_lightning.train", *TINY, *overrides, f"hydra.run.dir={folder}"]
    done = subprocess.run(
        command, cwd=folder.parent, capture_output=True, text=True, timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
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
