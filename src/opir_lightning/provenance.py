"""Where a number comes from: versions, device, commit."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from opir_lightning import __version__


def provenance() -> dict[str, str]:
    """Versions, device and commit, for every file of results."""
    return {
        "opir_lightning": __version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads",
    }


def git_state() -> dict[str, Any]:
    """The checkout the package runs from: ``commit``, in full, ``branch``, ``dirty``; empty outside a checkout."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return {}
    try:
        commit, branch, changed = (
            subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (
                ("rev-parse", "HEAD"),
                ("rev-parse", "--abbrev-ref", "HEAD"),
                ("status", "--porcelain", "--untracked-files=no"),
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"commit": commit, "branch": branch, "dirty": bool(changed)}


def _commit() -> str:
    """Short hash of the checkout, with "+" where files were changed; "" outside a checkout."""
    state = git_state()
    return state["commit"][:7] + ("+" if state["dirty"] else "") if state else ""
