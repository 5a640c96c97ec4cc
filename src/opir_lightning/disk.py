"""What to do when a disk is full: say it in one sentence, and stop or go on."""

from __future__ import annotations

import errno
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

from opir_lightning.errors import UserError

log = logging.getLogger(__name__)

FullDiskPolicy = Literal["stop", "continue"]
REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "the file is larger than is allowed",
    errno.EIO: "the disk reports an error",
}


class FullDiskError(UserError):
    """A file could not be written; the message names it, the reason, and how much room there is."""


def cannot_write(path: Path, error: OSError) -> str | None:
    """One clause on why a file could not be written; None if the disk is not to blame."""
    reason = REASONS.get(error.errno or 0)
    if reason is None:
        return None
    done = "written or read" if error.errno == errno.EIO else "written"  # who reads may meet this one too
    return f"'{path}' cannot be {done}: {reason} ({free_space(path)})"


def free_space(path: Path) -> str:
    """``1.5 GiB are free there``, for the place of a file that need not exist."""
    folder = next((parent for parent in path.absolute().parents if parent.is_dir()), Path("/"))
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return "how much is free there is not known"
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if free >= size:
            return f"{free / size:.1f} {unit} are free there"
    return f"{free / 2**10:.0f} KiB are free there"


@contextmanager
def room_for(path: Path, policy: FullDiskPolicy, consequence: str, *, said: bool = False) -> Iterator[None]:
    """Write a file in the block, and follow the policy where there is no room for it.

    Args:
        path: what is written.
        policy: ``stop`` raises, ``continue`` warns, and what follows the block is done.
        consequence: what that means, to end the warning with.
        said: it was warned of before, and is not again.

    Raises:
        FullDiskError: there is no room, and the policy is to stop.
    """
    try:
        yield
    except OSError as error:
        why = cannot_write(path, error)
        if why is None:
            raise
        if policy == "stop":
            raise FullDiskError(f"{why}; make room, or set on_full_disk=continue.") from error
        if not said:
            log.warning("%s; %s", why, consequence)


def quieten_full_logs() -> None:
    """Let log files that cannot be written say so once, instead of with a traceback for every line."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler) and not isinstance(handler.handleError, _SaidOnce):
            handler.handleError = _SaidOnce(handler)  # type: ignore[method-assign]


@contextmanager
def lossy_streams() -> Iterator[None]:
    """Let standard output and error lose what has no room, for example in a file on a full disk, and raise nothing."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Lossy(before[0]), _Lossy(before[1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Lossy:
    """A stream that loses what cannot be written; all else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _losing():
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _losing():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _losing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in REASONS:
            raise


class _SaidOnce:
    """`logging.Handler.handleError` of one log file."""

    def __init__(self, handler: logging.FileHandler) -> None:
        self.path, self.otherwise, self.said = Path(handler.baseFilename), handler.handleError, False

    def __call__(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        why = cannot_write(self.path, error) if isinstance(error, OSError) else None
        if why is None:
            self.otherwise(record)
        elif not self.said:
            self.said = True
            print(f"{why}; lines of it are lost.", file=sys.stderr)
