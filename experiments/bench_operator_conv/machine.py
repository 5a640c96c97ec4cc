"""Where the numbers of a run come from."""

from __future__ import annotations

import datetime
import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import torch

import opir_lightning


def meta(device: str) -> dict[str, Any]:
    """Versions, commit, device, processor, threads, load of the last minute, allocator, date and command line."""
    return _provenance() | {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "kind": device,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "allocator": allocator(),
        "load": os.getloadavg()[0],
        "spinning": os.environ.get("GOMP_SPINCOUNT") or os.environ.get("OMP_WAIT_POLICY") or "default",
        "triton": _triton(),
        "cuda": torch.version.cuda,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "argv": sys.argv[1:],
    }


def slug(device: str) -> str:
    """Name of the device for a file name."""
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def processor() -> str:
    """Model of the CPU."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return models[0] if models else platform.processor() or platform.machine()


def allocator() -> str:
    """What decides whether freed memory is kept: on the CPU that moves large results by factors."""
    names = [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"))]
    library = " ".join(platform.libc_ver()) or "C library"
    return f"{library}, " + (", ".join(f"{name}={os.environ[name]}" for name in sorted(names)) or "default settings")


def _provenance() -> dict[str, Any]:
    try:
        opir_lightning.__version__  # noqa: B018
    except PackageNotFoundError:  # run from a checkout that is on the path and not installed
        opir_lightning.__version__ = "not installed"
    from opir_lightning.provenance import provenance

    return dict(provenance())


def _triton() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)
