"""How far the training of a run folder has come: ``resume=auto`` goes on from there, or does nothing."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from opir_lightning.errors import UserError
from opir_lightning.outside import check_plain, parse_json, read_text

# Where a run is kept and shown, not what it computes.
BESIDE = ("run_dir", "resume", "logger", "tags", "group")


class Progress(NamedTuple):
    """What a run folder holds.

    Attributes:
        finished: its results are there.
        checkpoint: to go on from; None where there is none.
    """

    finished: bool
    checkpoint: str | None


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that two trainings share where they compute the same, in whichever folder.

    Args:
        settings: the configuration as plain containers, resolved or not.
    """
    kept: Any = {key: value for key, value in settings.items() if key not in BESIDE}
    folder = str(settings.get("run_dir", ""))
    if folder not in ("", "."):
        # Where it is a folder's name, and not letters or digits of something else.
        kept = _without(kept, re.compile(rf"(?<!\w){re.escape(folder)}(?!\w)"))
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def _without(value: Any, folder: re.Pattern[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _without(item, folder) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without(item, folder) for item in value]
    return folder.sub("", value) if isinstance(value, str) else value


def find_progress(settings: Mapping[str, Any]) -> Progress:
    """How far a training with these settings has come in their run folder.

    Args:
        settings: resolved, as plain containers.

    Raises:
        UserError: the folder holds a training with other settings, or a checkpoint that cannot be read.
    """
    from opir_lightning.checkpoints import read_checkpoint

    folder = Path(settings["run_dir"])
    results, checkpoint = folder / "results.json", folder / "checkpoints" / "last.ckpt"
    if results.is_file():
        if _noted(results) != fingerprint(settings):
            raise UserError(_other_settings(folder, "results"))
        return Progress(True, None)
    if not checkpoint.is_file():
        return Progress(False, None)
    try:
        trained = read_checkpoint(checkpoint).get("config")
        if not isinstance(trained, Mapping):
            raise ValueError("it has no configuration")
        check_plain(trained)  # before it is written out
    except ValueError as error:
        raise UserError(
            f"The checkpoint '{checkpoint}' cannot be read ({str(error).rstrip('.')}); delete it to start anew."
        ) from error
    if fingerprint(trained) != fingerprint(settings):
        raise UserError(_other_settings(folder, "a checkpoint"))
    return Progress(False, str(checkpoint))


def _noted(results: Path) -> Any:
    """The fingerprint of the settings in a ``results.json``; None where it notes none."""
    try:
        content = parse_json(read_text(results))
    except (OSError, ValueError) as error:
        raise UserError(f"The results '{results}' cannot be read ({error}); delete them to train anew.") from error
    meta = content.get("meta") if isinstance(content, dict) else None
    return meta.get("settings") if isinstance(meta, dict) else None


def _other_settings(folder: Path, what: str) -> str:
    return (
        f"'{folder}' holds {what} of a training with other settings; move it away, or choose another folder with "
        "hydra.run.dir (of a sweep: hydra.sweep.dir)."
    )
