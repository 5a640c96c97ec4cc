"""The kinds of picture files, and what a picture is in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from opir_lightning.errors import UserError
from opir_lightning.outside import printable
from opir_lightning.picture_files.png_chunks import Chunk

# How each kind of file is written; lossy ones so that the loss stays below what a restoration is about.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("png", {}),
    ".jpg": ("jpeg", {"Q": 95, "subsample_mode": "off"}),
    ".jpeg": ("jpeg", {"Q": 95, "subsample_mode": "off"}),
    ".webp": ("webp", {"Q": 95}),
    ".tif": ("tiff", {"compression": "lzw"}),
    ".tiff": ("tiff", {"compression": "lzw"}),
    ".bmp": ("BMP", {}),  # in capitals: by Pillow
    ".avif": ("heif", {"compression": "av1", "Q": 85, "subsample_mode": "off"}),
    ".heic": ("HEIF", {"quality": 95}),
    ".heif": ("HEIF", {"quality": 95}),
}
SUFFIXES = ", ".join(FORMATS)
# Pictures too, and better named than passed over in silence: of these nothing can be restored, or not without a loss.
UNSUPPORTED = frozenset(
    [
        ".gif",
        ".jp2",
        ".jxl",
        ".psd",
        ".exr",
        ".hdr",
        ".svg",
        ".ppm",
        ".pgm",
        ".dng",
        ".cr2",
        ".cr3",
        ".nef",
        ".arw",
        ".orf",
        ".rw2",
        ".raf",
    ]  # the last are raw
)
TURNED = "exif-ifd0-Orientation"
ORIENTATION = 0x0112
RESOLUTION = ("xres", "yres")
METADATA = ("exif-", "icc-profile-data", "xmp-data", "iptc-data", "resolution-unit", *RESOLUTION)
THUMBNAIL = "exif-ifd1-"
BY_PILLOW = {"exif-data": "exif", "icc-profile-data": "icc_profile", "xmp-data": "xmp"}  # the same under its names


class Picture(NamedTuple):
    """A decoded picture and what has to survive its restoration.

    Attributes:
        pixels: ``(H, W, 3)`` uint8 or uint16 RGB, upright.
        alpha: ``(H, W)`` of the same type, or None.
        grey: whether it had one colour channel only.
        metadata: EXIF data, colour profile and the like, by libvips' names: (type, value).
        chunks: of a PNG file, what says how its colours are meant, and its texts.
        lossless: whether the file was without a loss, of a kind that can have one.

    The arrays may be views of a larger one.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    metadata: Mapping[str, tuple[int, Any]] = {}
    chunks: tuple[Chunk, ...] = ()
    lossless: bool = False


def last_line(error: Exception) -> str:
    """The last line of a library's message: libvips lists what it tried first."""
    lines = str(error).strip().splitlines()
    # All that pyvips says where libvips gives no reason, and what libvips says of our end of the pipe.
    if lines and lines[-1].startswith(("unable to call", "unable to write to memory")):
        return "it is damaged"
    return printable(lines[-1].strip().rstrip("."))[:200] if lines else type(error).__name__


def register_heif() -> None:
    try:
        import pillow_heif
    except ImportError as error:
        raise UserError("HEIC pictures need a plugin: pip install pillow-heif") from error
    pillow_heif.register_heif_opener()
