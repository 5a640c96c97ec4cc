"""Settings that must stand before triton, albumentations or wandb are imported."""

from __future__ import annotations

import os
import tempfile

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
