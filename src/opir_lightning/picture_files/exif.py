"""EXIF data of TIFF files, which libvips neither reads nor writes, and what in metadata a restoration makes wrong.

Source: TIFF revision 6.0 (Adobe, 1992), BigTIFF (libtiff), Exif 2.32 (CIPA DC-008).
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

PREFIX = b"Exif\0\0"
# Of a file's first directory, what says something about the picture and not about how its pixels are stored.
DESCRIPTIVE = {
    *(269, 270, 271, 272, 285, 305, 306, 315, 316),  # document, description, make, model, page, software, date, artist
    *(18246, 18249, 33432, *range(40091, 40096)),  # rating, copyright, what Windows says
    *(34665, 34853),  # directories of the exposure and of the place
}
POINTERS = (34665, 34853, 40965)  # whose value is the place of another directory
EXTRA_SAMPLES = 338
# Bytes of a number, by type; the last three are those of BigTIFF.
WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 1, 7: 1, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
MOST_DIRECTORIES = 4  # the first, and those of the exposure, of the place, and of what goes with other programs
UNREADABLE = (struct.error, OverflowError, ValueError, OSError)  # what places that are none lead to
LONG, DIRECTORY_OF_BIG = 4, 18
PAIRS = (5, 10)  # types of which a value is two numbers
MOST_ENTRIES, MOST_BYTES = 1000, 2**20  # of a directory, of an entry; of all directories of a file the same times 16
_ORIENTATION = re.compile(rb"(tiff:Orientation(?:\s*=\s*[\"']|>\s*))\d+")


class Entry(NamedTuple):
    """Tag and type of an entry of a directory, and its values: little-endian bytes, or a directory."""

    tag: int
    kind: int
    values: bytes | list[Entry]


class _Format(NamedTuple):
    """How a file writes its directories."""

    order: str  # of the bytes, "<" or ">"
    big: bool

    @property
    def place(self) -> str:
        """The type of places, as `struct` names it."""
        return "Q" if self.big else "L"

    @property
    def head(self) -> str:
        return self.order + ("HHQ" if self.big else "HHL")

    @property
    def inline(self) -> int:
        """Bytes of values that stand in the entry itself."""
        return 8 if self.big else 4

    @property
    def entry(self) -> int:
        return 20 if self.big else 12

    def read(self, file: IO[bytes], form: str) -> int:
        size = struct.calcsize(self.order + form)
        return int(struct.unpack(self.order + form, file.read(size))[0])


def read_entries(path: Path) -> list[Entry]:
    """The first directory of a TIFF file, without what is too large to be a description; empty where it is broken."""
    with path.open("rb") as file:
        return _read(file)


def exif_of(entries: Iterable[Entry]) -> bytes | None:
    """What describes the picture, as EXIF data; None where nothing does."""
    kept = [entry for entry in entries if entry.tag in DESCRIPTIVE]
    return PREFIX + b"II*\0\x08\0\0\0" + _pack(kept, 8, big=False) if kept else None


def add_exif(path: Path, exif: bytes) -> None:
    """Add to a little-endian TIFF file with one picture what EXIF data say of it.

    A directory with the old entries and the new ones comes to the end of the file; pixels stay where they are.
    """
    new = [entry for entry in _read(io.BytesIO(exif.removeprefix(PREFIX))) if entry.tag in DESCRIPTIVE]
    with path.open("r+b") as file:
        form, place = _start(file)
        if not new or form is None or form.order != "<":
            return
        file.seek(place)
        count = form.read(file, "Q" if form.big else "H")
        old = [file.read(form.entry) for _ in range(count)]
        there = {int.from_bytes(entry[:2], "little") for entry in old}
        file.seek(0, io.SEEK_END)
        file.write(bytes(file.tell() % 2))
        # As a directory of their own first: their entries then say where their values are, and are copied.
        block = _pack([entry for entry in new if entry.tag not in there], file.tell(), big=form.big)
        file.write(block)
        start = 8 if form.big else 2
        number = int.from_bytes(block[:start], "little")
        added = [block[start + i * form.entry :][: form.entry] for i in range(number)]
        merged = sorted([*old, *added], key=lambda entry: int.from_bytes(entry[:2], "little"))
        file.write(bytes(file.tell() % 2))
        directory = file.tell()
        file.write(struct.pack("<Q" if form.big else "<H", len(merged)) + b"".join(merged) + bytes(form.inline))
        file.seek(8 if form.big else 4)
        file.write(struct.pack("<" + form.place, directory))


def without_thumbnail(exif: bytes) -> bytes:
    """EXIF data without the small picture of how the large one was: nothing leads to its directory any more."""
    start = len(PREFIX) if exif.startswith(PREFIX) else 0
    order = {b"II": "<", b"MM": ">"}.get(exif[start : start + 2])
    if order is None:
        return exif
    try:
        (place,) = struct.unpack_from(f"{order}L", exif, start + 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start + place)
        link = start + place + 2 + 12 * count
        struct.unpack_from(f"{order}L", exif, link)
    except struct.error:
        return exif
    return exif[:link] + bytes(4) + exif[link + 4 :]


def upright_xmp(packet: bytes) -> bytes:
    """XMP data that do not ask for a turn: the pixels are upright."""
    return _ORIENTATION.sub(rb"\g<1>1", packet)


def _start(file: IO[bytes]) -> tuple[_Format | None, int]:
    """How a file is written and where its first directory is."""
    file.seek(0)
    head = file.read(4)
    if head[:2] not in (b"II", b"MM"):
        return None, 0
    form = _Format("<" if head[:2] == b"II" else ">", big=b"\x2b" in head[2:])
    if form.big:
        file.seek(8)
    return form, form.read(file, form.place)


def _read(file: IO[bytes]) -> list[Entry]:
    try:
        form, place = _start(file)
        return [] if form is None else _directory(file, form, place, _Budget(), wanted={*DESCRIPTIVE, EXTRA_SAMPLES})
    except UNREADABLE:
        return []


class _Budget:
    """What may still be read of a file, in which directories can lead to each other, and entries to the same values."""

    def __init__(self) -> None:
        self.bytes = 16 * MOST_BYTES
        self.places: set[int] = set()  # of directories that were read


def _directory(
    file: IO[bytes], form: _Format, place: int, budget: _Budget, wanted: Collection[int] | None = None
) -> list[Entry]:
    """The entries with the wanted tags, None: all; each tag once, and no directory twice."""
    if place in budget.places or len(budget.places) >= MOST_DIRECTORIES:
        return []
    budget.places.add(place)
    file.seek(place)
    count = min(form.read(file, "Q" if form.big else "H"), MOST_ENTRIES)
    raw = file.read(count * form.entry)
    entries: list[Entry] = []
    seen: set[int] = set()
    for start in range(0, len(raw) - form.entry + 1, form.entry):
        tag, kind, number = struct.unpack_from(form.head, raw, start)
        if tag in seen or (wanted is not None and tag not in wanted):
            continue
        seen.add(tag)
        size = WIDTHS.get(kind, 0) * number * (2 if kind in PAIRS else 1)
        if not 0 < size <= min(MOST_BYTES, budget.bytes):
            continue
        budget.bytes -= size
        values = raw[start + form.entry - form.inline : start + form.entry]
        if tag in POINTERS:
            if size in (4, 8) and size <= form.inline:
                (below,) = struct.unpack_from(form.order + ("Q" if size == 8 else "L"), values)
                with suppress(*UNREADABLE):  # one that leads nowhere
                    entries.append(Entry(tag, LONG, _directory(file, form, below, budget)))
            continue
        if size > form.inline:
            try:
                file.seek(struct.unpack(form.order + form.place, values)[0])
            except UNREADABLE:
                continue
            values = file.read(size)
        if len(values) >= size:
            entries.append(Entry(tag, kind, _little(values[:size], WIDTHS[kind], form.order)))
    return entries


def _little(values: bytes, width: int, order: str) -> bytes:
    return values if order == "<" or width == 1 else np.frombuffer(values, f">u{width}").byteswap().tobytes()


def _pack(entries: Iterable[Entry], place: int, *, big: bool) -> bytes:
    """A directory that is to lie at this place, with its values behind it."""
    form = _Format("<", big)
    entries = sorted(entries, key=lambda entry: entry.tag)
    head = struct.pack("<Q" if big else "<H", len(entries))
    rest, behind = bytearray(), place + len(head) + len(entries) * form.entry + form.inline
    for tag, kind, values in entries:
        here = behind + len(rest)
        if isinstance(values, list):
            rest += _pack(values, here, big=big)
            kind, number, inline = DIRECTORY_OF_BIG if big else LONG, 1, struct.pack("<" + form.place, here)
        else:
            number = len(values) // (WIDTHS[kind] * (2 if kind in PAIRS else 1))
            inline = values
            if len(values) > form.inline:
                rest += values
                inline = struct.pack("<" + form.place, here)
        rest += bytes(len(rest) % 2)
        head += struct.pack(form.head, tag, kind, number) + inline.ljust(form.inline, b"\0")
    return head + bytes(form.inline) + bytes(rest)
