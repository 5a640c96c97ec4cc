"""Write picture files: whole, and with what of a picture each kind can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from opir_lightning.errors import UserError
from opir_lightning.files import replaced_atomically
from opir_lightning.picture_files.kinds import (
    BY_PILLOW,
    FORMATS,
    ORIENTATION,
    RESOLUTION,
    Picture,
    last_line,
    register_heif,
)

if TYPE_CHECKING:
    import pyvips

QUALITY = {"jpeg": "Q", "webp": "Q", "heif": "Q", "HEIF": "quality"}  # what the formats with a loss call it
EIGHT_BIT = {"jpeg", "webp", "heif", "BMP", "HEIF"}
WITHOUT_ALPHA = {"jpeg", "BMP"}
UNKNOWN_RESOLUTION = 1.0  # pixels per millimetre, where a file says nothing
GREY_WEIGHTS = [0.299, 0.587, 0.114]  # of ITU-R BT.601, add up to 1: grey stays what it is
# A usual TIFF ends at 4 GiB, and what cannot be compressed becomes larger by it.
LARGEST_USUAL_TIFF = 2**31  # bytes of pixels
USUAL_RESOLUTION = 72 / 25.4  # what is then written, because some formats have to say something


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
        UserError: the format cannot hold a picture of this size, or the disk is full.
    """
    kind, options = FORMATS[path.suffix.lower()]
    if quality is not None and kind in QUALITY:
        options = {**options, QUALITY[kind]: quality}
    with replaced_atomically(path) as temporary:
        try:
            image = _to_vips(picture, kind)
            _report(image, progress)
            if kind.isupper():
                _save_with_pillow(image, temporary, kind, options)
            else:
                if kind == "tiff":
                    options = {**options, "bigtiff": _is_big(image)}
                getattr(image, f"{kind}save")(str(temporary), **options)
        except UserError:
            raise
        except Exception as error:  # beyond what the format can hold, or the disk is full
            raise UserError(f"the result cannot be written as {kind.upper()}: {last_line(error)}") from error


def write_map(values: np.ndarray, path: Path, *, progress: Callable[[], None] | None = None) -> None:
    """Write numbers ``(H, W)`` float32 as a TIFF, whole or not at all.

    Args:
        values: what to write.
        path: ending in .tiff.
        progress: as in `write_picture`.

    Raises:
        UserError: the disk is full.
    """
    import pyvips

    with replaced_atomically(path) as temporary:
        image = pyvips.Image.new_from_memory(values.data, values.shape[1], values.shape[0], 1, "float")
        _report(image, progress)
        try:
            image.tiffsave(str(temporary), compression="lzw", predictor="float", bigtiff=_is_big(image))
        except pyvips.Error as error:
            raise UserError(f"the map cannot be written: {last_line(error)}") from error


def _is_big(image: pyvips.Image) -> bool:
    bytes_each = {"uchar": 1, "ushort": 2, "float": 4}[image.format]
    return image.width * image.height * image.bands * bytes_each > LARGEST_USUAL_TIFF


def _report(image: pyvips.Image, progress: Callable[[], None] | None) -> None:
    if progress is not None:
        image.set_progress(True)
        image.signal_connect("eval", lambda *_: progress())


def _save_with_pillow(image: pyvips.Image, path: Path, kind: str, options: Mapping[str, Any]) -> None:
    if kind == "HEIF":
        register_heif()
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
