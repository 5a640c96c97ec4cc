"""Packs: files of decoded pictures that are mapped into memory.

A pack holds the pixels of some hundred files of one folder. Its name says what it was made of (paths, sizes and times
of change), so a changed file is another pack. It is written under another name, to the disk, and only then takes its
own: whatever has that name is whole. Layout, integers little-endian::

    MAGIC | pixels of each picture, ALIGNMENT bytes aligned | index, JSON | index offset, index length, BLAKE2b of it
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from filelock import FileLock, Timeout

from opir_lightning.data.images import PictureFile, open_image
from opir_lightning.errors import UserError

MAGIC = b"OPIRPK01"
ALIGNMENT = 64
END = struct.Struct("<QQ16s")
DTYPES = ("|u1", "<u2", "<f4")  # of pictures and depth maps, as numpy writes them
MOST_FILES = 256  # of a pack: what a killed build loses at most, and what a changed file makes anew

Fingerprint: TypeAlias = list[str | int]
"""Kind, absolute path, size and time of change of a file."""

Decoder: TypeAlias = Callable[[Sequence[PictureFile]], Iterable[np.ndarray | UserError]]


class DamagedPackError(Exception):
    """A pack is not what was written."""


class PackPlan(NamedTuple):
    """A pack that is there or is to be built.

    Attributes:
        path: of the pack.
        files: what is in it.
        made_of: what each file is recognised by, looked at before it is decoded: one that changes meanwhile makes
            another pack the next time.
    """

    path: Path
    files: list[PictureFile]
    made_of: list[Fingerprint]


def plan_packs(folder: Path, files: Iterable[PictureFile]) -> list[PackPlan]:
    """Which packs hold these files; looks at their names, sizes and times of change, and decodes nothing."""
    plans = []
    for (parent, kind), group in groupby(sorted(files, key=_order), key=lambda file: (file.path.parent, file.kind)):
        members = list(group)
        place = hashlib.blake2b(f"{kind} {parent.resolve()}".encode(), digest_size=4).hexdigest()
        for number, start in enumerate(range(0, len(members), MOST_FILES)):
            part = members[start : start + MOST_FILES]
            made_of = [_fingerprint(file) for file in part]
            key = hashlib.blake2b(json.dumps([MAGIC.decode(), *made_of]).encode(), digest_size=8).hexdigest()
            plans.append(PackPlan(folder / f"{parent.name}-{place}-{number:04d}-{key}.pack", part, made_of))
    return plans


def _order(file: PictureFile) -> tuple[Path, str, str]:
    return file.path.parent, file.kind, file.path.name


def _fingerprint(file: PictureFile) -> Fingerprint:
    """What a file is recognised by; one that is not there has no size."""
    try:
        status = file.path.stat()
    except OSError:
        return [file.kind, str(file.path.absolute()), -1, -1]
    return [file.kind, str(file.path.absolute()), status.st_size, status.st_mtime_ns]


def check_room(folder: Path, plans: Sequence[PackPlan]) -> None:
    """Raise ``UserError`` if the packs will not fit on the disk; sizes come from the headers of the files."""
    needed = sum(_decoded_bytes(file) for plan in plans for file in plan.files)
    if needed == 0:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise _no_place(folder, error) from error
    if needed > free:
        raise UserError(
            f"The decoded pictures take {needed / 2**30:.1f} GiB and '{folder}' has room for {free / 2**30:.1f}. "
            "Set data.packs to a folder with more room, or data.packs=memory to keep them in memory."
        )


def _decoded_bytes(file: PictureFile) -> int:
    try:
        if file.kind == "depth":
            return file.path.stat().st_size
        with open_image(file.path) as image:
            return image.width * image.height * 3
    except Exception:  # it will be reported by name when it is decoded
        return 0


def ensure_pack(plan: PackPlan, decode: Decoder) -> Pack:
    """Open a pack, building it if it is not there or is not whole.

    One process builds, others that want the same pack wait for it; the lock goes with its process, however that ends.

    Args:
        plan: what to build and where.
        decode: gives the pixels of the files, or their error, in order.

    Raises:
        UserError: the pack cannot be written.
    """
    if (pack := _whole(plan.path)) is not None:
        return pack
    try:
        plan.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(plan.path.with_suffix(".lock")):
            if (pack := _whole(plan.path)) is None:
                _build(plan, decode)
                _remove_outdated(plan.path)
                pack = Pack(plan.path)
            return pack
    except OSError as error:
        raise _no_place(plan.path.parent, error) from error


def _no_place(folder: Path, error: OSError) -> UserError:
    why = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
    return UserError(
        f"The decoded pictures cannot be kept in '{folder}' ({why}). Set data.packs to another folder, or "
        "data.packs=memory to keep them in memory."
    )


def _whole(path: Path) -> Pack | None:
    try:
        return Pack(path)
    except (DamagedPackError, FileNotFoundError):
        return None


def _build(plan: PackPlan, decode: Decoder) -> None:
    """Write under another name, then rename; what a killed build leaves is overwritten by the next one."""
    unfinished = plan.path.with_suffix(".building")
    index: list[dict[str, object]] = []
    try:
        with unfinished.open("wb") as file:
            file.write(MAGIC)
            for made_of, result in zip(plan.made_of, decode(plan.files), strict=True):
                entry: dict[str, object] = {"file": made_of}
                if isinstance(result, UserError):
                    entry["broken"] = str(result)
                else:
                    pixels = np.ascontiguousarray(result)
                    file.write(b"\0" * (-file.tell() % ALIGNMENT))
                    entry["place"] = (file.tell(), pixels.shape, pixels.dtype.str, zlib.crc32(pixels.data))
                    file.write(pixels.data)
                index.append(entry)
            packed = json.dumps(index).encode()
            end = END.pack(file.tell(), len(packed), hashlib.blake2b(packed, digest_size=16).digest())
            file.write(packed + end)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(plan.path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _remove_outdated(path: Path) -> None:
    """Remove packs of the same part of the same folder whose files have changed since, and what killed builds left.

    Who has one of them mapped keeps it: a file without a name lives on until its last user ends.
    """
    series = glob.escape(path.name.rsplit("-", 1)[0])
    for other in path.parent.glob(f"{series}-*.pack"):
        pack = _whole(other) if other != path else None
        if pack is not None and pack.outdated():
            with suppress(OSError):
                other.unlink()
    for unfinished in path.parent.glob(f"{series}-*.building"):
        with suppress(OSError, Timeout), FileLock(unfinished.with_suffix(".lock"), timeout=0):
            unfinished.unlink()


def _checked_index(packed: bytes, path: Path) -> list[dict[str, Any]]:
    """The entries of an index; a checksum keeps accidents out, and not somebody who can compute one.

    Raises:
        DamagedPackError: it is not as `_build` writes it, or has pixels outside of the file.
    """
    try:
        index = json.loads(packed)
        size = path.stat().st_size
        for entry in index:
            kind, name, *numbers = entry["file"]
            fine = kind in ("rgb", "depth") and isinstance(name, str) and list(map(type, numbers)) == [int, int]
            if "broken" in entry:
                fine &= isinstance(entry["broken"], str)
            else:
                offset, shape, dtype, _ = entry["place"]
                fine &= dtype in DTYPES and type(offset) is int and all(type(n) is int and n >= 0 for n in shape)
                fine &= 0 <= offset <= offset + math.prod(shape) * np.dtype(dtype).itemsize <= size
            if not fine:
                raise ValueError(entry)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedPackError(f"The index of the pack '{path}' is damaged.") from error
    return index


class Pack:
    """A pack, mapped into memory.

    Args:
        path: of the file.

    Attributes:
        broken: one sentence for each file that could not be decoded, by its number.

    Raises:
        DamagedPackError: the file is not a whole pack.
        FileNotFoundError: it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._index = _checked_index(self._read_index(), self.path)
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
        self._verified: set[int] = set()
        self.broken = {number: entry["broken"] for number, entry in enumerate(self._index) if "broken" in entry}

    def __len__(self) -> int:
        return len(self._index)

    def pixels(self, number: int) -> np.ndarray:
        """A read-only view of the pixels of one of its pictures, counted from 0 in the order of the plan.

        Raises:
            DamagedPackError: its checksum is wrong.
        """
        offset, shape, dtype, crc = self._index[number]["place"]
        size = math.prod(shape) * np.dtype(dtype).itemsize
        raw = self._bytes[offset : offset + size]
        if number not in self._verified:
            if zlib.crc32(raw.data) != crc:
                raise DamagedPackError(f"The pack '{self.path}' is damaged.")
            self._verified.add(number)
        return raw.view(dtype).reshape(shape)

    def outdated(self) -> bool:
        """Whether a file that it was made of has changed or is gone."""
        return any(
            _fingerprint(PictureFile(Path(entry["file"][1]), entry["file"][0])) != entry["file"]
            for entry in self._index
        )

    def _read_index(self) -> bytes:
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < len(MAGIC) + END.size or file.read(len(MAGIC)) != MAGIC:
                raise DamagedPackError(f"'{self.path}' is no whole pack.")
            file.seek(size - END.size)
            offset, length, digest = END.unpack(file.read(END.size))
            if offset + length + END.size != size:
                raise DamagedPackError(f"'{self.path}' is no whole pack.")
            file.seek(offset)
            index = file.read(length)
            if hashlib.blake2b(index, digest_size=16).digest() != digest:
                raise DamagedPackError(f"The index of the pack '{self.path}' is damaged.")
            return index
