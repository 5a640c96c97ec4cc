"""How a trainer writes its checkpoints, and what it does when the disk is full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from opir_lightning.checkpoint_files import LAST, previous_of, write_checkpoint
from opir_lightning.disk import FullDiskPolicy, room_for
from opir_lightning.errors import UserError


class CheckpointFiles(TorchCheckpointIO):
    """Checkpoints that are whole or not there; of ``last.ckpt`` the one before is kept as well.

    What an earlier training left in the folder is no earlier checkpoint of this one: only a file that this training
    wrote, or goes on from, is kept beside the new one.

    Args:
        on_full_disk: ``stop``: a checkpoint that cannot be written ends the training; ``continue``: it is warned of,
            and the next one is tried. Either way the older ones stay as they are.

    Raises:
        UserError: ``on_full_disk`` is something else.
    """

    def __init__(self, on_full_disk: FullDiskPolicy = "continue") -> None:
        if on_full_disk not in ("stop", "continue"):
            raise UserError(f"on_full_disk is '{on_full_disk}'; it must be stop or continue.")
        self.on_full_disk = on_full_disk
        self.failed: set[str] = set()  # what the last attempt could not write
        self._own: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        file = _in_real_folder(path)
        older = previous_of(file)
        keep = file.name == LAST and file in self._own
        self.failed.add(str(path))
        with room_for(file, self.on_full_disk, "the training goes on, and older checkpoints are intact."):
            write_checkpoint(checkpoint, file, keep=keep)
            self.failed.discard(str(path))
            self._own.add(file)
            if keep:
                self._own.add(older)
            elif file.name == LAST and older not in self._own:
                older.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        loaded = super().load_checkpoint(path, *arguments, **options)
        self._own.add(_in_real_folder(path))
        return loaded


def _in_real_folder(path: Path | str) -> Path:
    """Lightning writes to the folder that a link leads to, and goes on from a file by the name that it is given."""
    return Path(path).parent.resolve() / Path(path).name


def on_full_disk(trainer: Trainer) -> FullDiskPolicy:
    """What a trainer does where its disk is full."""
    files = trainer.strategy.checkpoint_io
    return files.on_full_disk if isinstance(files, CheckpointFiles) else "stop"
