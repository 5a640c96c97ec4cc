"""Decoded pictures, each decoded once: in memory, or in packs on disk that are mapped into memory."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from opir_lightning.data.images import PictureFile
from opir_lightning.data.packs import DamagedPackError, Pack, PackPlan, check_room, ensure_pack, plan_packs
from opir_lightning.errors import UserError

log = logging.getLogger(__name__)

RECENT_BYTES = 512 * 2**20
FEW = 50  # below so many pictures no progress bar is worth its line

T = TypeVar("T")
R = TypeVar("R")


def default_pack_folder() -> Path:
    """Where packs go unless a folder is given: in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opir_lightning" / "packs"


class ImageStore:
    """Decoded pictures in memory.

    What is loaded beforehand stays; filled before loader workers are forked, it is shared by them. What is asked for
    without that is decoded then, and the most recent ones are kept.

    Args:
        recent_bytes: so much of what was not loaded beforehand is kept.
    """

    def __init__(self, *, recent_bytes: int = RECENT_BYTES) -> None:
        self._loaded: dict[PictureFile, np.ndarray] = {}
        self._recent: OrderedDict[PictureFile, np.ndarray] = OrderedDict()
        self._recent_bytes, self._room = 0, recent_bytes

    def __getitem__(self, path: Path) -> np.ndarray:
        """``(H, W, 3)`` uint8, not to be written to.

        Raises:
            UserError: it cannot be decoded.
        """
        return self.get(PictureFile(path))

    def __contains__(self, file: PictureFile) -> bool:
        """Whether it was loaded beforehand."""
        return file in self._loaded

    def get(self, file: PictureFile) -> np.ndarray:
        """The pixels of a file of either kind, see `PictureFile.read`."""
        if file in self._loaded:
            return self._loaded[file]
        if file in self._recent:
            self._recent.move_to_end(file)
            return self._recent[file]
        pixels = self._recent[file] = file.read()
        self._recent_bytes += pixels.nbytes
        while self._recent_bytes > self._room and len(self._recent) > 1:
            self._recent_bytes -= self._recent.popitem(last=False)[1].nbytes
        return pixels

    def load(self, files: Iterable[PictureFile]) -> list[UserError]:
        """Decode all of these now, with a progress bar where it takes a while.

        Returns:
            One error for each file that could not be decoded.
        """
        wanted = sorted({file for file in files if file not in self._loaded})
        broken: list[UserError] = []
        with (
            ThreadPoolExecutor(_threads()) as pool,
            tqdm(total=len(wanted), desc="reading pictures", unit="picture", disable=len(wanted) < FEW) as bar,
        ):
            for file, result in zip(wanted, map_ahead(pool, _read_or_error, wanted), strict=True):
                if isinstance(result, UserError):
                    broken.append(result)
                else:
                    self._loaded[file] = result
                bar.update()
        return broken


class PackedStore(ImageStore):
    """Decoded pictures in packs: files that are built on first use and mapped into memory.

    A later run starts without decoding, processes share the memory, and there may be more pictures than memory. A
    picture's checksum is compared when it is first used; where it is wrong, the picture is decoded from its own file
    and the pack is removed, so that the next run builds it anew.

    Args:
        folder: where the packs are; made when it is not there.
    """

    def __init__(self, folder: Path, *, recent_bytes: int = RECENT_BYTES) -> None:
        super().__init__(recent_bytes=recent_bytes)
        self.folder = folder
        self._packs: dict[Path, Pack] = {}
        self._places: dict[PictureFile, tuple[Path, int]] = {}

    def __contains__(self, file: PictureFile) -> bool:
        return file in self._places

    def __getstate__(self) -> dict[str, Any]:
        """Processes that are not forked map the packs themselves: pickled, a mapping would be its whole content."""
        return {**self.__dict__, "_packs": {}}

    def get(self, file: PictureFile) -> np.ndarray:
        if file not in self._places:
            return super().get(file)
        path, number = self._places[file]
        try:
            if path not in self._packs:
                self._packs[path] = Pack(path)
            return self._packs[path].pixels(number)
        except (DamagedPackError, FileNotFoundError) as error:
            log.warning("%s Its pictures are decoded from their own files.", error)
            with suppress(OSError):
                path.unlink()
            self._places = {other: place for other, place in self._places.items() if place[0] != path}
            return super().get(file)

    def load(self, files: Iterable[PictureFile]) -> list[UserError]:
        """Have all of these in packs, building what is missing, with a progress bar where it takes a while.

        Returns:
            One error for each file that could not be decoded.

        Raises:
            UserError: the packs cannot be written there.
        """
        plans = plan_packs(self.folder, set(files) - self._places.keys())
        missing = [plan for plan in plans if not plan.path.exists()]
        check_room(self.folder, missing)
        count = sum(len(plan.files) for plan in missing)
        if count >= FEW:
            log.info("Decoding %d pictures once, into '%s'.", count, self.folder)
        broken: list[UserError] = []
        with (
            ThreadPoolExecutor(_threads()) as pool,
            tqdm(total=count, desc="packing pictures", unit="picture", disable=count < FEW) as bar,
        ):
            for plan in plans:
                pack = self._packs[plan.path] = self._ensure(plan, pool, bar.update)
                for number, file in enumerate(plan.files):
                    if number in pack.broken:
                        broken.append(UserError(pack.broken[number]))
                    else:
                        self._places[file] = (plan.path, number)
        return broken

    def _ensure(self, plan: PackPlan, pool: ThreadPoolExecutor, advance: Callable[[], object]) -> Pack:
        def decoded(files: Sequence[PictureFile]) -> Iterator[np.ndarray | UserError]:
            for result in map_ahead(pool, _read_or_error, files):
                yield result
                advance()

        return ensure_pack(plan, decoded)


def map_ahead(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], ahead: int = 8) -> Iterator[R]:
    """As ``pool.map``, at most ``ahead`` results before the one that is asked for: memory stays bounded."""
    waiting = iter(items)
    running = [pool.submit(work, item) for item in islice(waiting, ahead)]
    while running:
        done = running.pop(0).result()
        running += [pool.submit(work, item) for item in islice(waiting, 1)]
        yield done


def _read_or_error(file: PictureFile) -> np.ndarray | UserError:
    try:
        return file.read()
    except UserError as error:
        return error


def _threads() -> int:
    return min(8, os.cpu_count() or 1)
