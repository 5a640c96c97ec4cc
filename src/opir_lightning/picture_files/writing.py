"""Write picture files: whole, and with what of a picture each kind can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from opir_lightning.errors import UserError
from opir_lightning.files import replaced_atomically
from opir_lightning.picture_files.exif import add_exif
from opir_lightning.picture_files.kinds import (
    BY_PILLOW,
    FORMATS,
    ORIENTATION,
    RESOLUTION,
    Picture,
    last_line,
    register_heif,
)
from opir_lightning.picture_files.png_chunks import Inserter, other_colours, without_colours, xmp

if TYPE_CHECKING:
    import pyvips

QUALITY = {"jpeg": "Q", "webp": "Q", "heif": "Q", "HEIF": "quality"}  # what the formats with a loss call it
EIGHT_BIT = {"jpeg", "webp", "BMP", "HEIF"}
WITHOUT_GREY = {"webp", "heif"}
WITHOUT_ALPHA = {"jpeg", "BMP"}
UNKNOWN_RESOLUTION = 1.0  # pixels per millimetre, where a file says nothing
GREY_WEIGHTS = [0.299, 0.587, 0.114]  # of ITU-R BT.601, add up to 1: grey stays what it is
# A usual TIFF ends at 4 GiB, and what cannot be compressed becomes larger by it.
LARGEST_USUAL_TIFF = 2**31  # bytes of pixels
USUAL_RESOLUTION = 72 / 25.4  # what is then written, because some formats have to say something


def check_colours(picture: Picture, path: Path) -> None:
    """Raise `UserError` where a file of this suffix could not say how the colours of a picture are meant."""
    known = FORMATS[path.suffix.lower()][0] == "png" or "icc-profile-data" in picture.metadata
    if not known and (by := other_colours(picture.chunks)):
        raise UserError(f"its colours are not those of sRGB (by its chunk {by}), which only a PNG can keep")


def write_picture(
    picture: Picture, path: Path, *, quality: int | None = None, progress: Callable[[], None] | None = None
) -> None:
    """Write a picture in the format of its suffix, whole or not at all.

    What the format cannot hold is reduced: 16 bits to 8 (AVIF: to 12), alpha to a white background, and where there is
    no grey, a grey picture's own profile to sRGB.

    Args:
        picture: what to write; it is written grey if it says so.
        path: with a suffix of `FORMATS`.
        quality: 1 to 100, for formats with a loss; None for one that is not seen.
        progress: called every now and then while a large picture is written.

    Raises:
        UserError: the format cannot hold a picture of this size or with these colours, or the disk is full.
    """
    kind, options = FORMATS[path.suffix.lower()]
    if quality is not None and kind in QUALITY:
        options = {**options, QUALITY[kind]: quality}
    interrupted: list[BaseException] = []
    with replaced_atomically(path) as temporary:
        try:
            check_colours(picture, path)
            image = _to_vips(picture, kind)
            _report(image, progress, interrupted)
            if kind.isupper():
                _save_with_pillow(image, temporary, kind, options)
            elif kind == "png":
                _save_png(image, temporary, picture)
            elif kind == "tiff":
                image.tiffsave(str(temporary), **options, bigtiff=_is_big(image))
                if "exif-data" in picture.metadata:
                    add_exif(temporary, picture.metadata["exif-data"][1])
            elif kind == "webp" and picture.lossless and quality is None:
                image.webpsave(str(temporary), lossless=True)
            elif kind == "heif" and image.format == "ushort":
                image.heifsave(str(temporary), **options, bitdepth=12)
            else:
                getattr(image, f"{kind}save")(str(temporary), **options)
        except UserError:
            raise
        except Exception as error:
            if interrupted:
                raise interrupted[0] from None
            # beyond what the format can hold, or the disk is full
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

    interrupted: list[BaseException] = []
    with replaced_atomically(path) as temporary:
        image = pyvips.Image.new_from_memory(values.data, values.shape[1], values.shape[0], 1, "float")
        _report(image, progress, interrupted)
        try:
            image.tiffsave(str(temporary), compression="lzw", predictor="float", bigtiff=_is_big(image))
        except pyvips.Error as error:
            if interrupted:
                raise interrupted[0] from None
            raise UserError(f"the map cannot be written: {last_line(error)}") from error


def _is_big(image: pyvips.Image) -> bool:
    bytes_each = {"uchar": 1, "ushort": 2, "float": 4}[image.format]
    return image.width * image.height * image.bands * bytes_each > LARGEST_USUAL_TIFF


def _report(image: pyvips.Image, progress: Callable[[], None] | None, interrupted: list[BaseException]) -> None:
    """Let ``progress`` be called while the image is computed; what that raises ends it, and is put into the list.

    An interruption (Ctrl-C) comes while Python runs, here most likely; through libvips it could not be raised.
    """
    if progress is None:
        return

    def call(*_: object) -> None:
        try:
            progress()
        except BaseException as error:
            interrupted.append(error)
            image.set_kill(True)

    image.set_progress(True)
    image.signal_connect("eval", call)


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
    else:
        options = {**options, "dpi": (image.xres * 25.4, image.yres * 25.4)}
    pixels = image.numpy().reshape(image.height, image.width, image.bands)  # of a single grey pixel it is a number
    Image.fromarray(pixels.squeeze(2) if image.bands == 1 else pixels).save(path, kind, **options)


def _save_png(image: pyvips.Image, path: Path, picture: Picture) -> None:
    import pyvips

    chunks = without_colours(picture.chunks) if "icc-profile-data" in picture.metadata else picture.chunks
    if "xmp-data" in picture.metadata:
        chunks = (*chunks, xmp(picture.metadata["xmp-data"][1]))
    with path.open("wb") as file:
        inserter = Inserter(file, chunks)
        target = pyvips.TargetCustom()
        target.on_write(inserter.write)
        try:
            image.pngsave_target(target)
        except pyvips.Error as error:
            raise inserter.error or error from error


def _to_vips(picture: Picture, kind: str) -> pyvips.Image:
    """The picture as its format can hold it; nothing is computed before it is written."""
    import pyvips

    kept = dict(picture.metadata)
    if kind == "png":
        kept.pop("xmp-data", None)  # libvips would write it as a text of another kind
    image = _without_copy(picture.pixels)
    if picture.grey:
        image = image.recomb([GREY_WEIGHTS]).rint().cast(image.format).copy(interpretation=_interpretation(image, 1))
        if kind in WITHOUT_GREY:
            image, kept = _grey_as_colours(image, kept)
    if picture.alpha is not None:
        image = image.bandjoin(_without_copy(picture.alpha[..., None]))
        if kind in WITHOUT_ALPHA:
            white = np.iinfo(picture.alpha.dtype).max
            image = image.flatten(background=[white] * (image.bands - 1), max_alpha=white)
    if kind in EIGHT_BIT and image.format == "ushort":
        image = (image / 257).rint().cast("uchar")
    resolution = {name: kept.pop(name)[1] for name in RESOLUTION if name in kept}
    for name in RESOLUTION:
        if resolution.get(name, UNKNOWN_RESOLUTION) == UNKNOWN_RESOLUTION:
            resolution[name] = USUAL_RESOLUTION
    image = image.copy(interpretation=_interpretation(image, image.bands), **resolution)  # whose metadata are its own
    for name, (type_, value) in kept.items():
        image.set_type(type_, name, value)
    image.set_type(pyvips.GValue.gint_type, "orientation", 1)  # EXIF data would turn upright pixels once more
    return image


def _grey_as_colours(
    image: pyvips.Image, metadata: dict[str, tuple[int, Any]]
) -> tuple[pyvips.Image, dict[str, tuple[int, Any]]]:
    """A grey picture in sRGB: for formats in which its profile would have no meaning."""
    if "icc-profile-data" not in metadata:
        return image, metadata
    import pyvips

    type_, profile = metadata["icc-profile-data"]
    image = image.copy()
    image.set_type(type_, "icc-profile-data", profile)
    try:
        converted = image.icc_transform("srgb", embedded=True, depth=16 if image.format == "ushort" else 8)
    except pyvips.Error:  # the profile is none of a grey picture
        converted = image
    converted = converted.copy()
    converted.remove("icc-profile-data")
    return converted, {name: value for name, value in metadata.items() if name != "icc-profile-data"}


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
