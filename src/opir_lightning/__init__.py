"""OPIR Lightning: all-in-one image restoration by predicted inverse degradation operators.

``from opir_lightning import Restorer`` is all that is needed to use a trained model. The public names are looked up
when they are first used, so importing the package costs nothing, and ``--help`` of a command answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opir_lightning.checkpoints import load_model, save_weights
    from opir_lightning.errors import UserError
    from opir_lightning.metrics import score
    from opir_lightning.models import OPIR
    from opir_lightning.restorer import Restorer
    from opir_lightning.types import Batch, Code, Restoration, Task

_HOMES = {
    "OPIR": "models",
    "Batch": "types",
    "Code": "types",
    "Restoration": "types",
    "Restorer": "restorer",
    "Task": "types",
    "UserError": "errors",
    "load_model": "checkpoints",
    "save_weights": "checkpoints",
    "score": "metrics",
}

__all__ = [
    "OPIR",
    "Batch",
    "Code",
    "Restoration",
    "Restorer",
    "Task",
    "UserError",
    "load_model",
    "save_weights",
    "score",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version  # 20 ms that only who asks for the version pays

        try:
            return version("opir-lightning")
        except PackageNotFoundError:  # run from its sources
            return "not installed"
    if name in _HOMES:
        return getattr(importlib.import_module(f"opir_lightning.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'opir_lightning' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
