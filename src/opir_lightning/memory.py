"""How much memory is free, and arrays that need none: in temporary files instead."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import psutil

if TYPE_CHECKING:
    import torch

Allocate = Callable[[tuple[int, ...], Any], np.ndarray]  # (shape, dtype) -> array, as numpy.empty

# What torch says of the CPU's: on Windows and macOS, and on Linux.
NO_MEMORY = ("not enough memory", "can't allocate memory", "Cannot allocate memory")
CGROUP = Path("/sys/fs/cgroup")
# Of both versions of control groups: the limit, and what of it is in use.
CGROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def free_memory(device: torch.device, *, cgroup: Path = CGROUP) -> int:
    """Bytes that can still be had on a device; in a container no more than its limit leaves."""
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # for reuse, by torch
        return free + kept
    free = psutil.virtual_memory().available
    for limit, used in CGROUP_FILES:
        try:
            free = min(free, int((cgroup / limit).read_text()) - int((cgroup / used).read_text()))
        except (OSError, ValueError):  # no such group, or "max": no limit
            continue
    return max(free, 0)


def out_of_memory(error: BaseException) -> bool:
    """Whether this is what Python, or torch on any device, raises where there is not enough memory."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in NO_MEMORY)


class Scratch:
    """Arrays in temporary files, for pictures that should not fill the memory.

    Their pages are read and written as those of any array; the system keeps as many of them in memory as it has room
    for. The files have no name, or vanish when they are closed: nothing is left behind, whatever happens. An array that
    is not used any more gives its room on the disk back.

    Args:
        folder: on a disk with room for the arrays.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

    def __len__(self) -> int:
        """Arrays that are in use."""
        return len(self._maps)

    def file(self) -> IO[bytes]:
        """A new temporary file, to be filled and handed to `map`."""
        return tempfile.TemporaryFile(dir=self.folder)

    def map(self, file: IO[bytes], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """The content of a file as an array; the file is not needed any more."""
        with file:
            pages = mmap.mmap(file.fileno(), int(np.prod(shape)) * np.dtype(dtype).itemsize)
        self._maps.add(pages)
        return np.ndarray(shape, dtype, buffer=pages)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """A new array.

        Raises:
            OSError: the disk is full.
        """
        file = self.file()
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # a page that finds no room later would kill the process
        else:
            file.truncate(size)
        return self.map(file, shape, dtype)

    def release(self) -> None:
        """Let go of the pages that are in memory now; they come back from the files when they are used."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for pages in self._maps:
                pages.madvise(mmap.MADV_DONTNEED)
