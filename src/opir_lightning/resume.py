"""How far the training of a run folder has come: ``resume=auto`` goes on from there, or does nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from opir_lightning.errors import UserError

# Where a run is kept and shown, not what it computes.
BESIDE = ("run_dir", "resume", "on_full_disk", "logger", "tags", "group")


class Progress(NamedTuple):
    """What a run folder holds.

    Attributes:
        finished: its results are there.
        checkpoint: to go on from; None where there is none.
        remark: a sentence on why it is not the newest one; empty where it is.
    """

    finished: bool
    checkpoint: str | None
    remark: str = ""


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that two trainings share where they compute the same, in whichever folder.

    Args:
        settings: the configuration as plain containers, resolved or not.
    """
    text = json.dumps({key: value for key, value in settings.items() if key not in BESIDE}, sort_keys=True)
    folder = str(settings.get("run_dir", ""))
    if folder not in ("", "."):
        text = text.replace(json.dumps(folder)[1:-1], "")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def find_progress(settings: Mapping[str, Any]) -> Progress:
    """How far a training with these settings has come in their run folder.

    Args:
        settings: resolved, as plain containers.

    Raises:
        UserError: the folder holds a training with other settings, or only checkpoints that cannot be read.
    """
    from opir_lightning.checkpoint_files import read_settings

    folder = Path(settings["run_dir"])
    results = _read_results(folder / "results.json")
    if results is not None:
        if results.get("meta", {}).get("settings") != fingerprint(settings):
            raise UserError(_other_settings(folder, "results"))
        return Progress(True, None)
    checkpoint, remark = newest_checkpoint(folder)
    if checkpoint is None:
        return Progress(False, None)
    if fingerprint(read_settings(checkpoint)) != fingerprint(settings):
        raise UserError(_other_settings(folder, "a checkpoint"))
    return Progress(False, str(checkpoint), remark)


def _read_results(path: Path) -> dict[str, Any] | None:
    """The results of a finished run; None where there are none, or what is there cannot be read: they are made anew."""
    try:
        results = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return results if isinstance(results, dict) else None


def newest_checkpoint(folder: Path) -> tuple[Path | None, str]:
    """The newest checkpoint of a run folder that can be used, if there is one at all.

    Returns:
        The file, and a sentence on what is wrong with a newer one; empty where there is no such.

    Raises:
        UserError: there are checkpoints, and none can be used.
    """
    from opir_lightning.checkpoint_files import LAST, damage, previous_of

    last = folder / "checkpoints" / LAST
    previous = previous_of(last)
    if not last.is_file() and not previous.is_file():
        return None, ""
    problem = damage(last)
    if problem is None:
        return last, ""
    problem_of_previous = damage(previous)
    if problem_of_previous is None:
        return previous, f"'{last}' {problem}; the checkpoint before it, '{previous}', is whole and taken instead."
    raise UserError(
        f"The checkpoint '{last}' {problem}, and the one before it, '{previous.name}', {problem_of_previous}; delete "
        "them to start anew."
    )


def how_to_go_on(folder: Path) -> str:
    """For the end of a training that was interrupted: what continues it, as sentences.

    Raises:
        UserError: as `newest_checkpoint`.
    """
    checkpoint, remark = newest_checkpoint(folder)
    if checkpoint is None:
        return f"There is no checkpoint in '{folder}' yet, so it has to begin anew."
    command = f"Continue it by the same command with resume=auto hydra.run.dir={folder}, or from"
    return f"{remark} {command} resume={checkpoint}.".strip()


def _other_settings(folder: Path, what: str) -> str:
    return (
        f"'{folder}' holds {what} of a training with other settings; move it away, or choose another folder with "
        "hydra.run.dir (of a sweep: hydra.sweep.dir)."
    )
