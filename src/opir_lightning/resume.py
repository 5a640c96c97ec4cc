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
        UserError: the folder holds a training with other settings, or only checkpoints that cannot be read.
    """
    folder = Path(settings["run_dir"])
    results = _read_results(folder / "results.json")
    if results is not None:
        meta = results.get("meta")
        if not isinstance(meta, dict) or meta.get("settings") != fingerprint(settings):
            raise UserError(_other_settings(folder, "results"))
        return Progress(True, None)
    checkpoint, remark = newest_checkpoint(folder)
    if checkpoint is None:
        return Progress(False, None)
    if fingerprint(settings_of(checkpoint)) != fingerprint(settings):
        raise UserError(_other_settings(folder, "a checkpoint"))
    return Progress(False, str(checkpoint), remark)


def _read_results(path: Path) -> dict[str, Any] | None:
    """The results of a finished run; None where there are none, or what is there cannot be read: they are made anew."""
    try:
        results = parse_json(read_text(path))
    except (OSError, ValueError):
        return None
    return results if isinstance(results, dict) else None


def settings_of(checkpoint: Path) -> dict[str, Any]:
    """The configuration that a checkpoint of a training carries; its tensors stay on the disk.

    Raises:
        UserError: it is damaged, or is no checkpoint of a training of this program.
    """
    from opir_lightning.checkpoint_files import damage
    from opir_lightning.checkpoints import read_checkpoint

    problem = damage(checkpoint)
    if problem is not None:
        raise UserError(f"The checkpoint '{checkpoint}' {problem}.")
    content = read_checkpoint(checkpoint)
    trained = content.get("config")
    if not isinstance(trained, Mapping) or "loops" not in content:
        raise UserError(f"'{checkpoint}' is no checkpoint of a training that can be gone on with.")
    try:
        check_plain(trained)  # before it is written out
    except ValueError as error:
        raise UserError(f"The settings in '{checkpoint}' cannot be used ({str(error).rstrip('.')}).") from error
    return dict(trained)


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
