"""Some thousand changes of good files; none ends in anything but a result or a sentence. With ``-s``, the counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from malformed_pictures import good_files
from malformed_weights import checkpoint, network

from opir_lightning.checkpoints import save_weights

COUNT = int(os.environ.get("OPIR_FUZZ", "6000"))


def fuzz(folder: Path, seed: int, count: int) -> list[list[object]]:
    weights = folder / "good.safetensors"
    save_weights(weights, network())
    torch.save(checkpoint(), folder / "good.ckpt")
    for suffix, content in good_files().items():
        (folder / f"good.{suffix}").write_bytes(content)
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("fuzzing.py"), weights, str(seed), str(count)],
        capture_output=True, text=True, errors="replace", check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "VIPS_CONCURRENCY": "1", "MALLOC_ARENA_MAX": "2"},
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr[-3000:]
    assert "outcomes" in lines[-1], f"ended with {done.returncode} at {lines[-1]}: {done.stderr[-2000:]}"
    raised = [line for line in lines if "raised" in line]
    assert not raised, "\n".join(map(str, raised[:20]))
    assert lines[-1]["MiB"] <= 2048
    print(f"\n{count} files, {lines[-1]['MiB']} MiB at most")
    for row in lines[-1]["outcomes"]:
        print("{:14} {:10} {:8} {:6}".format(*row))
    return lines[-1]["outcomes"]


@pytest.mark.slow
def test_changed_files_are_read_or_refused(tmp_path):
    outcomes = fuzz(tmp_path, seed=int(os.environ.get("OPIR_FUZZ_SEED", "1")), count=COUNT)
    for suffix in (".png", ".jpg", ".tif", ".bmp", ".webp", ".avif", ".npy", ".safetensors", ".ckpt"):
        assert {row[2] for row in outcomes if row[0] == suffix} == {"read", "refused"}, suffix
