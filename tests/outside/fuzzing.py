"""Changes good files at random, without end of ideas but from a seed, and reads each.

``python fuzzing.py WEIGHTS SEED COUNT``; beside the weights lie the good files. What raised stays there.
"""

from __future__ import annotations

import random
import struct
import sys
import zipfile
import zlib
from collections import Counter
from io import BytesIO
from pathlib import Path

from reading import Bounded

READERS = {
    ".png": ("picture", "data"),
    ".jpg": ("picture", "data"),
    ".webp": ("picture", "data"),
    ".tif": ("picture", "data", "depth"),
    ".bmp": ("picture", "data"),
    ".avif": ("picture",),
    ".npy": ("depth",),
    ".safetensors": ("weights",),
    ".ckpt": ("weights",),
}
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 2**64 - 1)


def changed(whole: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """One to six of: bits flipped, bytes set, extreme numbers put in, parts cut, doubled, moved or mixed in."""
    content = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if not content:
            break
        # Half of the time where files have their headers.
        place = rng.randrange(min(len(content), 256) if rng.random() < 0.5 else len(content))
        length = rng.choice((1, 2, 4, 8, 16, 100))
        match rng.randrange(8):
            case 0 | 1:
                content[place] ^= 1 << rng.randrange(8)
            case 2:
                content[place : place + 1] = bytes([rng.randrange(256)])
            case 3:
                size = rng.choice((1, 2, 4, 8))
                number = rng.choice(EXTREMES) % 256**size
                content[place : place + size] = number.to_bytes(size, rng.choice(("little", "big")))
            case 4:
                del content[place : place + length]
            case 5:
                content[place:place] = content[place : place + length] * rng.choice((1, 1, 50))
            case 6:
                other = rng.choice(others)
                start = rng.randrange(len(other))
                content[place : place + length] = other[start : start + length]
            case 7 if rng.random() < 0.3:
                del content[place:]
            case _:
                content[place : place + length] = rng.randbytes(min(length, len(content) - place))
    return bytes(content)


def mended(suffix: str, content: bytes, whole: bytes, rng: random.Random) -> bytes:
    """Lengths and checksums made right, so that a change is seen by what lies behind them."""
    if suffix == ".png":
        return _with_sums(content)
    if suffix == ".safetensors":
        length = struct.unpack("<Q", whole[:8])[0]
        header = changed(whole[8 : 8 + length], [whole], rng)
        return struct.pack("<Q", len(header)) + header + whole[8 + length :]
    if suffix == ".ckpt":
        stream = BytesIO()
        with zipfile.ZipFile(BytesIO(whole)) as source, zipfile.ZipFile(stream, "w") as target:
            for entry in source.infolist():
                part = source.read(entry)
                target.writestr(
                    entry.filename, changed(part, [whole], rng) if entry.filename.endswith("data.pkl") else part
                )
        return stream.getvalue()
    return content


def _with_sums(content: bytes) -> bytes:
    mended, place = bytearray(content), 8
    while place + 12 <= len(mended):
        length = struct.unpack(">I", mended[place : place + 4])[0]
        end = place + 8 + length
        if end + 4 > len(mended):
            break
        mended[end : end + 4] = struct.pack(">I", zlib.crc32(mended[place + 4 : end]))
        place = end + 4
    return bytes(mended)


def main(weights: Path, seed: int, count: int) -> None:
    rng = random.Random(seed)
    good = {path: path.read_bytes() for path in sorted(weights.parent.glob("good.*")) if path.suffix in READERS}
    bounded = Bounded(weights)
    outcomes: Counter[tuple[str, str, str]] = Counter()
    others = list(good.values())
    for number in range(count):
        path, whole = rng.choice(list(good.items()))
        content = changed(whole, others, rng)
        if rng.random() < 0.5:
            content = mended(path.suffix, content, whole, rng)
        file = weights.parent / f"changed{path.suffix}"
        file.write_bytes(content)
        for reader in READERS[path.suffix]:
            bounded.tell(started=number, path=str(file), reader=reader)
            outcome, text = bounded.read(reader, file)
            outcomes[path.suffix, reader, outcome] += 1
            if outcome == "raised" or not text.isprintable():
                kept = file.with_name(f"raised {number} {reader}{path.suffix}")
                kept.write_bytes(content)
                bounded.tell(raised=text, path=str(kept), reader=reader)
    table = [[*key, times] for key, times in sorted(outcomes.items())]
    bounded.tell(outcomes=table, MiB=bounded.memory())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
