"""Chunks of PNG files: what libvips neither reads nor writes of them, and whether a file is an animation.

Source: Portable Network Graphics Specification, third edition (W3C, 2025), chapters 5 and 11.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from opir_lightning.errors import UserError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
BEFORE_CHUNKS = len(SIGNATURE) + 25  # the header, IHDR, has to come first
COLOUR = (b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI")
TEXT = (b"tEXt", b"zTXt", b"iTXt")
XMP = b"XML:com.adobe.xmp"
# Of both, libvips keeps what they say by itself: written twice, they could contradict each other.
NOT_KEPT = (XMP, b"Raw profile type ")
MOST_BYTES, MOST_KEPT = 2**24, 1000  # of all chunks that are kept
MOST_CHUNKS = 2**20  # in a file; libpng writes one for every 8 kB
GAMMA = 45455  # of sRGB, in 1/100,000, as in gAMA
PRIMARIES = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)  # of sRGB, likewise, as in cHRM


class Chunk(NamedTuple):
    """Kind and content of a chunk."""

    kind: bytes
    content: bytes


def read_chunks(path: Path) -> tuple[Chunk, ...]:
    """What says how the colours are meant, and all texts but XMP, in the order of the file.

    Raises:
        UserError: the file is an animation, or has more of it than can be kept.
    """
    kept: list[Chunk] = []
    total = 0
    with path.open("rb") as file:
        for number, (kind, length) in enumerate(_headers(file)):
            if kind == b"acTL":
                raise UserError("it is an animation and only still pictures can be restored; split it first")
            if number >= MOST_CHUNKS:
                raise UserError(f"it is in more than {MOST_CHUNKS} parts, which no program writes")
            if kind not in COLOUR and kind not in TEXT:
                continue
            total += length
            if total > MOST_BYTES or len(kept) >= MOST_KEPT:
                raise UserError(f"its texts are more than {MOST_KEPT}, or than {MOST_BYTES} bytes; remove them first")
            content = file.read(length)
            if len(content) == length and not (kind in TEXT and content.startswith(NOT_KEPT)):
                kept.append(Chunk(kind, content))
    return tuple(kept)


def _headers(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Kind and length of each chunk; the file then stands where its content begins. Ends where the file does."""
    place = len(SIGNATURE)
    while True:
        file.seek(place)
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return
        length = int.from_bytes(head[:4], "big")
        yield head[4:], length
        place += length + 12


def text(keyword: str, value: str) -> Chunk:
    """A text that every reader of PNG files understands.

    Args:
        keyword: 1 to 79 Latin letters, such as "Description".
        value: any text.
    """
    try:
        return Chunk(b"tEXt", keyword.encode("latin-1") + b"\0" + value.encode("latin-1"))
    except UnicodeEncodeError:
        return _international(keyword.encode("latin-1"), value.encode())


def xmp(packet: bytes) -> Chunk:
    """XMP data as its specification wants them in a PNG file: libvips would write them as another kind of text."""
    return _international(XMP, packet)


def _international(keyword: bytes, value: bytes) -> Chunk:
    return Chunk(b"iTXt", keyword + b"\0\0\0\0\0" + value)


def without_colours(chunks: Iterable[Chunk]) -> tuple[Chunk, ...]:
    """Those that stay where a colour profile says how the colours are meant."""
    return tuple(chunk for chunk in chunks if chunk.kind not in (b"gAMA", b"cHRM", b"sRGB"))


def other_colours(chunks: Iterable[Chunk]) -> str | None:
    """The kind of the chunk that says that the colours are not those of sRGB, if there is one."""
    found = {chunk.kind: chunk.content for chunk in chunks}
    if (code := found.get(b"cICP")) is not None:
        return None if code[:2] in (b"\x01\x0d", b"\x01\x01", b"\x01\x06") else "cICP"  # BT.709 and what is like it
    if b"sRGB" in found:
        return None
    if len(gamma := found.get(b"gAMA", b"")) == 4 and abs(int.from_bytes(gamma, "big") - GAMMA) > 2000:
        return "gAMA"
    if len(points := found.get(b"cHRM", b"")) == 32:
        differences = [abs(one - other) for one, other in zip(struct.unpack(">8L", points), PRIMARIES, strict=True)]
        return "cHRM" if max(differences) > 1000 else None
    return None


class Inserter:
    """Puts chunks behind the header of a PNG file while that is written to a file.

    What goes wrong while a library calls `write`, an interruption included, is kept in ``error``: it could not be
    raised through the library.
    """

    def __init__(self, file: IO[bytes], chunks: Iterable[Chunk]) -> None:
        self._file, self._place = file, 0
        self.error: BaseException | None = None
        self._block = b"".join(
            struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))
            for kind, content in chunks
        )

    def write(self, data: bytes) -> int:
        """The next part of the file; returns its length, or -1 where it could not be written."""
        data = bytes(data)
        try:
            if self._place < BEFORE_CHUNKS <= self._place + len(data):
                here = BEFORE_CHUNKS - self._place
                self._file.write(data[:here] + self._block + data[here:])
            else:
                self._file.write(data)
        except BaseException as error:
            self.error = error
            return -1
        self._place += len(data)
        return len(data)
