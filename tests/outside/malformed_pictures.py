"""Picture files that are broken, lie, or pose as what they are not; and what else pictures and arrays are kept in."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyvips
from malformed_weights import File, Payload, payloads
from PIL import Image

from opir_lightning.data.packs import END, MAGIC

SIDE = 48


def picture(channels: int = 3, side: int = SIDE) -> np.ndarray:
    y, x = np.mgrid[0:side, 0:side]
    values = np.stack([(3 * x + 2 * y + 40 * c) % 200 + (x * y) % 30 for c in range(channels)], 2)
    return values.astype(np.uint8)


def encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    (image or Image.fromarray(picture())).save(stream, kind, **options)
    return stream.getvalue()


def good_files() -> dict[str, bytes]:
    """A picture in every format, and a map of depths, by suffix."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Camera", 6
    depth = io.BytesIO()
    np.save(depth, np.linspace(1, 2, 64, dtype=np.float32).reshape(8, 8))
    return {
        "png": encoded("PNG", exif=exif, dpi=(300, 300)),
        "jpg": encoded("JPEG", exif=exif, quality=90),
        "webp": encoded("WEBP", lossless=True),
        "tif": encoded("TIFF", compression="tiff_lzw"),
        "bmp": encoded("BMP"),
        "avif": bytes(pyvips.Image.new_from_array(picture()).heifsave_buffer(compression="av1", Q=80)),
        "npy": depth.getvalue(),
    }


def spoiled_pictures(rng: random.Random) -> Iterator[File]:
    """Every format cut off and with flipped bits."""
    for suffix, whole in good_files().items():
        for eighths in range(1, 8):
            yield "cut", f"cut {eighths}.{suffix}", whole[: len(whole) * eighths // 8]
        yield "cut", f"cut at the end.{suffix}", whole[:-1]
        for number in range(12):
            flipped = bytearray(whole)
            for _ in range(1 + number % 4):
                flipped[rng.randrange(min(len(whole), 200) if number % 2 else len(whole))] ^= 1 << rng.randrange(8)
            yield "bits flipped", f"flipped {number}.{suffix}", bytes(flipped)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2, lace: int = 0) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, lace))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def zeros(megabytes: int) -> bytes:
    """A thousandth of their size when they are packed."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(megabytes)) + packer.flush()


def png_files() -> Iterator[File]:
    few, many = chunk(b"IDAT", zeros(1)), chunk(b"IDAT", zeros(100))
    for width, height in (
        (100_000, 100_000),
        (2**31 - 1, 2**31 - 1),
        (2**31 - 1, 1),
        (1, 2**31 - 1),
        (0, 5),
        (2**32 - 1, 9),
    ):
        yield "huge", f"{width}x{height}.png", png(width, height, few)
    for width, depth, colour, lace in (
        (30_000, 8, 2, 0),
        (30_000, 16, 6, 1),
        (60_000, 1, 0, 0),
        (13_000, 8, 3, 1),
        (13_000, 16, 0, 0),
    ):
        palette = chunk(b"PLTE", bytes(768)) if colour == 3 else b""
        yield (
            "huge",
            f"unfolds {width} {depth} {colour} {lace}.png",
            png(width, width, palette, many, depth=depth, colour=colour, lace=lace),
        )
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in picture())))
    for name, extra in {
        "text": chunk(b"zTXt", b"Comment\0\0" + zeros(300)),
        "many texts": chunk(b"zTXt", b"Comment\0\0" + zeros(30)) * 40,
        "international": chunk(b"iTXt", b"Comment\0\1\0en\0x\0" + zeros(300)),
        "profile": chunk(b"iCCP", b"x\0\0" + zeros(300)),
        "no profile": chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile" * 50)),
        "exif": chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x03\xff\xff\xff\xff" * 20),
        "exif of nothing": chunk(b"eXIf", b""),
        "length": struct.pack(">I", 2**31 - 1) + b"tEXtComment\0x",
        "no sum": chunk(b"tEXt", b"a\0b")[:-4] + b"\0\0\0\0",
        "thousand": chunk(b"tEXt", b"a\0b") * 20_000,
        "animation": chunk(b"acTL", struct.pack(">II", 2**31, 0)),
        "resolution": chunk(b"pHYs", struct.pack(">IIB", 2**31, 0, 9)),
    }.items():
        yield "chunks", f"{name}.png", png(SIDE, SIDE, extra, body)
        yield "chunks", f"{name} behind.png", png(SIDE, SIDE, body, extra)
    for name, depth, colour in (("depth", 3, 2), ("colour", 8, 7), ("no palette", 8, 3), ("long rows", 16, 6)):
        yield "header", f"{name}.png", png(SIDE, SIDE, body, depth=depth, colour=colour)
    yield "header", "no pixels.png", png(SIDE, SIDE)
    yield "header", "empty chunks.png", png(SIDE, SIDE, *[chunk(b"IDAT", b"")] * 20_000, body)


def unfolding_files() -> Iterator[File]:
    """In order, and much more than their files."""
    yield "huge", "flat.webp", encoded("WEBP", Image.new("RGB", (16_000, 11_000)), lossless=True)
    packed = zlib.compress(bytes(2**28), 9)
    yield (
        "huge",
        "unfolds.tif",
        tiff(
            (256, 4, 1, 50_000),
            (257, 4, 1, 50_000),
            (278, 4, 1, 50_000),
            (259, 3, 1, 8),
            (279, 4, 1, len(packed)),
            data=packed,
        ),
    )


def jpeg_files() -> Iterator[File]:
    whole = encoded("JPEG", quality=90)
    place = whole.index(b"\xff\xc0") + 5
    for height, width in ((65535, 65535), (0, 48), (48, 0), (65535, 1), (16_000, 16_000)):
        yield "huge", f"{width}x{height}.jpg", whole[:place] + struct.pack(">HH", height, width) + whole[place + 4 :]
    progressive = encoded("JPEG", quality=90, progressive=True)
    place = progressive.index(b"\xff\xc2") + 5
    yield "huge", "progressive.jpg", progressive[:place] + struct.pack(">HH", 65500, 65500) + progressive[place + 4 :]
    scan = progressive.rindex(b"\xff\xda")
    for count in (500, 20_000):
        yield "scans", f"{count} scans.jpg", progressive[:scan] + progressive[scan:-2] * count + progressive[-2:]

    def marked(marker: int, content: bytes) -> bytes:
        return whole[:2] + bytes([255, marker]) + struct.pack(">H", len(content) + 2) + content + whole[2:]

    entry = struct.pack("<HHII", 0x0112, 3, 2**32 - 1, 2**31)
    circle = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<I", 8)
    for name, content in {
        "exif count": b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + entry * 50,
        "exif circle": circle,
        "exif place": b"Exif\0\0II*\0\xff\xff\xff\xff",
        "exif text": b"Exif\0\0no exif",
        "exif turn": b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x0112, 3, 1, 77) + bytes(4),
        "xmp": b"http://ns.adobe.com/xap/1.0/\0<!DOCTYPE a [<!ENTITY b 'c'>]><x>&b;" + b"<a>" * 9000,
    }.items():
        yield "metadata", f"{name}.jpg", marked(0xE1, content)
    yield "metadata", "profile.jpg", marked(0xE2, b"ICC_PROFILE\0\x01\xff" + bytes(60_000))
    yield "metadata", "views.jpg", marked(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff" + entry * 20)
    inks = encoded("JPEG", Image.fromarray(picture()).convert("CMYK"))
    yield (
        "metadata",
        "inks.jpg",
        inks[:2] + marked(0xE2, b"ICC_PROFILE\0\x01\x01" + b"\0\0\x02\0" * 99)[2:-2] + inks[2:],
    )


def tiff(*tags: tuple[int, int, int, int], data: bytes = bytes(SIDE * SIDE * 3), following: int = 0) -> bytes:
    """Little-endian, one directory at 8; tags as (tag, type, count, value)."""
    usual = {256: (4, 1, SIDE), 257: (4, 1, SIDE), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 2), 277: (3, 1, 3),
             278: (4, 1, SIDE), 279: (4, 1, len(data)), 273: (4, 1, 400)}  # fmt: skip
    table = sorted({**usual, **{tag[0]: tag[1:] for tag in tags}}.items())
    directory = struct.pack("<H", len(table)) + b"".join(struct.pack("<HHII", tag, *rest) for tag, rest in table)
    return (b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", following)).ljust(400, b"\0") + data


def tiff_files() -> Iterator[File]:
    lies: dict[str, list[tuple[int, int, int, int]]] = {
        "in order": [],
        "width": [(256, 4, 1, 2**31 - 1)],
        "width and height": [(256, 4, 1, 2**30), (257, 4, 1, 2**30)],
        "large": [(256, 4, 1, 60_000), (257, 4, 1, 60_000), (278, 4, 1, 60_000)],
        "rather large": [(256, 4, 1, 16_000), (257, 4, 1, 16_000)],
        "no rows": [(278, 4, 1, 0)],
        "strip length": [(279, 4, 1, 2**32 - 1)],
        "strip place": [(273, 4, 1, 2**32 - 1)],
        "many strips": [(273, 4, 2**30, 400), (279, 4, 2**30, 400)],
        "bits": [(258, 3, 1, 64)],
        "bits elsewhere": [(258, 3, 3, 2**31)],
        "samples": [(277, 3, 1, 65535)],
        "five samples": [(277, 3, 1, 5)],
        "packed unknown": [(259, 3, 1, 9999)],
        "packed as jpeg": [(259, 3, 1, 7)],
        "packed as lzw": [(259, 3, 1, 5)],
        "packed as zip": [(259, 3, 1, 8)],
        "tiles": [(322, 4, 1, 2**30), (323, 4, 1, 2**30), (324, 4, 1, 400), (325, 4, 1, 400)],
        "no tiles": [(322, 4, 1, 0), (323, 4, 1, 0)],
        "floats": [(339, 3, 1, 3), (258, 3, 1, 32)],
        "colours": [(262, 3, 1, 8)],
        "profile": [(34675, 7, 2**31, 400)],
        "inner": [(330, 4, 2**28, 400)],
        "turned": [(274, 3, 1, 99)],
        "description": [(270, 2, 2**32 - 1, 0)],
    }
    for name, tags in lies.items():
        yield "tags", f"{name}.tif", tiff(*tags)
    yield "tags", "circle.tif", tiff(following=8)
    yield "tags", "nowhere.tif", tiff(following=2**32 - 1)
    page = struct.pack("<H", 1) + struct.pack("<HHII", 256, 4, 1, 9)
    pages = b"".join(page + struct.pack("<I", 8 + 18 * (n + 1)) for n in range(20_000))
    yield "pages", "many.tif", b"II*\0\x08\0\0\0" + pages + bytes(18)
    yield "header", "big.tif", b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**63)


def other_pictures(canary: Path) -> Iterator[File]:
    whole = encoded("BMP")
    for width, height, bits, packing in (
        (2**31 - 1, 2**31 - 1, 24, 0), (-48, 48, 24, 0), (48, -(2**31), 24, 0), (0, 0, 24, 0), (20_000, 20_000, 8, 1),
        (12_000, 12_000, 8, 1), (48, 48, 3, 0), (48, 48, 32, 3), (48, 48, 24, 99), (48, 48, 24, 4),
        (16_000, 16_000, 24, 0),
    ):  # fmt: skip
        head = whole[:14] + struct.pack("<IiiHHI", 40, width, height, 1, bits, packing) + whole[34:]
        yield "header", f"{width} {height} {bits} {packing}.bmp", head
    yield "header", "colours.bmp", whole[:46] + b"\xff" * 8 + whole[54:]
    webp = encoded("WEBP")
    canvas = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + b"\xff\x3f\0" * 2
    yield "huge", "canvas.webp", b"RIFF" + struct.pack("<I", len(canvas) + len(webp[12:])) + canvas + webp[12:]
    yield "header", "length.webp", webp[:4] + b"\xff\xff\xff\xff" + webp[8:]
    moving = encoded("WEBP", save_all=True, append_images=[Image.new("RGB", (SIDE, SIDE))])
    yield "pages", "moving.webp", moving
    avif = good_files()["avif"]
    place = avif.index(b"ispe") + 8
    yield "huge", "size.avif", avif[:place] + struct.pack(">II", 60_000, 60_000) + avif[place + 8 :]
    yield "huge", "sizes.avif", avif[:place] + struct.pack(">II", 2**31, 2**31) + avif[place + 8 :]
    yield "header", "boxes.avif", avif[:16] + struct.pack(">I", 2**31) + avif[20:]
    secret = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:x="http://www.w3.org/1999/xlink" width="9" height="9">'
    postscript = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%mkdir {canary / 'ps'}) (w) file\n%%EOF\n"
    posing: dict[str, bytes] = {
        "drawing": (secret + '<image x:href="file:///etc/passwd" width="9" height="9"/></svg>').encode(),
        "endless drawing": b'<svg xmlns="http://www.w3.org/2000/svg" width="99999" height="99999"/>',
        "postscript": postscript.encode(),
        "document": b"%PDF-1.4\n1 0 obj<</OpenAction<</S/Launch/F(mkdir)>>>>endobj",
        "moving": encoded("GIF"),
        "plain": b"P6\n99999 99999\n255\n" + bytes(99),
        "vips": struct.pack("<IIII", 0xB6A6F208, 60_000, 60_000, 3) + bytes(60),
        "page": b"<html><img src=x onerror=alert(1)>",
        "pickle": pickle.dumps(Payload(os.mkdir, str(canary / "picture"))),
        "array": good_files()["npy"],
        "metafile": b"\xd7\xcd\xc6\x9a" + bytes(60),
        "windows": b"BM" + bytes(9),
        "nothing": b"",
        "zeros": bytes(5000),
        "heic": b"\0\0\0\x18ftypheic" + bytes(40),
    }
    for name, content in posing.items():
        for suffix in ("png", "jpg", "tif", "bmp", "webp", "avif"):
            yield "posing", f"{name}.{suffix}", content


def depth_files(canary: Path) -> Iterator[File]:
    def array(head: str, data: bytes = bytes(256), version: bytes = b"\x01\x00") -> bytes:
        text = head.encode().ljust(118) + b"\n"
        return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data

    for name, payload in payloads(canary):
        objects = np.array([payload], dtype=object)
        stream = io.BytesIO()
        np.save(stream, objects, allow_pickle=True)
        yield "pickle", f"objects {name}.npy", stream.getvalue()
        yield "pickle", f"plain {name}.npy", pickle.dumps(payload)
    for number, (kind, shape) in enumerate(
        [("<f4", (10**6, 10**6)), ("<f4", (-8, 8)), ("<f4", (8,)), ("<f4", (0, 8)), ("|O", (8, 8)), ("<U9", (2, 2)),
         ("<c8", (4, 4)), ("<M8[s]", (4, 4)), ("|V4", (8, 8)), ("<f8", (4, 8)), (">f4", (8, 8)), ("|b1", (8, 8)),
         ("<f4", (2**62, 2)), ("<f4", ())]
    ):  # fmt: skip
        text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
        yield "header", f"array {number}.npy", array(text)
    yield "header", "code.npy", array("__import__('os').mkdir('x')")
    yield "header", "deep.npy", array("[" * 100)
    yield "header", "version.npy", array("{}", version=b"\x09\x00")
    yield (
        "header",
        "not finite.npy",
        array("{'descr': '<f4', 'fortran_order': False, 'shape': (8, 8), }", b"\xff" * 256),
    )
    stream = io.BytesIO()
    np.savez_compressed(stream, a=np.zeros((2000, 2000)))
    yield "zip", "archive.npy", stream.getvalue()


def pack_files(canary: Path) -> Iterator[File]:
    """Packs with a checksum that is right."""

    def pack(index: Any, pixels: bytes = bytes(300)) -> bytes:
        text = index if isinstance(index, bytes) else json.dumps(index).encode()
        start = MAGIC + bytes(64 - len(MAGIC)) + pixels
        return start + text + END.pack(len(start), len(text), hashlib.blake2b(text, digest_size=16).digest())

    made_of, sound = ["rgb", "/a.png", 3, 4], zlib.crc32(bytes(300))
    for number, place in enumerate(
        [[64, [10, 10, 3], "|u1", sound], [64, [10, 10, 3], "|u1", 1], [64, [2**40, 3], "|u1", 0], [-9, [3], "|u1", 0],
         [2**70, [3], "|u1", 0], [64, [-1, -300], "|u1", 0], [64, [3], "|O", 0], [64, [3], "<f8", 0], [64, [3], "x", 0],
         [64, 3, "|u1", 0], [64], {}, "abcd", [64, [0.5], "|u1", 0], [64, [[3]], "|u1", 0]]
    ):  # fmt: skip
        yield "pack", f"place {number}.pack", pack([{"file": made_of, "place": place}])
    for number, index in enumerate(
        [{}, [1], None, "x", [{}], [{"file": []}], [{"file": ["rgb", 3, 3, 4], "broken": "x"}], [{"file": made_of}],
         [{"file": ["link", "/a", 3, 4], "broken": "x"}], b"[" * 100_000, b"\xff", [{"file": made_of, "broken": 3}]]
    ):  # fmt: skip
        yield "pack", f"index {number}.pack", pack(index)
