"""Settings that must stand before triton, albumentations or wandb are imported."""

from __future__ import annotations

import gc
import logging
import os
import tempfile
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Two processes with two threads each on two cores would wait for one another most of the time.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products, which some tests demand
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ.setdefault("WANDB_MODE", "offline")
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="opir-cache-")  # packs of decoded pictures


def pytest_collection_finish() -> None:
    """What the imports left, half a million objects, stays: it need not be searched for garbage again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_log_file_stays_open():
    """What a command has logged to in one test is not written to by the next, which may have no room for it."""
    yield
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if type(handler) is logging.FileHandler]:
        root.removeHandler(handler)
        handler.close()


@pytest.fixture(scope="session")
def small_root(tmp_path_factory) -> Path:
    """A data root with a few small pictures, one to validate on.

    Decoding and scoring the embedded ones takes most of the time of a short training.
    """
    from PIL import Image

    from opir_lightning.data.sources import EMBEDDED

    root = tmp_path_factory.mktemp("pictures")
    photographs = ("train/wine.jpg", "train/free.jpg", "train/life.jpg", "heldout/friends.jpg")
    for path in map(Path, photographs):
        folder, side = ("BSD400", 100) if path.parent.name == "train" else ("BSD-val-rest", 64)
        (root / folder).mkdir(exist_ok=True)
        with Image.open(EMBEDDED / path) as picture:
            picture.crop((100, 100, 100 + side, 100 + side)).save(root / folder / f"{path.stem}.png")
    return root
