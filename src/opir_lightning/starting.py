"""Whether a command can write where it is about to; asked before Hydra does, whose own answer is a traceback."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from opir_lightning.disk import cannot_write
from opir_lightning.errors import UserError
from opir_lightning.files import temporary_beside

NEEDED = 2**16  # bytes; of five_task Hydra writes 25,000 before the command itself begins


class RoomToBegin(Callback):
    """Leave with one sentence and status 1 where there is no room for the first files, or they may not be written."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        _look(config, "hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _look(config, "hydra.sweep.dir")


def _look(config: DictConfig, key: str) -> None:
    if OmegaConf.select(config, "hydra.output_subdir") is None:  # it looks, and writes nothing
        return
    try:
        folder = Path(str(OmegaConf.select(config, key)))
    except OmegaConfBaseException:  # the name has something in it that Hydra finds out only later
        return
    try:
        check_room(folder, key)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def check_room(folder: Path, key: str) -> None:
    """Write and delete a file in a folder, or above it where the folder is not there yet.

    Raises:
        UserError: that failed; the message names the folder, the reason, and the setting ``key``.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    file = temporary_beside(there / "file")
    try:
        try:
            with file.open("wb") as opened:
                opened.write(bytes(NEEDED))
                opened.flush()
                os.fsync(opened.fileno())
        finally:
            file.unlink(missing_ok=True)
    except OSError as error:
        why = cannot_write(folder, error) or f"'{folder}' cannot be written to ({error.strerror or error})"
        raise UserError(f"{why}; make room, or choose another folder with {key}.") from error
