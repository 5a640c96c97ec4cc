"""Picture files as people have them: every kind of pixels in, and what has to survive a restoration kept.

libvips reads and writes: it keeps 16 bits, profiles and EXIF data of all kinds of files. Pillow takes what libvips does
not: BMP, and HEIC where its plugin ``pillow-heif`` is installed. Large pictures lie in temporary files, not in memory.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from opir_lightning.errors import UserError
from opir_lightning.files import replaced_atomically
from opir_lightning.memory import Scratch
from opir_lightning.outside import printable

if TYPE_CHECKING:
    import pyvips

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
LARGE = 2**26  # pixels beyond which a picture is kept in a temporary file
# Pixels of the largest picture: in memory 0.8 GiB of 8 bits, in a file 6 GiB.
LARGEST, LARGEST_IN_FILE = 2**28, 2**31
# Decoded bytes per byte of a file beyond `LARGE`. Photographs have 2 to 100; a file of a few kilobytes that unfolds to
# gigabytes is an accident or an attack.
MOST_UNFOLDED = 500
QUALITY = {"jpeg": "Q", "webp": "Q", "heif": "Q", "HEIF": "quality"}  # what the formats with a loss call it
EIGHT_BIT = {"jpeg", "webp", "heif", "BMP", "HEIF"}
WITHOUT_ALPHA = {"jpeg", "BMP"}
TURNED = "exif-ifd0-Orientation"
ORIENTATION = 0x0112
RESOLUTION = ("xres", "yres")
METADATA = ("exif-", "icc-profile-data", "xmp-data", "iptc-data", "png-comment-", "resolution-unit", *RESOLUTION)
BY_PILLOW = {"exif-data": "exif", "icc-profile-data": "icc_profile", "xmp-data": "xmp"}  # the same under its names
UNKNOWN_RESOLUTION = 1.0  # pixels per millimetre, where a file says nothing
GREY_WEIGHTS = [0.299, 0.587, 0.114]  # of ITU-R BT.601, add up to 1: grey stays what it is
USUAL_RESOLUTION = 72 / 25.4  # what is then written, because some formats have to say something


class Picture(NamedTuple):
    """A decoded picture and what has to survive its restoration.

    Attributes:
        pixels: ``(H, W, 3)`` uint8 or uint16 RGB, upright.
        alpha: ``(H, W)`` of the same type, or None.
        grey: whether it had one colour channel only.
        metadata: EXIF data, colour profile and the like, by libvips' names: (type, value).

    The arrays may be views of a larger one.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    metadata: Mapping[str, tuple[int, Any]] = {}


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
        raise UserError(f"'{path}' cannot be read as a picture: {_last_line(error)}.") from error


def _last_line(error: Exception) -> str:
    """The last line of a library's message: libvips lists what it tried first."""
    lines = str(error).strip().splitlines()
    if lines and lines[-1].startswith("unable to call"):  # all that pyvips says where libvips gives no reason
        return "it is damaged"
    return printable(lines[-1].strip().rstrip("."))[:200] if lines else type(error).__name__


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
        if start.startswith(b"\x89PNG") and b"acTL" in start.partition(b"IDAT")[0]:
            raise UserError("it is an animation and only still pictures can be restored; split it first")
        most = most_pixels or (LARGEST if scratch is None else LARGEST_IN_FILE)
        if start[:2] == b"BM" or _is_heic(start):
            return _with_pillow(path, "BMP" if start[:2] == b"BM" else "HEIF", most)
        loader = _loader(start)
        if loader is None:
            raise ValueError("its content is of no known kind")
        return _with_vips(path, loader, scratch, most)


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


def _with_pillow(path: Path, kind: str, most_pixels: int) -> Picture:
    if kind == "HEIF":
        _register_heif()
    with Image.open(path, formats=[kind]) as opened:
        _check_size(*opened.size, most_pixels)
        _check_unfolded(path, opened.width * opened.height, len(opened.getbands()))
        _check_pages(getattr(opened, "n_frames", 1))
        image = ImageOps.exif_transpose(opened)
        alpha = np.array(image.convert("RGBA").getchannel("A")) if image.has_transparency_data else None
        return Picture(to_rgb(image), alpha, image.mode in ("1", "L", "LA"), _metadata_of_pillow(image))


def _metadata_of_pillow(image: Image.Image) -> dict[str, tuple[int, Any]]:
    import pyvips

    exif = image.getexif()
    exif.pop(ORIENTATION, None)
    values = {name: image.info.get(key) for name, key in BY_PILLOW.items()} | {
        "exif-data": len(exif) and exif.tobytes()
    }
    return {name: (pyvips.GValue.blob_type, value) for name, value in values.items() if value}


def _register_heif() -> None:
    try:
        import pillow_heif
    except ImportError as error:
        raise UserError("HEIC pictures need a plugin: pip install pillow-heif") from error
    pillow_heif.register_heif_opener()


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


def _with_vips(path: Path, loader: str, scratch: Scratch | None, most_pixels: int) -> Picture:
    import pyvips

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
    image = image.autorot()
    deep = image.format == "ushort"
    if image.format not in ("uchar", "ushort"):
        raise UserError(f"it holds values of the kind '{image.format}', whose range is unknown; convert it to 16 bits")
    if image.interpretation == "cmyk":
        embedded = image.get_typeof("icc-profile-data") != 0
        image = image.icc_transform("srgb", embedded=embedded, input_profile="cmyk", depth=16 if deep else 8)
    elif image.interpretation in ("lab", "labs", "labq", "xyz", "hsv", "lch"):
        image = image.colourspace("rgb16" if deep else "srgb")
    if image.bands > 4:
        raise UserError(f"it holds {image.bands} channels; convert it to RGB or RGBA")
    metadata = {
        name: (image.get_typeof(name), image.get(name))
        for name in image.get_fields()
        if name.startswith(METADATA) and name != TURNED
    }
    grey = image.bands < 3
    if grey:
        image = image[0].bandjoin([image[0], *image])  # the colour three times, then alpha, if there is one
        image = image.copy(interpretation="rgb16" if deep else "srgb")
    pixels = _decode(image, np.uint16 if deep else np.uint8, scratch)
    return Picture(pixels[..., :3], pixels[..., 3] if image.bands > 3 else None, grey, metadata)


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


def write_picture(
    picture: Picture, path: Path, *, quality: int | None = None, progress: Callable[[], None] | None = None
) -> None:
    """Write a picture in the format of its suffix, whole or not at all.

    What the format cannot hold is reduced: 16 bits to 8, and alpha to a white background.

    Args:
        picture: what to write; it is written grey if it says so.
        path: with a suffix of `FORMATS`.
        quality: 1 to 100, for formats with a loss; None for one that is not seen.
        progress: called every now and then while a large picture is written.

    Raises:
        UserError: the format cannot hold a picture of this size.
    """
    kind, options = FORMATS[path.suffix.lower()]
    if quality is not None and kind in QUALITY:
        options = {**options, QUALITY[kind]: quality}
    with replaced_atomically(path) as temporary:
        try:
            image = _to_vips(picture, kind)
            if progress is not None:
                image.set_progress(True)
                image.signal_connect("eval", lambda *_: progress())
            if kind.isupper():
                _save_with_pillow(image, temporary, kind, options)
            else:
                getattr(image, f"{kind}save")(str(temporary), **options)
        except UserError:
            raise
        except Exception as error:  # beyond what the format can hold, or the disk is full
            raise UserError(f"the result cannot be written as {kind.upper()}: {_last_line(error)}") from error


def write_map(values: np.ndarray, path: Path) -> None:
    """Write numbers ``(H, W)`` float32 as a TIFF, whole or not at all.

    Raises:
        UserError: the disk is full.
    """
    import pyvips

    with replaced_atomically(path) as temporary:
        image = pyvips.Image.new_from_memory(values.data, values.shape[1], values.shape[0], 1, "float")
        try:
            image.tiffsave(str(temporary), compression="lzw", predictor="float")
        except pyvips.Error as error:
            raise UserError(f"the map cannot be written: {_last_line(error)}") from error


def _save_with_pillow(image: pyvips.Image, path: Path, kind: str, options: Mapping[str, Any]) -> None:
    if kind == "HEIF":
        _register_heif()
        known = {key: image.get(name) for name, key in BY_PILLOW.items() if image.get_typeof(name)}
        if "exif" in known:
            exif = Image.Exif()
            exif.load(known["exif"])
            exif.pop(ORIENTATION, None)
            known["exif"] = exif.tobytes()
        options = {**options, **known}
    pixels = image.numpy().reshape(image.height, image.width, image.bands)  # of a single grey pixel it is a number
    Image.fromarray(pixels.squeeze(2) if image.bands == 1 else pixels).save(path, kind, **options)


def png_text(keyword: str, text: str) -> dict[str, tuple[int, Any]]:
    """Metadata of a `Picture` that become a text of a PNG file."""
    import pyvips

    return {f"png-comment-0-{keyword}": (pyvips.GValue.gstr_type, text)}


def _to_vips(picture: Picture, kind: str) -> pyvips.Image:
    """The picture as its format can hold it; nothing is computed before it is written."""
    import pyvips

    image = _without_copy(picture.pixels)
    if picture.grey:
        image = image.recomb([GREY_WEIGHTS]).rint().cast(image.format).copy(interpretation=_interpretation(image, 1))
    if picture.alpha is not None:
        image = image.bandjoin(_without_copy(picture.alpha[..., None]))
        if kind in WITHOUT_ALPHA:
            white = np.iinfo(picture.alpha.dtype).max
            image = image.flatten(background=[white] * (image.bands - 1), max_alpha=white)
    if kind in EIGHT_BIT and image.format == "ushort":
        image = (image / 257).rint().cast("uchar")
    kept = dict(picture.metadata)
    resolution = {name: kept.pop(name)[1] for name in RESOLUTION if name in kept}
    for name in RESOLUTION:
        if resolution.get(name, UNKNOWN_RESOLUTION) == UNKNOWN_RESOLUTION:
            resolution[name] = USUAL_RESOLUTION
    image = image.copy(interpretation=_interpretation(image, image.bands), **resolution)  # whose metadata are its own
    for name, (type_, value) in kept.items():
        image.set_type(type_, name, value)
    image.set_type(pyvips.GValue.gint_type, "orientation", 1)  # EXIF data would turn upright pixels once more
    return image


def _without_copy(pixels: np.ndarray) -> pyvips.Image:
    """An array ``(H, W, C)`` for libvips. A view of fewer channels than there are is cut from what it views."""
    import pyvips

    form = "ushort" if pixels.dtype == np.uint16 else "uchar"
    base = pixels.base
    if isinstance(base, np.ndarray) and not pixels.flags.c_contiguous and base.flags.c_contiguous and base.ndim == 3:
        first = (pixels.ctypes.data - base.ctypes.data) // pixels.itemsize
        if first + pixels.shape[2] <= base.shape[2] and pixels.strides[:2] == base.strides[:2]:
            whole = pyvips.Image.new_from_memory(base.data, base.shape[1], base.shape[0], base.shape[2], form)
            return whole.extract_band(first, n=pixels.shape[2])
    height, width, bands = pixels.shape
    return pyvips.Image.new_from_memory(np.ascontiguousarray(pixels).data, width, height, bands, form)


def _interpretation(image: pyvips.Image, bands: int) -> str:
    names = ("grey16", "rgb16") if image.format == "ushort" else ("b-w", "srgb")
    return names[bands > 2]
