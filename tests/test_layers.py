"""Arrows point one way: entry points -> training, data -> models, losses, metrics, inference -> ops, degradations."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import opir_lightning

PACKAGE = Path(opir_lightning.__file__).parent
COMMANDS = {"train", "evaluate", "restore", "export", "count", "check_data", "page", "search", "compare"}
ENTRY = {*COMMANDS, "report", "benchmark", "config", "ranges", "presets", "resume", "starting", "sweep"}
# Each room and what of the package it may know besides itself. What is not listed may be known by nobody below ENTRY.
BASE = {"types", "errors"}
MAY_KNOW = {
    "types": set(),
    "errors": set(),
    "outside": BASE,
    "threads": BASE,
    "trials": set(),
    "value_kinds": set(),
    "files": set(),
    "disk": BASE,
    "checkpoint_files": {"files", *BASE},
    "memory": set(),
    "picture_files": {"files", "memory", "outside", *BASE},
    "__init__": {"checkpoints", "metrics", "models", "restorer", *BASE},
    "ops": BASE,
    "degradations": BASE,
    "models": {"ops", *BASE},
    "losses": BASE,
    "metrics": BASE,
    "complexity": {"ops", *BASE},
    "onnx_file": BASE,
    "pictures": {"files", *BASE},
    "restore_plan": {"files", "picture_files", *BASE},
    "side_pictures": {"memory", "picture_files", "pictures", *BASE},
    "calibration": set(),
    "charts": {"calibration", "pictures", *BASE},
    "provenance": {"__init__"},
    "hub": BASE,
    "model_card": set(),
    "fitting": {"models", "outside", *BASE},
    "checkpoints": {"hub", "models", "files", "fitting", "outside", *BASE},
    "tiling": set(),
    "inference": {"models", "tiling", *BASE},
    "highlights": {"inference", "models", *BASE},
    "smooth_haze": BASE,
    "finishing": {"highlights", "models", "smooth_haze", *BASE},
    "restorer": {
        *("checkpoints", "finishing", "hub", "inference", "memory", "model_card", "models", "picture_files"),
        *("highlights", "smooth_haze", *BASE),
    },
    "data": {"degradations", *BASE},
    "comparison": {
        *("checkpoints", "complexity", "data", "degradations", "files", "inference", "metrics", "models", "pictures"),
        *("fitting", "outside", "trials", *BASE),
    },
    "training": {
        *("models", "losses", "metrics", "pictures", "calibration", "charts", "checkpoints"),
        *("checkpoint_files", "disk", "files", "outside"),
        *BASE,
    },
}


def imports(path: Path) -> set[str]:
    """Rooms of the package that a file imports, also inside functions."""
    known = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [node.module] if node.module != "opir_lightning" else [f"opir_lightning.{a.name}" for a in node.names]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.split(".")[0] == "opir_lightning":
                room = [*name.split("."), "__init__"][1]
                known.add("__init__" if room.startswith("__") else room)
    return known


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_knows_only_what_lies_below_it(path):
    parts = path.relative_to(PACKAGE).parts
    room = parts[0].removesuffix(".py")
    if room in ENTRY:
        return
    assert room in MAY_KNOW, f"say in this test what the new room '{room}' may know"
    assert imports(path) - {room} <= MAY_KNOW[room]


def test_the_package_and_the_operator_load_without_the_heavy_libraries():
    code = (
        "import sys, opir_lightning; bare = set(sys.modules);"
        "import opir_lightning.ops.operator_conv, opir_lightning.models, opir_lightning.metrics, opir_lightning.losses;"
        "import opir_lightning.restorer, opir_lightning.checkpoints;"
        "print('torch' in bare, [m for m in ('lightning','hydra','omegaconf','wandb','triton','albumentations',"
        "'huggingface_hub') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False []"
