"""Picture files as people have them: every kind of pixels in, and what has to survive a restoration kept."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from opir_lightning.errors import UserError
from opir_lightning.files import write_atomically

# How each kind of file is written; lossy ones so that the loss stays below what a restoration is about.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"quality": 95}),
    ".tif": ("TIFF", {"compression": "tiff_lzw"}),
    ".tiff": ("TIFF", {"compression": "tiff_lzw"}),
    ".bmp": ("BMP", {}),
}
SUFFIXES = ", ".join(FORMATS)


@contextmanager
def open_picture(path: Path | str) -> Iterator[Image.Image]:
    """Open a picture file; whatever its decoder stumbles over within the block becomes a `UserError`."""
    try:
        with Image.open(path) as image:
            yield image
    except UserError as error:
        raise UserError(f"'{path}': {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"There is no picture '{path}'.") from error
    except UnidentifiedImageError as error:
        raise UserError(f"'{path}' cannot be read as a picture: its content is of no known kind.") from error
    except Exception as error:  # decoders raise whatever a broken file leads them to
        raise UserError(f"'{path}' cannot be read as a picture: {str(error) or type(error).__name__}.") from error


def to_rgb(image: Image.Image) -> np.ndarray:
    """The pixels ``(H, W, 3)`` uint8 of a picture of any kind, turned upright; 16 bits are scaled to 8, alpha dropped.

    Raises:
        UserError: the picture holds floating-point values, whose range is unknown, or integers beyond 16 bits.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise UserError("The picture holds floating-point values; convert it to 8-bit RGB first.")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UserError("The picture holds values beyond 16 bits; convert it to 8-bit RGB first.")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    return np.array(image.convert("RGB"))


class Picture(NamedTuple):
    """A decoded picture and what has to survive its restoration.

    Attributes:
        pixels: ``(H, W, 3)`` uint8 RGB, upright.
        alpha: ``(H, W)`` uint8, or None.
        grey: whether it had one colour channel only.
        info: EXIF data and colour profile, as Pillow's ``save`` takes them.
        note: what was lost on the way in, or None.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    grey: bool
    info: dict[str, bytes]
    note: str | None

    def with_pixels(self, pixels: np.ndarray) -> Image.Image:
        """The picture with other pixels ``(H, W, 3)`` uint8: grey stays grey, the alpha channel stays as it was."""
        image = Image.fromarray(pixels)
        if self.grey:
            image = image.convert("L")
        if self.alpha is not None:
            image.putalpha(Image.fromarray(self.alpha))
        return image


def read_picture(path: Path) -> Picture:
    """Decode a picture file to 8-bit RGB, upright, and keep its alpha channel, EXIF data and colour profile.

    Raises:
        UserError: the file is missing, broken, of an unknown kind, or holds several pictures.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"files of the kind '{path.suffix}' are not supported; convert it to one of {SUFFIXES}")
    with open_picture(path) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # a phone's JPEG with a second view: its first picture counts
            raise UserError(f"it holds {frames} pictures and only still ones can be restored; split it first")
        deep = image.mode.startswith("I") or any("16" in str(part[3]) for part in getattr(image, "tile", []))
        info = {"icc_profile": image.info["icc_profile"]} if image.info.get("icc_profile") else {}
        if image.mode == "CMYK":
            info = {}  # the profile describes inks, and the result is RGB
        image = ImageOps.exif_transpose(image)
        if image.info.get("exif"):
            info["exif"] = image.info["exif"]  # as exif_transpose leaves it: without the orientation
        transparent = "A" in image.getbands() or "transparency" in image.info
        alpha = np.array(image.convert("RGBA").getchannel("A")) if transparent else None
        grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
        return Picture(to_rgb(image), alpha, grey, info, "16 bits per channel were reduced to 8" if deep else None)


def write_picture(
    image: Image.Image, path: Path, *, info: dict[str, bytes] | None = None, text: str | None = None
) -> None:
    """Write a picture in the format of its suffix, whole or not at all.

    Args:
        image: what to write.
        path: with a suffix of `FORMATS`.
        info: as in `Picture`.
        text: a description, for PNG.

    Raises:
        UserError: the format cannot hold the picture.
    """
    kind, options = FORMATS[path.suffix.lower()]
    options = {**options, **(info or {})}
    if text:
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text("Description", text)
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **options)
    except ValueError as error:  # beyond what the format can hold
        raise UserError(f"the result cannot be written as {kind}: {error}") from error
    write_atomically(path, buffer.getvalue())
