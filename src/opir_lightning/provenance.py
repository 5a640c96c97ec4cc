"""Where a number comes from: versions, device, commit."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

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


def _commit() -> str:
    """Short hash of the checkout the package runs from, with "+" where files were changed; "" outside a checkout."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return ""
    try:
        commit = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", str(here), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + ("+" if changed.strip() else "")
