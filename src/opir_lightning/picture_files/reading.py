"""Read picture files, with limits; libvips decodes, Pillow what libvips does not."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from opir_lightning.errors import UserError
from opir_lightning.memory import Scratch
from opir_lightning.picture_files.exif import (
    EXTRA_SAMPLES,
    exif_of,
    read_entries,
    upright_xmp,
    without_thumbnail,
)
from opir_lightning.picture_files.kinds import (
    BY_PILLOW,
    FORMATS,
    METADATA,
    ORIENTATION,
    RESOLUTION,
    SUFFIXES,
    THUMBNAIL,
    TURNED,
    Picture,
    last_line,
    register_heif,
)
from opir_lightning.picture_files.png_chunks import read_chunks

if TYPE_CHECKING:
    import pyvips

PNG_FIELDS = ("exif-data", "icc-profile-data", "xmp-data", "iptc-data", "resolution-unit", "xres", "yres")
LARGE = 2**26  # pixels beyond which a picture is kept in a temporary file
# Pixels of the largest picture: in memory 0.8 GiB of 8 bits, in a file 6 GiB.
LARGEST, LARGEST_IN_FILE = 2**28, 2**31
# Decoded bytes per byte of a file beyond `LARGE`. Photographs have 2 to 100; a file of a few kilobytes that unfolds to
# gigabytes is an accident or an attack.
MOST_UNFOLDED = 500


@contextmanager
def _named(path: Path | str) -> Iterator[None]:
    """Whatever a decoder stumbles over within the block becomes a `UserError` that names the file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"'{path}': {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"There is no picture '{path}'.") from error
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever a broken file leads them to
        raise UserError(f"'{path}' cannot be read as a picture: {last_line(error)}.") from error


def read_picture(path: Path | str, *, scratch: Scratch | None = None, most_pixels: int | None = None) -> Picture:
    """Decode a picture file to upright RGB of 8 or 16 bits, and keep its alpha channel, EXIF data and colour profile.

    Inks (CMYK) are converted by their profile to sRGB, palettes and single bits become 8 bits.

    Args:
        path: of the file.
        scratch: where the pixels of a picture beyond `LARGE` lie; None: in memory.
        most_pixels: a larger picture is refused before it is decoded; None: `LARGEST`, with ``scratch``
            `LARGEST_IN_FILE`.

    Raises:
        UserError: the file is missing, empty or broken, of an unknown kind, too large, holds several pictures, or
            values whose range is unknown; or there is no room for its pixels in the folder of ``scratch``.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"files of the kind '{path.suffix}' are not supported; convert it to one of {SUFFIXES}")
    with _named(path):
        with path.open("rb") as file:
            start = file.read(2**16)
        if not start:
            raise UserError("the file is empty")
        most = most_pixels or (LARGEST if scratch is None else LARGEST_IN_FILE)
        if start[:2] == b"BM" or _is_heic(start):
            return _with_pillow(path, "BMP" if start[:2] == b"BM" else "HEIF", most)
        loader = _loader(start)
        if loader is None:
            raise ValueError("its content is of no known kind")
        return _with_vips(path, loader, scratch, most, lossless=loader == "webpload" and _without_loss(path))


def _is_heic(start: bytes) -> bool:
    return start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1")


def _loader(start: bytes) -> str | None:
    """The loader of libvips for a file that begins so; None for all kinds but those of `FORMATS`.

    Left to itself, libvips takes any kind that it knows, whatever the name says: also drawings (SVG), which can name
    other files.
    """
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "pngload"
    if start.startswith(b"\xff\xd8\xff"):
        return "jpegload"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "webpload"
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiffload"
    return "heifload" if start[4:8] == b"ftyp" and start[8:12] in (b"avif", b"avis") else None


def _without_loss(path: Path) -> bool:
    """Whether a WebP file keeps its pixels as they were; metadata may come before them."""
    with path.open("rb") as file:
        file.seek(12)
        for _ in range(100):
            kind, size = file.read(4), int.from_bytes(file.read(4), "little")
            if kind in (b"VP8L", b"VP8 ", b""):
                return kind == b"VP8L"
            file.seek(size + size % 2, os.SEEK_CUR)
    return False


def _with_pillow(path: Path, kind: str, most_pixels: int) -> Picture:
    if kind == "HEIF":
        register_heif()
    with Image.open(path, formats=[kind]) as opened:
        _check_size(*opened.size, most_pixels)
        _check_unfolded(path, opened.width * opened.height, len(opened.getbands()))
        _check_pages(getattr(opened, "n_frames", 1))
        image = ImageOps.exif_transpose(opened)
        alpha = np.array(image.convert("RGBA").getchannel("A")) if image.has_transparency_data else None
        grey = image.mode in ("1", "L", "LA")
        return Picture(to_rgb(image), alpha, grey=grey, metadata=_metadata_of_pillow(image))


def _metadata_of_pillow(image: Image.Image) -> dict[str, tuple[int, Any]]:
    import pyvips

    exif = image.getexif()
    exif.pop(ORIENTATION, None)
    values = {name: image.info.get(key) for name, key in BY_PILLOW.items()} | {
        "exif-data": len(exif) and exif.tobytes()
    }
    metadata = {name: (pyvips.GValue.blob_type, value) for name, value in values.items() if value}
    if "dpi" in image.info and min(image.info["dpi"]) > 0:
        resolution = zip(RESOLUTION, image.info["dpi"], strict=True)
        metadata |= {name: (pyvips.GValue.gdouble_type, value / 25.4) for name, value in resolution}
    return _true_of_result(metadata)


def _true_of_result(metadata: dict[str, tuple[int, Any]]) -> dict[str, tuple[int, Any]]:
    """Without a thumbnail of the picture as it was, and without turns: the pixels are upright."""
    kept = {name: value for name, value in metadata.items() if not name.startswith(THUMBNAIL)}
    for name, change in (("exif-data", without_thumbnail), ("xmp-data", upright_xmp)):
        if name in kept:
            kept[name] = (kept[name][0], change(kept[name][1]))
    return kept


def _check_pages(pages: int) -> None:
    if pages > 1:
        raise UserError(f"it holds {pages} pictures and only still ones can be restored; split it first")


def _check_size(width: int, height: int, most_pixels: int) -> None:
    if width * height > most_pixels:
        raise UserError(
            f"it has {width * height / 1e6:.1f} megapixels ({width}x{height}), and at most {most_pixels / 1e6:g} are "
            "taken here"
        )


def _check_unfolded(path: Path, pixels: int, bytes_of_each: int, scratch: Scratch | None = None) -> None:
    """Raise `UserError` if a large picture is much more than its file, or more than there is room for."""
    if pixels <= LARGE:
        return
    decoded, size = pixels * bytes_of_each, path.stat().st_size
    if decoded > MOST_UNFOLDED * size:
        raise UserError(f"its {size} bytes would become {decoded}, which no photograph does")
    if scratch is not None and 2 * decoded > (free := shutil.disk_usage(scratch.folder).free):
        raise UserError(
            f"it needs {2 * decoded / 2**30:.1f} GiB beside the results, and '{scratch.folder}' has room for "
            f"{free / 2**30:.1f}"
        )


def _with_vips(path: Path, loader: str, scratch: Scratch | None, most_pixels: int, *, lossless: bool) -> Picture:
    import pyvips

    chunks = read_chunks(path) if loader == "pngload" else ()
    # libvips keeps what it has read, by the name of the file, and would give it again for another file of that name.
    load = functools.partial(getattr(pyvips.Image, loader), os.fsencode(path), fail_on="truncated", revalidate=True)
    # From top to bottom if it can be: only for turned pictures libvips needs the decoded pixels besides ours.
    image = load(access="sequential")
    _check_size(image.width, image.height, most_pixels)
    _check_unfolded(path, image.width * image.height, image.bands * (2 if image.format == "ushort" else 1), scratch)
    if image.get_typeof("orientation") and image.get("orientation") > 1:
        image = load()
    if loader != "jpegload":  # a phone's JPEG with a second view: its first picture counts
        _check_pages(image.get_n_pages())
    entries = read_entries(path) if loader == "tiffload" else []
    image = image.autorot()
    deep = image.format == "ushort"
    if image.format not in ("uchar", "ushort"):
        raise UserError(f"it holds values of the kind '{image.format}', whose range is unknown; convert it to 16 bits")
    if image.interpretation == "cmyk":
        embedded = image.get_typeof("icc-profile-data") != 0
        image = image.icc_transform("srgb", embedded=embedded, input_profile="cmyk", depth=16 if deep else 8)
    if image.bands > 4:
        raise UserError(f"it holds {image.bands} channels; convert it to RGB or RGBA")
    if image.bands in (2, 4) and any(tag == EXTRA_SAMPLES and not any(values) for tag, _, values in entries):
        raise UserError("besides its colours it holds a channel that is no transparency, a mask perhaps; remove that")
    if deep and loader == "heifload":
        image = _full_range(image)
    metadata = {
        name: (image.get_typeof(name), image.get(name))
        # Names of texts of a PNG may be in letters that Python cannot read, and what they say is in its chunks.
        for name in (image.get_fields() if loader != "pngload" else filter(image.get_typeof, PNG_FIELDS))
        if name.startswith(METADATA) and name != TURNED
    }
    if exif := exif_of(entries):
        metadata["exif-data"] = (pyvips.GValue.blob_type, exif)
    grey = image.bands < 3
    if grey:
        image = image[0].bandjoin([image[0], *image])  # the colour three times, then alpha, if there is one
        image = image.copy(interpretation="rgb16" if deep else "srgb")
    pixels = _decode(image, np.uint16 if deep else np.uint8, scratch)
    return Picture(
        pixels[..., :3],
        pixels[..., 3] if image.bands > 3 else None,
        grey=grey,
        lossless=lossless,
        chunks=chunks,
        metadata=_true_of_result(metadata),
    )


def _full_range(image: pyvips.Image) -> pyvips.Image:
    """Values of 10 or 12 bits, which libvips moves up to 16 with zeros behind them, with white at the top."""
    bits = image.get("bits-per-sample") if image.get_typeof("bits-per-sample") else 16
    white = (2**bits - 1) << (16 - bits)
    return image if bits == 16 else (image * (65535 / white)).rint().cast("ushort")


def _decode(image: pyvips.Image, dtype: type, scratch: Scratch | None) -> np.ndarray:
    import pyvips

    shape = (image.height, image.width, image.bands)
    if scratch is None or image.height * image.width <= LARGE:
        return image.numpy().reshape(shape)
    file = scratch.file()
    image.rawsave_target(pyvips.Target.new_to_descriptor(file.fileno()))
    return scratch.map(file, shape, dtype)


def to_rgb(image: Image.Image) -> np.ndarray:
    """The pixels ``(H, W, 3)`` uint8 of a PIL picture of any kind, upright; 16 bits are scaled to 8, alpha dropped.

    Raises:
        UserError: this is no PIL picture, or it holds floating-point values, whose range is unknown, or integers beyond
            16 bits.
    """
    if not isinstance(image, Image.Image):
        raise UserError(f"A PIL picture was expected, and this is of the type '{type(image).__name__}'.")
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise UserError("The picture holds floating-point values; convert it to 8-bit RGB first.")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UserError("The picture holds values beyond 16 bits; convert it to 8-bit RGB first.")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    return np.array(image.convert("RGB"))
