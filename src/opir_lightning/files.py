"""Files that are there in full or not at all, and what there is under a name."""

from __future__ import annotations

import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

# Hidden, and of a form that nobody else gives to a file: what a killed writer leaves may be deleted unseen.
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")


def kind_of(path: Path) -> Literal["file", "folder", "other"] | None:
    """What there is under a name, links followed; None: nothing, or none that the system can look at.

    `Path.is_file` and its like raise an error where a name is longer than the system allows.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # the latter of a name with a zero in it
        return None
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that, whatever happens, either the old or the new content is there in full."""
    with replaced_atomically(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replaced_atomically(path: Path) -> Iterator[Path]:
    """The name of a temporary file for the block to write; afterwards it is brought to the disk and takes ``path``.

    It lies in the same folder; missing folders are created. Where the block raises, the old file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_beside(path: Path) -> Path:
    """A new name for what is to take the place of a file; `remove_leftovers` knows such names."""
    return path.parent / f".{secrets.token_hex(8)}.tmp"


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk: without it a power cut may undo a rename that was long done."""
    with suppress(OSError):  # not every file system, nor Windows, can do this to a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def add_whole(path: Path, data: bytes) -> None:
    """Add to the end of a file. Where there is no room for all of it, nothing is added, and `OSError` raised."""
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            if (written := file.write(data)) != len(data):
                file.write(data[written:])  # the rest of a short write says why it was short
        except OSError:
            file.truncate(size)
            raise


def remove_leftovers(folder: Path, *, older_than: float = 0.0) -> list[Path]:
    """Delete what killed writers left in a folder and in those directly below it.

    Args:
        folder: in which nobody else is writing, or has been for less than ``older_than``.
        older_than: seconds since the last change of a file.

    Returns:
        What was deleted.
    """
    removed = []
    for pattern in (".*.tmp", "*/.*.tmp"):
        for path in folder.glob(pattern):
            if _TEMPORARY.fullmatch(path.name):
                with suppress(OSError):
                    if time.time() - path.stat().st_mtime >= older_than:
                        path.unlink()
                        removed.append(path)
    return removed
